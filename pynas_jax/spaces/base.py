"""The protocol that every search space obeys.

Search strategies, training, evaluation and deployment know spaces only by it.
A search starts from a draft, an architecture with gaps. Each stage fills a gap:
its supernet is trained with alphas, and `derive` writes the operators that won
into the draft. A draft without gaps is a genotype.
"""

from __future__ import annotations

from typing import Any, Protocol

from flax import linen as nn
import jax
import jax.numpy as jnp

from pynas_jax.genotype import Genotype
from pynas_jax.nn.gates import Gates
from pynas_jax.nn.layers import Layer

Params = Any
Draft = Any  # Hashable; its type is the space's own.


class Space(Protocol):
  """A search space."""

  def draft(self, scheme: tuple[int, ...]) -> Draft:
    """Returns the empty draft of a scheme of top-level variables."""

  def stages(self, draft: Draft) -> tuple[str, ...]:
    """Returns the names of the stages, in the order to search them."""

  def candidates(self, stage: str) -> tuple[str, ...]:
    """Returns the candidate operators, in the order of the alphas."""

  def init_alphas(self, key: jax.Array, draft: Draft, stage: str) -> jax.Array:
    """Returns f[E, K], nearly uniform."""

  def supernet(self, draft: Draft, stage: str, **options: Any) -> nn.Module:
    """Returns the module `(image, gates) -> image` of a stage."""

  def sampled(self, params: Params, stage: str, gates: Gates) -> Params:
    """Returns bool[] per leaf of params: whether it is on a sampled path."""

  def derive(self, draft: Draft, stage: str, alphas: jax.Array) -> Draft:
    """Returns the draft with the stage's likeliest operators filled in."""

  def genotype(self, draft: Draft) -> Genotype:
    """Returns the architecture of a draft without gaps."""

  def network(self, genotype: Genotype, **options: Any) -> nn.Module:
    """Returns the module `image -> image` of an architecture.

    Options are `zero_init_last` and `dtype`, as for `supernet`.
    """

  def multiple(self, genotype: Genotype) -> tuple[int, int]:
    """Returns what height and width are padded to multiples of, in pixels."""

  def count(
    self, genotype: Genotype, *, height: int, width: int
  ) -> tuple[int, int]:
    """Returns (parameters, multiply-adds for one image of that size)."""

  def layers(
    self, genotype: Genotype, *, height: int, width: int
  ) -> list[list[Layer]]:
    """Returns the layers that an image of that size goes through, in groups."""

  def filled(self, genotype: Genotype, operator: str) -> Genotype:
    """Returns the network with one operator in all places that a search fills.

    With 'zero' it is the skeleton: all of the network but its cells.
    """

  def edge_layers(
    self, draft: Draft, stage: str, *, height: int, width: int
  ) -> tuple[list[list[list[Layer]]], list[Layer]]:
    """Returns the layers that a stage chooses from, and those it always has.

    The first is by edge and candidate, as the alphas: the layers that a choice
    puts into the network, more than one where scales share their cells.
    """


def init_params(key: jax.Array, module: nn.Module, *args: Any) -> Params:
  """Returns fresh float32 parameters of a network or supernet.

  Args:
    key: PRNG key.
    module: A flax module.
    *args: Its gates, if it is a supernet.
  """
  # XLA:CPU takes seconds to compile the default generator for every shape.
  fast_key = jax.random.wrap_key_data(
    jnp.tile(jax.random.key_data(key), 2), impl='rbg'
  )
  # Parameters do not depend on the image size: any will do.
  image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
  variables = module.lazy_init(fast_key, image, *args)
  return variables.get('params', {})


def inherit(fresh: Params, trained: Params) -> Params:
  """Returns `fresh` with every leaf that `trained` has under the same name.

  Submodules are named after their operator, so this is all there is to
  deriving a network from its supernet, or to stacking a new scale on top.
  """
  if not isinstance(fresh, dict):
    return fresh if trained is None else trained
  trained = trained or {}
  return {k: inherit(v, trained.get(k)) for k, v in fresh.items()}
