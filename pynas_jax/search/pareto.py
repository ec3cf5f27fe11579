"""The trials that no other beats in both score and time, and one of them.

A trial is a record with `psnr` in dB and `latency_ms`. None of the papers has
this for deblurring; it is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Trial = dict[str, Any]


def front(trials: Sequence[Trial]) -> list[Trial]:
  """Returns the trials that no other beats in both, the fastest first.

  >>> points = [(30, 9), (31, 5), (32, 8), (31, 6)]
  >>> [t['psnr'] for t in front(
  ...   [{'psnr': p, 'latency_ms': ms} for p, ms in points])]
  [31, 32]
  """
  ordered = sorted(trials, key=lambda t: (t['latency_ms'], -t['psnr']))
  found: list[Trial] = []
  for trial in ordered:
    if not found or trial['psnr'] > found[-1]['psnr']:
      found.append(trial)
  return found


def choose(trials: Sequence[Trial], objective: str, *, slack: float) -> Trial:
  """Returns the trial that an objective prefers.

  Args:
    trials: At least one.
    objective: 'psnr' is the best score; 'fastest' the fastest within `slack` of
      the best score; 'knee' the point of the front farthest above the line
      between its ends, where a better score begins to cost much.
    slack: In dB.
  """
  best = max(trials, key=lambda t: t['psnr'])
  if objective == 'psnr':
    return best
  edge = front(trials)
  if objective == 'fastest':
    return next(t for t in edge if t['psnr'] >= best['psnr'] - slack)
  points = np.array([[t['latency_ms'], t['psnr']] for t in edge])
  span = np.ptp(points, axis=0)
  if len(edge) < 3:
    return best
  share = (points - points[0]) / span
  return edge[int(np.argmax(share[:, 1] - share[:, 0]))]
