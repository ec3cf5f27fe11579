"""Proposals of top-level variables: scale depth and patch scheme.

Source: PyNAS section 2.4: random, and the judgement module sees to it that no
scheme is tried twice. The factor that folds pixels into channels and the base
width are two more variables, ours, off unless their settings list choices.
"""

from __future__ import annotations

from collections.abc import Collection
import itertools
from typing import Any, NamedTuple, Self

import ml_collections
import numpy as np

from pynas_jax import genotype as genotype_lib
from pynas_jax.genotype import PyramidGenotype
from pynas_jax.spaces import make_space


class Proposal(NamedTuple):
  """Top-level variables of one trial.

  Attributes:
    scheme: Patches per scale, finest first.
    unshuffle: Factor of pixels folded into channels.
    base_width: Channels of the first stage; the others keep their ratio.
  """

  scheme: tuple[int, ...]
  unshuffle: int
  base_width: int

  def describe(self) -> str:
    """Returns a few words for people."""
    scheme = genotype_lib.format_scheme(self.scheme)
    return f'{scheme}, width {self.base_width}, unshuffle {self.unshuffle}'

  def to_dict(self) -> dict[str, Any]:
    """Returns what a record of the trial keeps."""
    return {
      'scheme': genotype_lib.format_scheme(self.scheme),
      'unshuffle': self.unshuffle,
      'base_width': self.base_width,
    }

  @classmethod
  def from_dict(cls, record: dict[str, Any]) -> Self:
    """Returns the proposal of a record."""
    return cls(
      genotype_lib.parse_scheme(record['scheme']), record['unshuffle'],
      record['base_width'],
    )  # fmt: skip

  @classmethod
  def of(cls, genotype: PyramidGenotype) -> Self:
    """Returns the top-level variables of a network."""
    return cls(genotype.scheme, genotype.unshuffle, genotype.widths[0])

  def apply(self, config: ml_collections.ConfigDict) -> Any:
    """Returns a copy of the settings with this proposal's model."""
    config = config.copy_and_resolve_references()
    config.model.widths = scale_widths(config.model.widths, self.base_width)
    config.model.unshuffle = self.unshuffle
    return config


def scale_widths(widths: tuple[int, ...], base_width: int) -> tuple[int, ...]:
  """Returns widths that begin with another and keep their ratio.

  >>> scale_widths((8, 16, 32), 10)
  (10, 20, 40)
  """
  return tuple(max(1, round(w * base_width / widths[0])) for w in widths)


def choices(config: ml_collections.ConfigDict) -> list[Proposal]:
  """Returns all proposals that the settings allow, in order."""
  s, m = config.search, config.model
  every = make_space(config).schemes()
  wanted = set(map(genotype_lib.parse_scheme, s.schemes))
  return [
    Proposal(*values)
    for values in itertools.product(
      sorted(wanted & set(every) or every),
      s.unshuffles or (m.unshuffle,),
      s.base_widths or (m.widths[0],),
    )
  ]


def propose(
  seed: int, tried: Collection[Proposal], allowed: Collection[Proposal]
) -> Proposal | None:
  """Returns a random proposal that was not tried yet, or None when all were.

  The choice depends on the seed and on what was tried, so a resumed search
  proposes what the uninterrupted one does.

  Args:
    seed: Of the search.
    tried: Proposals made before.
    allowed: Proposals to choose from.

  >>> a, b = Proposal((1,), 1, 8), Proposal((1, 2), 1, 8)
  >>> propose(0, tried=[a], allowed=[a, b]).scheme
  (1, 2)
  """
  left = sorted(set(allowed) - set(tried))
  if not left:
    return None
  rng = np.random.default_rng([seed, len(tried)])
  return left[int(rng.integers(len(left)))]
