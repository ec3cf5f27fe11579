"""Cell by cell, the operator that does best in the supernet.

Alphas average over networks and batches, and in few steps that average is
noise: two operators that differ by 0.01 dB look alike. The supernet's trained
weights on all held-out images do tell them apart, one path at a time. Ours;
one-shot methods rank whole networks likewise (Guo et al., ECCV 2020).
"""

from __future__ import annotations

from collections.abc import Callable

Choice = tuple[int, ...]


def refine(
  choice: Choice,
  num_candidates: int,
  objective: Callable[[Choice], float],
  *,
  passes: int,
) -> tuple[Choice, float]:
  """Lowers the objective by changing one edge at a time.

  >>> refine((0, 0), 3, lambda c: (c[0] - 2) ** 2 + (c[1] - 1) ** 2, passes=2)
  ((2, 1), 0)

  Args:
    choice: Candidate per edge, to start from.
    num_candidates: Of every edge.
    objective: What to lower; called for `choice` and for every change tried.
    passes: Over all edges, at most; it ends when a pass changes nothing.

  Returns:
    The best choice met, and its objective.
  """
  best = objective(choice)
  for _ in range(passes):
    before = choice
    for edge in range(len(choice)):
      for candidate in set(range(num_candidates)) - {choice[edge]}:
        other = (*choice[:edge], candidate, *choice[edge + 1 :])
        value = objective(other)
        if value < best:
          choice, best = other, value
    if choice == before:
      break
  return choice, best
