"""Proposals of top-level variables: scale depth and patch scheme.

Source: PyNAS section 2.4: random, and the judgement module sees to it that no
scheme is tried twice.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from pynas_jax import genotype as genotype_lib


def propose(
  seed: int,
  tried: Collection[tuple[int, ...]],
  allowed: Collection[tuple[int, ...]] = (),
) -> tuple[int, ...] | None:
  """Returns a random scheme that was not tried yet, or None when all were.

  The choice depends on the seed and on what was tried, so a resumed search
  proposes what the uninterrupted one does.

  Args:
    seed: Of the search.
    tried: Schemes proposed before.
    allowed: Schemes to choose from; all in the limits when empty.

  >>> propose(0, tried=[(1,), (1, 2)], allowed=[(1,), (1, 2), (1, 3)])
  (1, 3)
  """
  schemes = sorted(set(allowed or genotype_lib.all_schemes()) - set(tried))
  if not schemes:
    return None
  rng = np.random.default_rng([seed, len(tried)])
  return schemes[int(rng.integers(len(schemes)))]
