"""The HiNAS space: cells as graphs, and their widths.

Memory-Efficient Hierarchical Neural Architecture Search for Image Restoration
(Zhang et al., IJCV 2022). One stage searches operators, topology and widths at
once: a row of alphas is an edge of a cell and its candidates, then come the
betas, a row for each level and its three moves. Rows of betas are shorter; what
is beyond them, and moves out of the space, has an alpha of NEVER. Source:
sections 3.1 and 3.2; `hinas_paths` and `hinas_modules` have the details.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from pynas_jax.genotype import HinasGenotype
from pynas_jax.nn import ops
from pynas_jax.nn.gates import Gates
from pynas_jax.spaces import base
from pynas_jax.spaces import hinas_modules as modules
from pynas_jax.spaces import hinas_paths as paths

STAGE = 'network'
NEVER = -1e9  # An alpha whose probability is 0.


@dataclasses.dataclass(frozen=True)
class HinasDraft:
  """The cells and levels that were found, or None."""

  cells: tuple[Any, ...] | None = None
  levels: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Hinas:
  """The HiNAS space; a `base.Space`.

  Attributes:
    layers: Cells in a row (paper: 3 for denoising, 2 for super-resolution).
    nodes: Of a cell (paper: 4, 3).
    width: Channels of a node at a factor of 1.
    width_factors: Of the levels.
    stem_width: Channels of the start and the end.
    operators: Candidates of every edge.
    per_layer: Whether layers have architectures of their own (LWAS).
    share_cells: Whether cells follow Eq. 5, or Eq. 6.
    sep_repeats: Times that a separable convolution is done.
    residual: Whether the network predicts output minus input.
    scale: Factor of super-resolution; 1 keeps the size.
  """

  layers: int
  nodes: int
  width: int
  width_factors: tuple[float, ...]
  stem_width: int
  operators: tuple[str, ...]
  per_layer: bool = True
  share_cells: bool = True
  sep_repeats: int = 1
  residual: bool = True
  scale: int = 1

  @classmethod
  def from_settings(cls, config: ml_collections.ConfigDict) -> Hinas:
    h = config.hinas
    return cls(
      layers=h.layers,
      nodes=h.nodes,
      width=h.width,
      width_factors=tuple(map(float, h.width_factors)),
      stem_width=h.stem_width,
      operators=tuple(h.candidates),
      per_layer=h.per_layer,
      share_cells=h.share_cells,
      sep_repeats=h.sep_repeats,
      residual=h.residual,
      scale=config.data.scale if config.task == 'super_resolution' else 1,
    )

  @property
  def num_edges(self) -> int:
    """Rows of alphas that are edges."""
    edges = modules.num_edges(self.nodes)
    return edges * (self.layers if self.per_layer else 1)

  def schemes(self) -> tuple[tuple[int, ...], ...]:
    return ((1,),)  # It has no top-level variables.

  def draft(self, scheme: tuple[int, ...]) -> HinasDraft:
    del scheme
    return HinasDraft()

  def stages(self, draft: HinasDraft) -> tuple[str, ...]:
    del draft
    return (STAGE,)

  def init_alphas(
    self, key: jax.Array, draft: HinasDraft, stage: str
  ) -> jax.Array:
    del draft, stage
    allowed = paths.allowed(self.layers, len(self.width_factors))
    shape = (self.num_edges + len(allowed), len(self.operators))
    real = np.ones(shape, bool)
    real[self.num_edges :] = False
    real[self.num_edges :, : len(paths.MOVES)] = allowed
    # The paper does not say; the code begins with all equal.
    return jnp.where(real, 1e-3 * jax.random.normal(key, shape), NEVER)

  def supernet(
    self, draft: HinasDraft, stage: str, **options: Any
  ) -> modules.Network:
    del draft, stage
    widths = tuple(round(self.width * f) for f in self.width_factors)
    return modules.Network(
      (self.operators,) * self.layers, None, widths, self.nodes,
      self.stem_width, self.sep_repeats, self.share_cells, self.residual,
      self.scale, **options,
    )  # fmt: skip

  def sampled(
    self, params: base.Params, stage: str, gates: Gates
  ) -> base.Params:
    del stage
    edges = modules.num_edges(self.nodes)
    offsets = {
      f'node{node}_from{source}': modules.num_edges(node) + source
      for node in range(self.nodes)
      for source in range(2 + node)
    }

    rows = paths.transitions(self.layers, len(self.width_factors))
    levels = [jnp.asarray(0)]  # Of the sampled path, by layer.
    for layer in range(self.layers):
      row = self.num_edges + rows.index((layer, 0)) + levels[-1]
      move = jnp.asarray(paths.MOVES)[gates.index[row, 0]]
      levels.append(levels[-1] + move)

    def is_sampled(path, leaf):
      del leaf
      owner, part, *rest = (e.key for e in path if e.key != base.STATISTICS)
      head, _, level = owner.partition('_')
      if head == 'end1' and level != 'bn':
        return levels[-1] == int(level.removeprefix('from'))
      if not head.startswith('layer'):
        return jnp.asarray(True)
      layer = int(head.removeprefix('layer'))
      sampled = levels[layer] == int(level.removeprefix('level'))
      source = part.removeprefix('cell_')
      if source.startswith('from'):
        sampled &= levels[layer - 1] == int(source.removeprefix('from'))
      if rest[0] in offsets:
        edge = offsets[rest[0]] + (edges * (layer - 1) if self.per_layer else 0)
        sampled &= (gates.index[edge] == self.operators.index(rest[1])).any()
      return sampled

    return jax.tree_util.tree_map_with_path(is_sampled, params)

  def decode(self, alphas: jax.Array) -> Gates:
    """The two likeliest inputs of each node, and the likeliest path."""
    probs = np.asarray(jax.nn.softmax(alphas))
    cells, betas = probs[: self.num_edges], probs[self.num_edges :]
    connected = [i for i, name in enumerate(self.operators) if name != 'zero']
    index = np.argmax(probs, axis=-1)
    index[: self.num_edges] = np.take(
      connected, np.argmax(cells[:, connected], axis=-1)
    )
    weight = np.zeros(len(probs), np.float32)
    strength = cells[:, connected].max(axis=-1)
    row = 0
    while row < self.num_edges:
      for node in range(self.nodes):
        inputs = strength[row : row + 2 + node]
        # Stable: of equal inputs, the first.
        weight[row + np.argsort(-inputs, kind='stable')[:2]] = 1
        row += 2 + node
    rows = paths.transitions(self.layers, len(self.width_factors))
    levels = (0, *paths.viterbi(
      betas[:, : len(paths.MOVES)], layers=self.layers,
      factors=len(self.width_factors),
    ))  # fmt: skip
    for layer, (level, to) in enumerate(zip(levels, levels[1:], strict=False)):
      place = self.num_edges + rows.index((layer, level))
      index[place] = paths.MOVES.index(to - level)
      weight[place] = 1
    return Gates(jnp.asarray(index)[:, None], jnp.asarray(weight)[:, None])

  def derive(
    self, draft: HinasDraft, stage: str, alphas: jax.Array
  ) -> HinasDraft:
    del draft, stage
    gates = self.decode(alphas)
    index, weight = (np.asarray(x)[:, 0] for x in gates)
    row, cells = 0, []
    while row < self.num_edges:
      cell = []
      for node in range(self.nodes):
        cell.append(
          tuple(
            (source, self.operators[index[row + source]])
            for source in range(2 + node)
            if weight[row + source]
          )
        )
        row += 2 + node
      cells.append(tuple(cell))
    if not self.per_layer:
      cells *= self.layers
    moves = [
      paths.MOVES[i]
      for i, kept in zip(
        index[self.num_edges :], weight[self.num_edges :], strict=True
      )
      if kept
    ]
    return HinasDraft(tuple(cells), tuple(np.cumsum(moves).tolist()))

  def chosen(self, draft: HinasDraft, stage: str) -> tuple[str, ...]:
    del stage
    return self.genotype(draft).operators

  def genotype(self, draft: HinasDraft) -> HinasGenotype:
    return HinasGenotype(
      cells=draft.cells,
      levels=draft.levels,
      width=self.width,
      width_factors=self.width_factors,
      stem_width=self.stem_width,
      sep_repeats=self.sep_repeats,
      share_cells=self.share_cells,
      residual=self.residual,
      scale=self.scale,
    )

  @staticmethod
  def network(genotype: HinasGenotype, **options: Any) -> modules.Network:
    g = genotype
    widths = tuple(round(g.width * f) for f in g.width_factors)
    return modules.Network(
      g.cells, g.levels, widths, len(g.cells[0]), g.stem_width, g.sep_repeats,
      g.share_cells, g.residual, g.scale, **options,
    )  # fmt: skip

  @staticmethod
  def multiple(genotype: HinasGenotype) -> tuple[int, int]:
    del genotype
    return 1, 1

  @staticmethod
  def reach(genotype: HinasGenotype) -> int:
    def operator(name):
      if name in modules.CONVS:
        size, dilation = modules.CONVS[name]
        return dilation * (size // 2)
      size = modules.SEPARABLE.get(name, 1)
      return genotype.sep_repeats * (size // 2)

    earlier, before = 1, 2  # Two convolutions of 3x3.
    for cell in genotype.cells:
      states = [before, earlier]
      for node in cell:
        states.append(max(states[k] + operator(name) for k, name in node))
      earlier, before = before, max(states[2:])
    return before + 2  # Likewise; bicubic enlarging reaches no further.

  @staticmethod
  def values(genotype: HinasGenotype) -> int:
    nodes = len(genotype.cells[0]) * max(genotype.widths)
    # Start and end, a cell's output, and what is added to the enlarged image.
    return 2 * max(genotype.stem_width, nodes, 3 * genotype.scale**2)

  @staticmethod
  def count(
    genotype: HinasGenotype, *, height: int, width: int
  ) -> tuple[int, int]:
    stem, nodes = genotype.stem_width, len(genotype.cells[0])

    def conv(size, c_in, c_out):  # With the two numbers of a batch norm.
      macs = size * size * c_in * c_out
      return macs + 2 * c_out, macs

    def operator(name, c):
      if name in modules.CONVS:
        return conv(modules.CONVS[name][0], c, c)
      if name not in modules.SEPARABLE:
        return 0, 0
      depthwise, pointwise = modules.SEPARABLE[name] ** 2 * c, conv(1, c, c)
      repeats = genotype.sep_repeats
      return tuple(repeats * (depthwise + n) for n in pointwise)

    counts = [conv(3, 3, stem), conv(3, stem, stem)]
    earlier = before = stem
    for cell, c in zip(genotype.cells, genotype.widths, strict=True):
      counts += [conv(1, before, c), conv(1, earlier, c)]
      counts += [operator(name, c) for node in cell for _, name in node]
      earlier, before = before, nodes * c
    counts.append(conv(3, before, stem))
    counts.append(ops.count_conv(3, stem, 3 * genotype.scale**2))
    params, macs = map(sum, zip(*counts, strict=True))
    return params, macs * height * width
