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
import itertools
import re
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from pynas_jax import genotype as genotype_lib
from pynas_jax.genotype import PyramidGenotype
from pynas_jax.nn import blocks
from pynas_jax.nn import gates as gates_lib
from pynas_jax.nn import layers as layers_lib
from pynas_jax.nn import patches
from pynas_jax.nn.gates import Gates
from pynas_jax.nn.layers import Layer
from pynas_jax.spaces import base

SHARED, ALL = 'shared', 'all'  # Stages that search every scale at once.


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
    remat: Whether gradients compute features anew, half a scale at a time.
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
  remat: bool = False

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
      edges = self._edges(gates, level) if searchable else None
      grid, out_grid = grids[level], grids[max(level - 1, 0)]
      scale_input = x if residual is None else x + residual
      coarser = features
      encode, decode = type(network).encode, type(network).decode
      if self.remat:
        encode = nn.remat(encode)
        # Gradients begin with what the last decoder has just computed.
        is_last = level == 0 or self.cells[level - 1] is None
        decode = decode if is_last else nn.remat(decode)
      features = encode(network, patches.split(scale_input, **grid), edges)
      features = patches.merge(features, **grid)
      if coarser is not None:
        features = network.join(features, coarser)
      residual = decode(network, patches.split(features, **out_grid), edges)
      residual = patches.merge(residual, **out_grid)
      finest = level

    is_residual = finest > 0 or self.global_residual
    output = x + residual if is_residual else residual
    output = patches.depth_to_space(output, factor=self.unshuffle)
    output = output[:, : image.shape[1], : image.shape[2]]
    return output.astype(jnp.float32) + 0.5

  def _edges(self, gates: Gates, level: int) -> Gates:
    """The gates of one scale: its own part, or all if scales share them."""
    count = len(self.cells[level])
    if len(gates.index) == count:
      return gates
    own = slice(level * count, (level + 1) * count)
    return Gates(gates.index[own], gates.weight[own])


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
    joint: Whether 'none' searches all scales at once instead; to compare.
  """

  widths: tuple[int, ...]
  cells_per_stage: int
  operators: tuple[str, ...]
  upsample: str = 'pixel_shuffle'
  link: str = 'add'
  global_residual: bool = True
  unshuffle: int = 1
  share: str = 'none'
  joint: bool = False

  @classmethod
  def from_settings(cls, config: ml_collections.ConfigDict) -> PyNAS:
    m = config.model
    return cls(
      widths=tuple(m.widths),
      cells_per_stage=m.cells_per_stage,
      operators=tuple(m.candidates),
      upsample=m.upsample,
      link=m.link,
      global_residual=m.global_residual,
      unshuffle=m.unshuffle,
      share=m.share,
      joint=m.joint,
    )

  @property
  def num_edges(self) -> int:
    """Cells of one scale."""
    return 2 * len(self.widths) * self.cells_per_stage

  def schemes(self) -> tuple[tuple[int, ...], ...]:
    return genotype_lib.all_schemes()

  def draft(self, scheme: tuple[int, ...]) -> PyramidDraft:
    genotype_lib.check_scheme(scheme)
    return PyramidDraft(scheme, (None,) * len(scheme))

  def stages(self, draft: PyramidDraft) -> tuple[str, ...]:
    if self.share != 'none':
      return (SHARED,)
    if self.joint:
      return (ALL,)
    depth = len(draft.scheme)
    return tuple(f'scale{level + 1}' for level in reversed(range(depth)))

  def init_alphas(
    self, key: jax.Array, draft: PyramidDraft, stage: str
  ) -> jax.Array:
    edges = self.num_edges * (len(draft.scheme) if stage == ALL else 1)
    # Standard deviation as in the ProxylessNAS code.
    return 1e-3 * jax.random.normal(key, (edges, len(self.operators)))

  def _fill(self, draft, stage, cells):
    """The draft's cells with those of a stage set; `cells` are by level."""
    return tuple(
      cells[level] if _is_in(stage, level) else old
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
    open_cells = (self.operators,) * self.num_edges
    cells = self._fill(draft, stage, (open_cells,) * len(draft.scheme))
    return self._pyramid(draft.scheme, cells, **options)

  def sampled(
    self, params: base.Params, stage: str, gates: Gates
  ) -> base.Params:
    half = self.num_edges // 2
    levels = {f'scale{i + 1}': i for i in range(genotype_lib.MAX_DEPTH)}
    levels = {k: v for k, v in levels.items() if _is_in(stage, v)}
    if stage == SHARED:
      levels[SHARED] = 0

    def is_sampled(path, leaf):
      del leaf
      keys = [entry.key for entry in path]
      if keys[0] in levels and (cell := re.match(r'cell(\d+)$', keys[2])):
        edge = int(cell[1]) + (half if keys[1] == 'decoder' else 0)
        if stage == ALL:
          edge += levels[keys[0]] * self.num_edges
        return (gates.index[edge] == self.operators.index(keys[3])).any()
      return jnp.asarray(True)

    return jax.tree_util.tree_map_with_path(is_sampled, params)

  def decode(self, alphas: jax.Array) -> Gates:
    return gates_lib.argmax(alphas)

  def derive(
    self, draft: PyramidDraft, stage: str, alphas: jax.Array
  ) -> PyramidDraft:
    index = gates_lib.argmax(alphas).index[:, 0]
    cells = tuple(self.operators[int(i)] for i in index)
    size = self.num_edges
    by_level = [
      cells[level * size : (level + 1) * size] if stage == ALL else cells
      for level in range(len(draft.scheme))
    ]
    return dataclasses.replace(draft, cells=self._fill(draft, stage, by_level))

  def chosen(self, draft: PyramidDraft, stage: str) -> tuple[str, ...]:
    levels = [i for i in range(len(draft.scheme)) if _is_in(stage, i)]
    return sum((draft.cells[i] for i in levels), ())

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
  def multiple(genotype: PyramidGenotype) -> tuple[int, int]:
    rows, cols = genotype_lib.grids(genotype.scheme)[-1]
    factor = genotype.unshuffle * 2 ** (len(genotype.widths) - 1)
    return factor * rows, factor * cols

  @classmethod
  def layers(
    cls, genotype: PyramidGenotype, *, height: int, width: int
  ) -> list[list[Layer]]:
    u, widths = genotype.unshuffle, genotype.widths
    grids = genotype_lib.grids(genotype.scheme)
    rows, cols = cls.multiple(genotype)
    height = (height + -height % rows) // u
    width = (width + -width % cols) // u
    shrink = 2 ** (len(widths) - 1)
    groups = []
    for level, scale in enumerate(genotype.scales):
      # Patches are those of this scale going in, of the finer one coming out.
      rows, cols = grids[level]
      out_rows, out_cols = grids[max(level - 1, 0)]
      layers = layers_lib.encoder_layers(
        widths, scale.encoder, channels=3 * u * u, batch=rows * cols,
        height=height // rows, width=width // cols,
      )  # fmt: skip
      if genotype.link == 'concat' and level < len(grids) - 1:
        features = (height // shrink, width // shrink, widths[-1], widths[-1])
        layers.append(Layer('fuse', '', 1, *features))
      layers += layers_lib.decoder_layers(
        widths, scale.decoder, genotype.upsample, channels=3 * u * u,
        batch=out_rows * out_cols, height=height // out_rows,
        width=width // out_cols,
      )  # fmt: skip
      groups.append(layers)
    return groups

  @classmethod
  def count(
    cls, genotype: PyramidGenotype, *, height: int, width: int
  ) -> tuple[int, int]:
    groups = cls.layers(genotype, height=height, width=width)
    counts = [[layer.count() for layer in layers] for layers in groups]
    # Shared weights count once, at the finest scale, which has every part.
    own = counts[:1] if genotype.share_weights else counts
    params = sum(c[0] for layers in own for c in layers)
    return params, sum(c[1] for layers in counts for c in layers)

  @staticmethod
  def filled(genotype: PyramidGenotype, operator: str) -> PyramidGenotype:
    cells = [(operator,) * len(scale.cells) for scale in genotype.scales]
    return _with_cells(genotype, cells)

  def neighbours(self, genotype: PyramidGenotype) -> list[PyramidGenotype]:
    levels = range(len(genotype.scales))
    # Scales that share their cells change together.
    groups = [[i] for i in levels] if self.share == 'none' else [levels]
    old = [scale.cells for scale in genotype.scales]
    edges = range(len(old[0]))
    found = []
    for group, edge, operator in itertools.product(
      groups, edges, self.operators
    ):
      if operator == old[group[0]][edge]:
        continue
      cells = list(old)
      for level in group:
        cells[level] = (*old[level][:edge], operator, *old[level][edge + 1 :])
      found.append(_with_cells(genotype, cells))
    return found

  def edge_layers(
    self, draft: PyramidDraft, stage: str, *, height: int, width: int
  ) -> tuple[list[list[list[Layer]]], list[Layer]]:
    levels = [i for i in range(len(draft.scheme)) if _is_in(stage, i)]
    count = self.num_edges * (len(levels) if stage == ALL else 1)
    edges: list[list[list[Layer]]] = [[] for _ in range(count)]
    fixed: list[Layer] = []
    for operator in self.operators:
      cells = ((operator,) * self.num_edges,) * len(draft.scheme)
      genotype = self.genotype(dataclasses.replace(draft, cells=cells))
      groups = self.layers(genotype, height=height, width=width)
      own = [groups[level] for level in levels]
      fixed = [x for layers in own for x in layers if x.kind != 'cell']
      in_cells = [[x for x in layers if x.kind == 'cell'] for layers in own]
      # Where scales share their cells, a choice fills one place in each.
      choices = zip(*in_cells, strict=True)
      if stage == ALL:
        choices = [(x,) for layers in in_cells for x in layers]
      for edge, choice in zip(edges, choices, strict=True):
        edge.append(list(choice))
    return edges, fixed


def _with_cells(
  genotype: PyramidGenotype, cells: Sequence[tuple[str, ...]]
) -> PyramidGenotype:
  """Returns a network with other operators, by scale."""
  half = len(cells[0]) // 2
  scales = tuple(
    dataclasses.replace(scale, encoder=own[:half], decoder=own[half:])
    for scale, own in zip(genotype.scales, cells, strict=True)
  )
  return dataclasses.replace(genotype, scales=scales)


def _is_in(stage: str, level: int) -> bool:
  """Returns whether a stage searches a level."""
  return stage in (SHARED, ALL, f'scale{level + 1}')
