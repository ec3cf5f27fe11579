"""The outer space of HiNAS: which widths a layer may have, and the likeliest.

Pure NumPy. Layer 0 is the start part and has level 0 alone; a path goes on to
the level below, the same or the one above, so layer l of L has levels up to l
(HiNAS section 3.2: "layer 0", our layer 1, has two). The probabilities of the
moves out of a level sum to 1, as in the reference code and in Auto-DeepLab, on
which HiNAS builds, so those of all paths do too; the paper does not say.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOVES = (-1, 0, 1)  # Of the level, in the order of a row of betas.


def num_levels(layer: int, factors: int) -> int:
  """Returns how many widths a layer chooses from.

  >>> [num_levels(layer, 3) for layer in range(5)]
  [1, 2, 3, 3, 3]
  """
  return min(layer + 1, factors)


def transitions(layers: int, factors: int) -> list[tuple[int, int]]:
  """Returns (layer, level) of every row of betas, in order.

  >>> transitions(2, 3)
  [(0, 0), (1, 0), (1, 1)]
  """
  return [
    (layer, level)
    for layer in range(layers)
    for level in range(num_levels(layer, factors))
  ]


def allowed(layers: int, factors: int) -> np.ndarray:
  """Returns bool[rows, 3]: the moves that stay inside the next layer's levels.

  >>> allowed(2, 2).astype(int).tolist()
  [[0, 1, 1], [0, 1, 1], [1, 1, 0]]
  """
  return np.array(
    [
      [0 <= level + move < num_levels(layer + 1, factors) for move in MOVES]
      for layer, level in transitions(layers, factors)
    ]
  )


def viterbi(
  probs: Sequence[Sequence[float]], *, layers: int, factors: int
) -> tuple[int, ...]:
  """Returns the likeliest path: the level of each layer.

  >>> half = [0.0, 0.5, 0.5]
  >>> viterbi([half, [0.0, 0.9, 0.1], [0.5, 0.5, 0.0]], layers=2, factors=2)
  (0, 0)

  Args:
    probs: f[rows, 3], of the moves, in the order of `transitions`; those that
      are not allowed do not count.
    layers: Number of layers.
    factors: Number of widths.

  Returns:
    Levels of layers 1 to L; of equal paths, the narrower.

  Source: HiNAS section 3.2.
  """
  masked = np.where(allowed(layers, factors), np.asarray(probs, float), 0.0)
  with np.errstate(divide='ignore'):  # log 0: never taken.
    logs = dict(zip(transitions(layers, factors), np.log(masked), strict=True))
  score, paths = {0: 0.0}, {0: ()}
  for layer in range(layers):
    best: dict[int, tuple[float, int]] = {}
    for level in sorted(score):
      for move, log in zip(MOVES, logs[layer, level], strict=True):
        to, value = level + move, score[level] + log
        if value > best.get(to, (-np.inf,))[0]:
          best[to] = (value, level)
    score = {to: value for to, (value, _) in best.items()}
    paths = {to: (*paths[level], to) for to, (_, level) in best.items()}
  return paths[max(sorted(score), key=score.__getitem__)]
