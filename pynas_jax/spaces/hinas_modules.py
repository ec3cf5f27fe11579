"""What HiNAS is made of: operators, cells, levels, and the whole network.

Images are f[B, H, W, 3] in [0, 1], of any size; feature maps are [B, H, W, C].
Found network and supernet are the same modules: a cell is given as the nodes
that were found, or as the candidates of every edge. Submodules are named after
their place and operator, so a found network inherits by name. What the paper
leaves open:

- Inputs of a level pass a 1x1 convolution and batch norm without activation
  (reference code of the supernet; the operators begin with one).
- The input from two layers before has the same level (Eq. 5), or the nearest
  that layer has; in a found network it is what was found there.
- Concatenation and first convolution of the end part (section 3.2) are one
  convolution per level, summed: the same function, and what a found network
  needs of it has a name of its own.
- Both convolutions of the start part have `stem_width` channels (64 in the
  code).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from pynas_jax import parallel
from pynas_jax.genotype import Edge
from pynas_jax.nn import ops
from pynas_jax.nn import patches
from pynas_jax.nn.gates import Gates
from pynas_jax.spaces import base
from pynas_jax.spaces import hinas_paths

SLOPE = 0.2  # Of the leaky ReLU below 0: reference code.
# PyTorch's own, which the reference code leaves as it is.
KERNEL_INIT = ops.by_shape(
  nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
)
# (kernel size, dilation) of the operators that convolve.
CONVS = {'conv_3x3': (3, 1), 'conv_3x3_dil2': (3, 2), 'conv_5x5_dil2': (5, 2)}
SEPARABLE = {'sep_conv_3x3': 3, 'sep_conv_5x5': 5}

# The found inputs of each node, or the candidates of every edge.
CellSpec = tuple[tuple[Edge, Edge], ...] | tuple[str, ...]


@ops.by_shape
def _depthwise_init(key, shape):
  """As KERNEL_INIT: one input channel a filter, so the fan-in is k * k."""
  bound = 1.0 / shape[0]
  return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def is_open(spec: CellSpec) -> bool:
  """Returns whether a cell is still to be searched."""
  return isinstance(spec[0], str)


def num_edges(nodes: int) -> int:
  """Returns the edges of an open cell: node i has 2 + i inputs.

  >>> num_edges(4)
  14
  """
  return sum(2 + i for i in range(nodes))


class Norm(nn.Module):
  """Batch norm, which learns its statistics when they may be written.

  With the collection of `base.STATISTICS` mutable it normalises by the batch,
  that of all devices, and updates the running statistics; otherwise by these.

  Attributes:
    affine: Whether it has a factor and an offset per channel.
    dtype: Of the arithmetic.
  """

  affine: bool
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    learn = self.is_mutable_collection(base.STATISTICS)
    return nn.BatchNorm(
      use_running_average=not learn or self.is_initializing(),
      momentum=0.9, use_scale=self.affine, use_bias=self.affine,
      axis_name=parallel.AXIS, dtype=self.dtype, name='norm',
    )(x)  # fmt: skip


class Conv(nn.Module):
  """Convolution without bias, before a batch norm.

  Attributes:
    features: Channels out, of all groups.
    kernel_size: In pixels.
    dilation: Distance between kernel taps, in pixels.
    groups: That the channels fall into; one unless the kernel is 1x1.
    dtype: Of the arithmetic.
  """

  features: int
  kernel_size: int = 1
  dilation: int = 1
  groups: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c_in = x.shape[-1] // self.groups
    shape = (self.kernel_size, self.kernel_size, c_in, self.features)
    kernel = self.param('kernel', KERNEL_INIT, shape)
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    if self.groups == 1:
      return ops.conv2d(x, kernel, self.dilation)
    y = jnp.einsum(
      'bhwgc,cgd->bhwgd', x.reshape(*x.shape[:-1], self.groups, c_in),
      kernel.reshape(c_in, self.groups, -1),
    )  # fmt: skip
    return y.reshape(*x.shape[:-1], self.features)


class Link(nn.Module):
  """1x1 convolution to the width of a cell, and batch norm."""

  features: int
  affine: bool
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = Conv(self.features, dtype=self.dtype, name='conv')(x)
    return Norm(self.affine, self.dtype, name='bn')(x)


class Operator(nn.Module):
  """Leaky ReLU, convolution, batch norm; `skip` and `zero` do without.

  Attributes:
    operator: Of `genotype.HINAS_OPERATORS`.
    repeats: Times that a separable convolution is done.
    affine: Of its batch norm.
    dtype: Of the arithmetic.
    places: Edges that it is on, with one input. Each has its own variables,
      side by side in the last axis, as are the outputs.
  """

  operator: str
  repeats: int
  affine: bool
  dtype: jnp.dtype = jnp.float32
  places: int = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Applies the operator.

    Args:
      x: [B, H, W, C].

    Returns:
      [B, H, W, places * C].
    """
    features = self.places * x.shape[-1]
    if self.operator in CONVS:
      size, dilation = CONVS[self.operator]
      x = nn.leaky_relu(x, SLOPE)
      x = Conv(features, size, dilation, dtype=self.dtype, name='conv')(x)
      return Norm(self.affine, self.dtype, name='bn')(x)
    if self.places > 1:
      x = jnp.tile(x, self.places)
    if self.operator == 'skip':
      return x
    if self.operator == 'zero':
      return jnp.zeros_like(x)
    size = SEPARABLE[self.operator]
    for i in range(self.repeats):
      shape = (size, size, features)
      kernel = self.param(f'depthwise{i}', _depthwise_init, shape)
      x = nn.leaky_relu(x, SLOPE)
      x = ops.depthwise_conv2d(x, kernel.astype(x.dtype))
      x = Conv(
        features, groups=self.places, dtype=self.dtype, name=f'pointwise{i}'
      )(x)
      x = Norm(self.affine, self.dtype, name=f'bn{i}')(x)
    return x


