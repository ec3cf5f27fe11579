"""The PyNAS space: a pyramid of scale networks over nested patch grids.

Images are f[B, H, W, 3] in [0, 1], of any size. What the paper leaves open:

- Patch grids: the chain's prime factors split H and W in turn, H first
  (reference code: DMPHN for 2, 4, 8; ours for 3, 9, 16).
- Any size: reflect-padded at the bottom and right to what every level's grid
  times the encoder's stride divides, and cropped after (ours).
- Links (Eq. 2): level i takes B + I of level i + 1; its encoder features plus
  the merged features of level i + 1 go to its decoder (DMPHN: additive; the
  paper's "concatenated" is the setting `link`).
- Outputs: coarse levels predict residuals (section 2.5). While a coarse level
  is the finest one searched so far, its output is the input plus its residual
  (ours), so that stacking a finer level on top changes no meaning.
- Cell: x + op(x), op followed by ReLU, no batch norm (paper; x + is DMPHN's).
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import re
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from pynas_jax import genotype as genotype_lib
from pynas_jax.genotype import PyramidGenotype
from pynas_jax.nn import blocks
from pynas_jax.nn import gates as gates_lib
from pynas_jax.nn import patches
from pynas_jax.nn.gates import Gates
from pynas_jax.spaces import base

SHARED = 'shared'


class Pyramid(nn.Module):
  """The multi-scale multi-patch network, derived or searchable.

  Attributes:
    scheme: Patches per scale, finest first.
    cells: Per scale, the specs of its cells; None for a fine scale that is not
      built yet.
    widths: Channels per stage of each scale network.
    upsample: Kind of up-sampling.
    link: Kind of feature link.
    global_residual: Whether scale 1 predicts output minus input.
    share_weights: Whether all scales are one network.
    unshuffle: Factor of pixels folded into channels.
    zero_init_last: Whether every decoder starts by predicting zero.
    dtype: Of the arithmetic.
  """

  scheme: Sequence[int]
  cells: Sequence[Sequence[blocks.CellSpec] | None]
  widths: Sequence[int]
  upsample: str = 'pixel_shuffle'
  link: str = 'add'
  global_residual: bool = True
  share_weights: bool = False
  unshuffle: int = 1
  zero_init_last: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, image: jax.Array, gates: Gates | None = None) -> jax.Array:
    """Restores images.

    Args:
      image: f[B, H, W, 3] in [0, 1].
      gates: Of the edges of the searchable scale, if there is one.

    Returns:
      f32[B, H, W, 3], not clipped.
    """
    chex.assert_shape(image, (None, None, None, 3))
    grids = [
      {'rows': rows, 'cols': cols}
      for rows, cols in genotype_lib.grids(tuple(self.scheme))
    ]
    factor = self.unshuffle * 2 ** (len(self.widths) - 1)
    x = patches.pad_to_multiple(
      image, height=factor * grids[-1]['rows'], width=factor * grids[-1]['cols']
    )
    x = patches.space_to_depth(x - 0.5, factor=self.unshuffle)
    x = x.astype(self.dtype)

    network = None
    residual = features = None
    for level in reversed(range(len(self.scheme))):
      if self.cells[level] is None:
        break
      if network is None or not self.share_weights:
        name = SHARED if self.share_weights else f'scale{level + 1}'
        network = blocks.ScaleNetwork(
          self.widths, self.cells[level], self.upsample, self.link, x.shape[-1],
          self.zero_init_last, self.dtype, name=name,
        )  # fmt: skip
      searchable = not all(isinstance(c, str) for c in self.cells[level])
      edges = gates if searchable else None
      grid, out_grid = grids[level], grids[max(level - 1, 0)]
      scale_input = x if residual is None else x + residual
      coarser = features
      features = network.encode(patches.split(scale_input, **grid), edges)
      features = patches.merge(features, **grid)
      if coarser is not None:
        features = network.join(features, coarser)
      residual = network.decode(patches.split(features, **out_grid), edges)
      residual = patches.merge(residual, **out_grid)
      finest = level

    is_residual = finest > 0 or self.global_residual
    output = x + residual if is_residual else residual
    output = patches.depth_to_space(output, factor=self.unshuffle)
    output = output[:, : image.shape[1], : image.shape[2]]
    return output.astype(jnp.float32) + 0.5


@dataclasses.dataclass(frozen=True)
class PyramidDraft:
  """A pyramid whose fine scales may still be open (cells None)."""

  scheme: tuple[int, ...]
  cells: tuple[tuple[str, ...] | None, ...]


@dataclasses.dataclass(frozen=True)
class PyNAS:
  """The PyNAS space; a `base.Space`.

  Attributes:
    widths: Channels per stage.
    cells_per_stage: Cells in each stage.
    operators: Candidates of every cell.
    upsample: Kind of up-sampling.
    link: Kind of feature link.
    global_residual: Whether scale 1 predicts output minus input.
    unshuffle: Factor of pixels folded into channels.
    share: 'none' searches each scale, coarsest first (PyNAS_d); 'cells'
      searches one cell structure for all scales at once (PyNAS_s); 'weights'
      shares the weights too.
  """

  widths: tuple[int, ...]
  cells_per_stage: int
  operators: tuple[str, ...]
  upsample: str = 'pixel_shuffle'
  link: str = 'add'
  global_residual: bool = True
  unshuffle: int = 1
  share: str = 'none'

  @property
  def num_edges(self) -> int:
    """Cells of one scale."""
    return 2 * len(self.widths) * self.cells_per_stage

  def draft(self, scheme: tuple[int, ...]) -> PyramidDraft:
    genotype_lib.check_scheme(scheme)
    return PyramidDraft(scheme, (None,) * len(scheme))

  def stages(self, draft: PyramidDraft) -> tuple[str, ...]:
    if self.share != 'none':
      return (SHARED,)
    depth = len(draft.scheme)
    return tuple(f'scale{level + 1}' for level in reversed(range(depth)))

  def candidates(self, stage: str) -> tuple[str, ...]:
    del stage
    return self.operators

  def init_alphas(
    self, key: jax.Array, draft: PyramidDraft, stage: str
  ) -> jax.Array:
    del draft, stage
    # Standard deviation as in the ProxylessNAS code.
    return 1e-3 * jax.random.normal(key, (self.num_edges, len(self.operators)))

  def _fill(self, draft, stage, cells):
    """The draft's cells with those of a stage set to `cells`."""
    return tuple(
      cells if stage in (SHARED, f'scale{level + 1}') else old
      for level, old in enumerate(draft.cells)
    )

  def _pyramid(self, scheme, cells, **options):
    return Pyramid(
      scheme, cells, self.widths, self.upsample, self.link,
      self.global_residual, self.share == 'weights', self.unshuffle, **options,
    )  # fmt: skip

  def supernet(
    self, draft: PyramidDraft, stage: str, **options: Any
  ) -> Pyramid:
    cells = self._fill(draft, stage, (self.operators,) * self.num_edges)
    return self._pyramid(draft.scheme, cells, **options)

  def sampled(
    self, params: base.Params, stage: str, gates: Gates
  ) -> base.Params:
    half = self.num_edges // 2
    names = {f'scale{i}' for i in range(1, genotype_lib.MAX_DEPTH + 1)}
    names = names | {SHARED} if stage == SHARED else {stage}

    def is_sampled(path, leaf):
      del leaf
      keys = [entry.key for entry in path]
      if keys[0] in names and (cell := re.match(r'cell(\d+)$', keys[2])):
        edge = int(cell[1]) + (half if keys[1] == 'decoder' else 0)
        return (gates.index[edge] == self.operators.index(keys[3])).any()
      return jnp.asarray(True)

    return jax.tree_util.tree_map_with_path(is_sampled, params)

  def derive(
    self, draft: PyramidDraft, stage: str, alphas: jax.Array
  ) -> PyramidDraft:
    index = gates_lib.argmax(alphas).index[:, 0]
    cells = tuple(self.operators[int(i)] for i in index)
    return dataclasses.replace(draft, cells=self._fill(draft, stage, cells))

  def genotype(self, draft: PyramidDraft) -> PyramidGenotype:
    half = self.num_edges // 2
    return PyramidGenotype(
      scales=tuple(
        genotype_lib.ScaleGenotype(p, cells[:half], cells[half:])
        for p, cells in zip(draft.scheme, draft.cells, strict=True)
      ),
      widths=self.widths,
      cells_per_stage=self.cells_per_stage,
      upsample=self.upsample,
      link=self.link,
      global_residual=self.global_residual,
      share_weights=self.share == 'weights',
      unshuffle=self.unshuffle,
    )

  @staticmethod
  def network(genotype: PyramidGenotype, **options: Any) -> Pyramid:
    return Pyramid(
      genotype.scheme, tuple(scale.cells for scale in genotype.scales),
      genotype.widths, genotype.upsample, genotype.link,
      genotype.global_residual, genotype.share_weights, genotype.unshuffle,
      **options,
    )  # fmt: skip

  @staticmethod
  def count(
    genotype: PyramidGenotype, *, height: int, width: int
  ) -> tuple[int, float]:
    u, widths = genotype.unshuffle, genotype.widths
    rows, cols = genotype_lib.grids(genotype.scheme)[-1]
    factor = u * 2 ** (len(widths) - 1)
    pixels = (height + -height % (factor * rows)) * (
      width + -width % (factor * cols)
    ) // (u * u)  # fmt: skip
    params = macs = 0
    for level, scale in enumerate(genotype.scales):
      scale_params, scale_macs = blocks.count_scale(
        widths, scale.cells, genotype.upsample, channels=3 * u * u
      )
      coarsest = level == len(genotype.scales) - 1
      if genotype.link == 'concat' and not coarsest:
        fuse_params = 2 * widths[-1] ** 2 + widths[-1]
        scale_params += fuse_params
        scale_macs += 2 * widths[-1] ** 2 / 4 ** (len(widths) - 1)
      macs += scale_macs * pixels
      # Shared weights count once, at the finest scale, which has every part.
      if level == 0 or not genotype.share_weights:
        params += scale_params
    return params, macs
