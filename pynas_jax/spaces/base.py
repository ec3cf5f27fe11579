"""The protocol that every search space obeys.

Search strategies, training, evaluation and deployment know spaces only by it.
A search starts from a draft, an architecture with gaps. Each stage fills a gap:
its supernet is trained with alphas, and `derive` writes the operators that won
into the draft. A draft without gaps is a genotype.

`params` are a module's parameters, by submodule. The running statistics of
batch norms, where there are any, lie beside them under the key STATISTICS: they
are inherited, averaged and saved like weights, but no gradient moves them.
"""

from __future__ import annotations

from typing import Any, Protocol

from flax import linen as nn
import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp
import ml_collections

from pynas_jax.genotype import Genotype
from pynas_jax.nn.gates import Gates
from pynas_jax.nn.layers import Layer

Params = Any
Draft = Any  # Hashable; its type is the space's own.
STATISTICS = 'batch_stats'  # Flax's name of the collection, too.


class Space(Protocol):
  """A search space."""

  @classmethod
  def from_settings(cls, config: ml_collections.ConfigDict) -> Space:
    """Returns the space that the settings describe."""

  def schemes(self) -> tuple[tuple[int, ...], ...]:
    """Returns all schemes of top-level variables, simple ones first."""

  def draft(self, scheme: tuple[int, ...]) -> Draft:
    """Returns the empty draft of a scheme of top-level variables."""

  def stages(self, draft: Draft) -> tuple[str, ...]:
    """Returns the names of the stages, in the order to search them."""

  def init_alphas(self, key: jax.Array, draft: Draft, stage: str) -> jax.Array:
    """Returns f[E, K], nearly uniform over what a row can choose."""

  def supernet(self, draft: Draft, stage: str, **options: Any) -> nn.Module:
    """Returns the module `(image, gates) -> image` of a stage."""

  def sampled(self, params: Params, stage: str, gates: Gates) -> Params:
    """Returns bool[] per leaf of params: whether it is on a sampled path."""

  def derive(self, draft: Draft, stage: str, alphas: jax.Array) -> Draft:
    """Returns the draft with the stage's likeliest operators filled in."""

  def decode(self, alphas: jax.Array) -> Gates:
    """Returns the gates of what `derive` fills in: only that has an effect."""

  def chosen(self, draft: Draft, stage: str) -> tuple[str, ...]:
    """Returns the operators that a stage has filled in."""

  def genotype(self, draft: Draft) -> Genotype:
    """Returns the architecture of a draft without gaps."""

  def network(self, genotype: Genotype, **options: Any) -> nn.Module:
    """Returns the module `image -> image` of an architecture.

    Options are `zero_init_last`, `dtype` and `remat`, as for `supernet`.
    """

  def multiple(self, genotype: Genotype) -> tuple[int, int]:
    """Returns what height and width are padded to multiples of, in pixels."""

  def count(
    self, genotype: Genotype, *, height: int, width: int
  ) -> tuple[int, int]:
    """Returns (parameters, multiply-adds for one image of that size)."""

  # What follows is for tiles of networks that keep one resolution throughout,
  # and none of other spaces.

  def reach(self, genotype: Genotype) -> int:
    """Returns how far to each side a pixel depends on others, in pixels."""

  def values(self, genotype: Genotype) -> int:
    """Returns the numbers that the largest layer reads and writes, per pixel.
    """

  # What follows is for `search.cost` and `search.local_trials`, and none of a
  # space without.

  def layers(
    self, genotype: Genotype, *, height: int, width: int
  ) -> list[list[Layer]]:
    """Returns the layers that an image of that size goes through, in groups."""

  def neighbours(self, genotype: Genotype) -> list[Genotype]:
    """Returns the networks that differ in one choice of the search."""

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
  # Once compiled sooner than the default generator; now another one would only
  # begin with other weights.
  fast_key = jax.random.wrap_key_data(
    jnp.tile(jax.random.key_data(key), 2), impl='rbg'
  )

  def init(key):  # Parameters do not depend on the image size: any will do.
    return module.init(key, jnp.zeros((1, 16, 16, 3), jnp.float32), *args)

  # What they need is run call by call: in one program, XLA would compile the
  # generator once for each parameter, not for each shape.
  traced, shapes = jax.make_jaxpr(init, return_shape=True)(fast_key)
  needed, _ = partial_eval.dce_jaxpr(
    traced.jaxpr, [True] * len(traced.out_avals), instantiate=True
  )
  leaves = jax.core.eval_jaxpr(needed, traced.consts, fast_key)
  variables = dict(jax.tree.unflatten(jax.tree.structure(shapes), leaves))
  params = variables.pop('params', {})
  return params | variables if variables else params


def _variables(params: Params) -> dict[str, Params]:
  """Returns Flax's collections."""
  if STATISTICS not in params:
    return {'params': params}
  weights = {k: v for k, v in params.items() if k != STATISTICS}
  return {'params': weights, STATISTICS: params[STATISTICS]}


def apply(module: nn.Module, params: Params, *args: Any) -> jax.Array:
  """Returns the output of a network with the statistics that it has learnt."""
  return module.apply(_variables(params), *args)


def apply_learning(
  module: nn.Module, params: Params, *args: Any
) -> tuple[jax.Array, Params]:
  """Returns the output in training, and the new statistics.

  Batch norms take the statistics of the batch, over all devices: only inside a
  step of `parallel`.

  Args:
    module: A network or supernet.
    params: Its parameters.
    *args: An image, and gates.

  Returns:
    The output, and what replaces part of the parameters, as by
    `params | statistics`; {} without batch norms.
  """
  if STATISTICS not in params:
    return apply(module, params, *args), {}
  return module.apply(_variables(params), *args, mutable=[STATISTICS])


def inherit(fresh: Params, trained: Params) -> Params:
  """Returns `fresh` with every leaf that `trained` has under the same name.

  Submodules are named after their operator, so this is all there is to
  deriving a network from its supernet, or to stacking a new scale on top.
  """
  if not isinstance(fresh, dict):
    return fresh if trained is None else trained
  trained = trained or {}
  return {k: inherit(v, trained.get(k)) for k, v in fresh.items()}