class MixedEdges(nn.Module):
  """Weighted sums of all candidates (Eq. 2), on all edges from one state."""

  candidates: Sequence[str]
  repeats: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, weights: jax.Array) -> jax.Array:
    """Applies the edges.

    Args:
      x: [B, H, W, C].
      weights: f[edges, candidates].

    Returns:
      [B, H, W, edges * C].
    """
    factors = jnp.repeat(weights.T.astype(x.dtype), x.shape[-1], axis=1)
    factors = factors[:, None, None, None]
    total = jnp.zeros((*x.shape[:-1], factors.shape[-1]), x.dtype)
    for name, factor in zip(self.candidates, factors, strict=True):
      if name != 'zero':
        # No factor per channel: the alphas say how much of it (code).
        total += factor * Operator(
          name, self.repeats, False, self.dtype, len(weights), name=name
        )(x)
    return total


class FixedEdge(nn.Module):
  """The operator that was found."""

  operator: str
  repeats: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return Operator(
      self.operator, self.repeats, True, self.dtype, name=self.operator
    )(x)


class Cell(nn.Module):
  """Directed acyclic graph of nodes, concatenated (Eqs. 2 and 3)."""

  spec: CellSpec
  nodes: int
  repeats: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    before: jax.Array,
    earlier: jax.Array,
    weights: jax.Array | None = None,
  ) -> jax.Array:
    """Applies the cell.

    Args:
      before: [B, H, W, C], of the layer before.
      earlier: [B, H, W, C], of the layer before that.
      weights: f[edges, candidates] of an open cell.

    Returns:
      [B, H, W, nodes * C].
    """
    if is_open(self.spec):
      mixed = Cell._mixed
      if not self.is_initializing():
        # Variables are made and kept by edge, as found cells inherit them.
        mixed = nn.map_variables(
          mixed, ('params', base.STATISTICS), self._by_source, self._by_edge,
          mutable=True,
        )  # fmt: skip
      return mixed(self, before, earlier, weights)
    states = [before, earlier]
    for i, inputs in enumerate(self.spec):
      terms = [
        FixedEdge(
          operator, self.repeats, self.dtype, name=f'node{i}_from{source}'
        )(states[source])
        for source, operator in inputs
      ]
      states.append(sum(terms))
    return jnp.concatenate(states[2:], axis=-1)

  def _mixed(
    self, before: jax.Array, earlier: jax.Array, weights: jax.Array
  ) -> jax.Array:
    """Source by source: XLA takes many minutes to compile it edge by edge.

    A node is complete when all states before it have been added.
    """
    make = functools.partial(MixedEdges, self.spec, self.repeats, self.dtype)
    features = before.shape[-1]
    states, sums = [before, earlier], 0
    for source in range(self.nodes + 1):
      state, fed = states[source], self._fed_by(source)
      rows = weights[jnp.array([num_edges(i) + source for i in fed])]
      if self.is_initializing():
        terms = [
          make(name=f'node{i}_from{source}')(state, row[None])
          for i, row in zip(fed, rows, strict=True)
        ]
        sums += jnp.concatenate(terms, axis=-1)
      else:
        sums += make(name=f'from{source}')(state, rows)
      if source:
        states.append(sums[..., :features])
        sums = sums[..., features:]
    return jnp.concatenate(states[2:], axis=-1)

  def _fed_by(self, source: int) -> range:
    """The nodes that a state is an input of."""
    return range(max(source - 1, 0), self.nodes)

  def _by_source(self, variables: Any) -> Any:
    """Variables by collection and edge -> by collection and source."""

    def stack(edges, source):
      names = [f'node{i}_from{source}' for i in self._fed_by(source)]
      return jax.tree.map(
        lambda *leaves: jnp.concatenate(leaves, axis=-1),
        *(edges.get(name, {}) for name in names),
      )

    return {
      collection: {
        f'from{source}': stack(edges, source)
        for source in range(self.nodes + 1)
      }
      for collection, edges in variables.items()
    }

  def _by_edge(self, variables: Any) -> Any:
    """The inverse of `_by_source`."""
    result = {}
    for collection, sources in variables.items():
      edges = result[collection] = {}
      for source in range(self.nodes + 1):
        fed = self._fed_by(source)
        leaves, structure = jax.tree.flatten(sources.get(f'from{source}', {}))
        parts = (jnp.split(leaf, len(fed), axis=-1) for leaf in leaves)
        for i, part in zip(fed, zip(*parts, strict=True), strict=False):
          edges[f'node{i}_from{source}'] = structure.unflatten(part)
    return result


