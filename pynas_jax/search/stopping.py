"""When to stop searching a stage (PyNAS section 2.4: early stop, collapse)."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Stopping:
  """Scores of the derived network so far.

  Attributes:
    patience: Scores without improvement before stopping.
    collapse_fraction: Stop when more of the cells than this are `zero`.
    best: Best score so far, in dB; None before the first.
    waited: Scores since the best.
    reason: Why to stop; '' is to go on.
  """

  patience: int
  collapse_fraction: float
  best: float | None = None
  waited: int = 0
  reason: str = ''

  def is_collapsed(self, cells: tuple[str, ...]) -> bool:
    """Returns whether too many of the operators are `zero`."""
    return cells.count('zero') > self.collapse_fraction * len(cells)

  def update(self, score: float, cells: tuple[str, ...]) -> Stopping:
    """Returns the state after one more score.

    A collapsed network never counts as the best.

    Args:
      score: Validation PSNR of the derived network, in dB.
      cells: Its operators in the searched stage.

    >>> stopping = Stopping(patience=1, collapse_fraction=0.5)
    >>> stopping = stopping.update(30.0, ('conv_3x3',))
    >>> stopping.best, stopping.reason
    (30.0, '')
    >>> stopping.update(29.0, ('conv_3x3',)).reason
    'no better score in 1 scores'
    >>> stopping.update(31.0, ('zero', 'zero', 'conv_3x3')).reason
    'collapse: 2 of 3 cells are zero'
    """
    if self.is_collapsed(cells):
      zeros = cells.count('zero')
      reason = f'collapse: {zeros} of {len(cells)} cells are zero'
      return dataclasses.replace(self, reason=reason)
    if self.best is None or score > self.best:
      return dataclasses.replace(self, best=score, waited=0)
    waited = self.waited + 1
    stop = waited >= self.patience
    reason = f'no better score in {waited} scores' if stop else ''
    return dataclasses.replace(self, waited=waited, reason=reason)
