"""Local search: the best network so far, with one choice changed.

A supernet tells the operators of a cell apart by hundredths of a decibel, and
not always rightly; a brief training of the network itself ranks it as the
training to come does. Source: local search by first improvement (White et al.,
UAI 2021). Ours: all networks are as wide as the limits and `search.base_widths`
allow, so that a cheap operator buys channels. It begins with what was searched,
so fitted, and with plain networks, one operator in all cells: what is found is
then no worse, by its score, than what needs no search.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
import dataclasses

import ml_collections
import numpy as np

from pynas_jax.genotype import Genotype
from pynas_jax.search import cost
from pynas_jax.search import schemes
from pynas_jax.spaces import make_space


def widen(
  genotype: Genotype, config: ml_collections.ConfigDict
) -> Genotype | None:
  """Returns a network with the greatest base width within the limits.

  Args:
    genotype: Of a space with widths.
    config: Settings; reads `model.widths` and `search`. A latency is not looked
      at, as it must be measured.

  Returns:
    The network, or None if it breaks the limits at every width.
  """
  choices = [
    schemes.scale_widths(config.model.widths, base_width)
    for base_width in sorted(config.search.base_widths, reverse=True)
  ]
  for widths in choices or [genotype.widths]:
    sized = dataclasses.replace(genotype, widths=widths)
    if not cost.counted_beyond(sized, config):
      return sized
  return None


def propose(
  seed: int,
  tried: Collection[Genotype],
  searched: Sequence[Genotype],
  choose_best: Callable[[], Genotype],
  config: ml_collections.ConfigDict,
) -> Genotype | None:
  """Returns the next network to try, or None when none is left.

  The choice depends on the seed and on what was tried, so a resumed search
  proposes what the uninterrupted one does.

  Args:
    seed: Of the search.
    tried: Networks that have a score, or failed.
    searched: Networks of the trials that searched a scheme.
    choose_best: Returns the best network so far.
    config: Settings.
  """

  def untried(genotypes: Iterable[Genotype]) -> list[Genotype]:
    wide = (widen(genotype, config) for genotype in genotypes)
    return [genotype for genotype in wide if genotype and genotype not in tried]

  if fitted := untried(searched):
    return fitted[0]
  space, best = make_space(config), choose_best()
  operators = (o for o in config.model.candidates if o != 'zero')
  if plain := untried(space.filled(best, o) for o in operators):
    return plain[0]
  left = untried(space.neighbours(best))
  if not left:
    return None
  rng = np.random.default_rng([seed, len(tried)])
  return left[int(rng.integers(len(left)))]