class Level(nn.Module):
  """A layer at one width: what leads to it, and its cell.

  Attributes:
    width: Channels of a node.
    spec: Of its cell.
    nodes: Of its cell.
    repeats: Times that a separable convolution is done.
    share_cells: Whether the weighted sum of the inputs passes one cell (Eq. 5)
      or the outputs of a cell for each are summed (Eq. 6).
    dtype: Of the arithmetic.
  """

  width: int
  spec: CellSpec
  nodes: int
  repeats: int
  share_cells: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    before: Mapping[int, jax.Array],
    earlier: Mapping[int, jax.Array],
    betas: Mapping[int, jax.Array],
    weights: jax.Array | None = None,
  ) -> jax.Array:
    """Applies the level.

    Args:
      before: Level of the layer before -> its output [B, H, W, C].
      earlier: A level of the layer before that -> its output; one alone.
      betas: Level of the layer before -> f[], its weight.
      weights: f[edges, candidates] of an open cell.

    Returns:
      [B, H, W, nodes * width].
    """
    affine = not is_open(self.spec)
    link = lambda name: Link(self.width, affine, self.dtype, name=name)  # noqa: E731
    make = lambda name: Cell(  # noqa: E731
      self.spec, self.nodes, self.repeats, self.dtype, name=name
    )
    inputs = {k: link(f'from{k}')(x) for k, x in before.items()}
    [(k, x)] = earlier.items()
    second = link(f'before{k}')(x)
    betas = {k: beta.astype(self.dtype) for k, beta in betas.items()}
    if self.share_cells:
      mixed = sum(betas[k] * x for k, x in inputs.items())
      return make('cell')(mixed, second, weights)
    return sum(
      betas[k] * make(f'cell_from{k}')(x, second, weights)
      for k, x in inputs.items()
    )


class Network(nn.Module):
  """Start, layers and end; supernet or found network.

  Attributes:
    cells: Of each layer; all open, or none.
    levels: Of each layer, the level that was found; None in a supernet, which
      has all.
    widths: Channels of a node at each level.
    nodes: Of a cell.
    stem_width: Channels of the start and the end.
    sep_repeats: Times that a separable convolution is done.
    share_cells: Whether cells follow Eq. 5.
    residual: Whether the output is added to the image.
    scale: Factor of super-resolution.
    zero_init_last: Whether the last convolution starts at zero.
    dtype: Of the arithmetic.
    remat: Whether gradients compute features anew, a level of a layer at a
      time.
  """

  cells: Sequence[CellSpec]
  levels: Sequence[int] | None
  widths: Sequence[int]
  nodes: int
  stem_width: int
  sep_repeats: int = 1
  share_cells: bool = True
  residual: bool = True
  scale: int = 1
  zero_init_last: bool = False
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, image: jax.Array, gates: Gates | None = None) -> jax.Array:
    """Restores images.

    Args:
      image: f[B, H, W, 3] in [0, 1].
      gates: Of a supernet: rows of the edges of the cells, layer by layer (or
        of one cell, if all layers share it), then of the moves between levels.

    Returns:
      f32[B, scale * H, scale * W, 3], not clipped.
    """
    chex.assert_shape(image, (None, None, None, 3))
    affine, dtype = self.levels is not None, self.dtype
    conv = lambda name: Conv(self.stem_width, 3, dtype=dtype, name=name)  # noqa: E731
    norm = lambda name: Norm(affine, dtype, name=name)  # noqa: E731
    x = conv('start1')((image - 0.5).astype(dtype))
    x = nn.leaky_relu(norm('start1_bn')(x), SLOPE)
    # By level: the outputs of the layers l - 2 and l - 1.
    earlier = {0: x}
    before = {0: norm('start2_bn')(conv('start2')(x))}
    weights = betas = None
    if gates is not None:
      weights, betas = self._dense(gates)
    make_level = nn.remat(Level) if self.remat else Level
    for layer in range(1, len(self.cells) + 1):
      current = {}
      for level in self._levels(layer):
        sources, into = self._into(layer, level, before, betas)
        second = min(level, max(earlier)) if gates is not None else max(earlier)
        output = make_level(
          self.widths[level], self.cells[layer - 1], self.nodes,
          self.sep_repeats, self.share_cells, dtype,
          name=f'layer{layer}_level{level}',
        )(
          sources, {second: earlier[second]}, into,
          None if weights is None else weights[layer - 1],
        )  # fmt: skip
        if gates is not None:
          # Nothing comes from where nothing goes.
          reached = sum(into.values()) > 0
          output = jnp.where(reached, output, 0)
        current[level] = output
      earlier, before = before, current
    x = sum(conv(f'end1_from{k}')(h) for k, h in before.items())
    x = nn.leaky_relu(norm('end1_bn')(x), SLOPE)
    zeros = nn.initializers.zeros
    x = ops.Conv(
      3 * self.scale**2, dtype=dtype, name='end2',
      kernel_init=zeros if self.zero_init_last else ops.KERNEL_INIT,
    )(x)  # fmt: skip
    x = patches.depth_to_space(x, factor=self.scale).astype(jnp.float32)
    if self.residual:
      return patches.enlarge(image, factor=self.scale) + x
    return x + 0.5

  def _levels(self, layer: int) -> Sequence[int]:
    if self.levels is not None:
      return (self.levels[layer - 1],)
    return range(hinas_paths.num_levels(layer, len(self.widths)))

  def _dense(
    self, gates: Gates
  ) -> tuple[list[jax.Array], dict[tuple[int, int], jax.Array]]:
    """The weights of each layer's cell, f[edges, candidates], and the betas."""
    layers, edges = len(self.cells), num_edges(self.nodes)
    rows = jnp.arange(len(gates.index))[:, None]
    dense = jnp.zeros((len(rows), len(self.cells[0])), gates.weight.dtype)
    dense = dense.at[rows, gates.index].set(gates.weight)
    moves = hinas_paths.transitions(layers, len(self.widths))
    cells, betas = dense[: -len(moves)], dense[-len(moves) :]
    shared = len(cells) == edges
    weights = [
      cells if shared else cells[i * edges : (i + 1) * edges]
      for i in range(layers)
    ]
    return weights, dict(zip(moves, betas, strict=True))

  def _into(self, layer, level, before, betas):
    """What leads to a level, by level, and its weights."""
    if betas is None:
      return before, {k: jnp.ones(()) for k in before}
    sources, into = {}, {}
    for place, move in enumerate(hinas_paths.MOVES):
      if (k := level - move) in before:
        sources[k], into[k] = before[k], betas[layer - 1, k][place]
    return sources, into
