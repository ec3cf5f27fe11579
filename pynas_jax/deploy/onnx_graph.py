"""A network as an ONNX graph that runtimes run fast, at any size.

The graph is made from the network's jaxpr, so there is one definition of every
network. A general converter writes what JAX does: transposes around each
convolution, depthwise convolutions as shifted multiply-adds, pixel shuffles as
transposes of six axes, and shapes that it must compute where sizes are open.
This one knows what our networks are made of. It keeps feature maps as
[B, C, H, W], and patches are cut by Split and joined by Concat, so that no
operation holds a size. Pixels of an image are folded into channels, and out of
them, while they are bytes. What `nn.quantization` rounds becomes
QuantizeLinear and DequantizeLinear, for convolutions in 8 bits.

Every value that is not a constant has four axes; those that JAX sums away stay,
of size 1. Input and output are [B, H, W, 3] as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
from jax import export
from jax.extend import core
import numpy as np
import onnx
from onnx import helper
from onnx import numpy_helper

from pynas_jax.nn import quantization

OPSET = 18
INPUT, OUTPUT = 'image', 'restored'
DIMENSIONS = ('batch', 'height', 'width')
_AXES = {0: 0, 1: 2, 2: 3, 3: 1}  # Of [B, H, W, C] in [B, C, H, W].
_BINARY = {
  'add': 'Add', 'sub': 'Sub', 'mul': 'Mul', 'div': 'Div', 'max': 'Max',
  'min': 'Min',
}  # fmt: skip
_POINTWISE = {*_BINARY.values(), 'Cast', 'Relu', 'Round'}
_CUT = (0, 1, 3, 2, 4, 5)  # How pixels or patches change places.


class ConversionError(ValueError):
  """A network that has no ONNX graph; the message names the operation."""


@dataclasses.dataclass(frozen=True)
class _Cut:
  """A value on its way through reshape, transpose, reshape."""

  name: str
  before: tuple[Any, ...]
  middle: tuple[Any, ...]


# The name of a tensor of the graph, or a constant as JAX has it.
_Value = str | np.ndarray | _Cut


def to_onnx(
  restore: Callable[[Any, jax.Array], jax.Array],
  params: Any,
  *,
  multiple: tuple[int, int],
  dtype: Any,
  size: tuple[int, int] | None = None,
) -> onnx.ModelProto:
  """Converts `(params, image) -> image`.

  Args:
    restore: The function, of `backends.make_restore`, in float32.
    params: Parameters; they become constants.
    multiple: What height and width of the image must be multiples of, if they
      are open.
    dtype: Of images, uint8 or float32.
    size: Height and width of one image in pixels, any; by default, they and
      the size of the batch are open.

  Returns:
    The graph, from `image` to `restored`, [batch, height, width, 3].

  Raises:
    ConversionError: If the network holds an unknown operation.
  """
  if size is None:
    rows, cols = multiple
    shape = export.symbolic_shape(f'b, {rows}*h, {cols}*w, 3')
  else:
    shape = (1, *size, 3)
  image = jax.ShapeDtypeStruct(shape, dtype)
  closed = jax.make_jaxpr(restore)(params, image)
  graph = _Graph(shape)
  leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
  first = graph.add('Transpose', INPUT, perm=(0, 3, 1, 2))
  (last,) = graph.walk(closed.jaxpr, closed.consts, [*leaves, first])
  graph.nodes.append(
    helper.make_node('Transpose', [last], [OUTPUT], perm=(0, 2, 3, 1))
  )
  kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
  restored = closed.out_avals[0].shape
  if size:
    dimensions = (shape[:3], restored[:3])
  elif restored == shape:
    dimensions = (DIMENSIONS, DIMENSIONS)
  else:  # It enlarges.
    dimensions = (DIMENSIONS, (DIMENSIONS[0], 'new_height', 'new_width'))
  infos = [
    helper.make_tensor_value_info(name, kind, [*own, 3])
    for name, own in zip((INPUT, OUTPUT), dimensions, strict=True)
  ]
  nodes, weights = graph.used()
  model = helper.make_model(
    helper.make_graph(nodes, 'pynas_jax', infos[:1], infos[1:], weights),
    opset_imports=[helper.make_opsetid('', OPSET)],
    producer_name='pynas_jax',
    ir_version=10,
  )
  onnx.checker.check_model(model)
  return model


class _Graph:
  """Nodes and constants, as they are made."""

  def __init__(self, shape: Sequence[Any]):
    self.nodes: list[onnx.NodeProto] = []
    self.weights: list[onnx.TensorProto] = []
    self._pixels = shape[1] * shape[2]
    self._scalars: set[str] = set()
    self._makers: dict[str, onnx.NodeProto] = {}
    self._folds: dict[tuple[str, int], str] = {}

  def add(self, op: str, *inputs: str, outputs: int = 1, **options: Any) -> Any:
    """Adds a node; returns the name of its output, or the list of them."""
    names = [f'v{len(self.nodes)}_{i}' for i in range(outputs)]
    node = helper.make_node(op, inputs, names, **options)
    self.nodes.append(node)
    self._makers |= dict.fromkeys(names, node)
    return names[0] if outputs == 1 else names

  def used(self) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Returns the nodes and constants that `OUTPUT` depends on."""
    used, nodes = {OUTPUT}, []
    for node in reversed(self.nodes):
      if used.intersection(node.output):
        used.update(node.input)
        nodes.append(node)
    return nodes[::-1], [w for w in self.weights if w.name in used]

  def add_pointwise(self, op: str, *inputs: str, **options: Any) -> str:
    """Adds a node that acts on each value alone.

    It goes before a DepthToSpace, as that moves bytes faster than floats.
    """
    sizes = {self._unfolds_by(name) for name in inputs} - {0}
    if len(sizes) == 1 and all(self._folds_well(x, *sizes) for x in inputs):
      (size,) = sizes
      folded = [self._fold(name, size) for name in inputs]
      x = self.add(op, *folded, **options)
      return self.add('DepthToSpace', x, blocksize=size, mode='DCR')
    return self.add(op, *inputs, **options)

  def _unfolds_by(self, name: str) -> int:
    """Returns the size of the block that DepthToSpace made of pixels, or 0."""
    node = self._makers.get(name)
    if node is None or node.op_type != 'DepthToSpace':
      return 0
    return next(a.i for a in node.attribute if a.name == 'blocksize')

  def _folds_well(self, name: str, size: int) -> bool:
    """Returns whether all of it is made of images and of what was folded."""
    if name in self._scalars or self._unfolds_by(name) == size:
      return True
    node = self._makers.get(name)
    if node is None:
      return False
    is_image = node.op_type == 'Transpose'
    return is_image or (
      node.op_type in _POINTWISE
      and all(self._folds_well(x, size) for x in node.input)
    )

  def _fold(self, name: str, size: int) -> str:
    """Returns SpaceToDepth of a value, done as early as it can be."""
    if name in self._scalars:
      return name
    if self._unfolds_by(name) == size:
      return self._makers[name].input[0]
    if (name, size) not in self._folds:
      node = self._makers[name]
      if node.op_type in _POINTWISE and self._folds_well(name, size):
        options = {a.name: helper.get_attribute_value(a)
                   for a in node.attribute}  # fmt: skip
        folded = [self._fold(x, size) for x in node.input]
        made = self.add(node.op_type, *folded, **options)
      else:
        made = self.add('SpaceToDepth', name, blocksize=size)
      self._folds[name, size] = made
    return self._folds[name, size]

  def constant(self, array: Any, dtype: Any = None) -> str:
    """Adds a constant as it is; returns its name."""
    name = f'w{len(self.weights)}'
    array = np.asarray(array, dtype, order='C')
    self.weights.append(numpy_helper.from_array(array, name))
    if array.ndim == 0:
      self._scalars.add(name)
    return name

  def operand(self, value: _Value) -> str:
    """Returns the name of a value that takes part in arithmetic."""
    if isinstance(value, str):
      return value
    if value.ndim == 4:
      value = value.transpose(0, 3, 1, 2)
    elif value.ndim:
      raise ConversionError(f'A constant has shape {value.shape}.')
    return self.constant(value)

  def walk(
    self, jaxpr: Any, consts: Sequence[Any], args: Sequence[_Value]
  ) -> list[_Value]:
    """Adds the operations of a jaxpr; returns its results."""
    values: dict[Any, _Value] = dict(zip(jaxpr.invars, args, strict=True))
    values |= zip(jaxpr.constvars, map(np.asarray, consts), strict=True)

    def read(var):
      is_literal = isinstance(var, core.Literal)
      return np.asarray(var.val) if is_literal else values[var]

    for eqn in jaxpr.eqns:
      results = self._operation(eqn, [read(var) for var in eqn.invars])
      values |= zip(eqn.outvars, results, strict=True)
    return [read(var) for var in jaxpr.outvars]

  def _operation(self, eqn: Any, args: list[_Value]) -> list[_Value]:
    name, params = eqn.primitive.name, eqn.params
    inner = params.get('call_jaxpr', params.get('jaxpr'))
    if inner is not None:
      if params.get('name') == 'round_input':
        return [self._round_input(*args)]
      if params.get('name') == 'round_kernel':
        return [np.asarray(quantization.round_kernel(*args))]
      if params.get('name') == 'leaky_relu':  # nn.leaky_relu.
        return [self.add('LeakyRelu', args[0], alpha=float(args[1]))]
      if len(args) == 2 and np.ndim(args[1]) == 3:  # ops.depthwise_conv2d.
        kernel = args[1][:, :, None]
        pads = [kernel.shape[0] // 2] * 4
        return [self._conv(args[0], kernel, kernel.shape[-1], pads=pads)]
      if len(args) == 2 and np.ndim(args[1]) == 4:  # ops.conv2d.
        # Without the channel that it may add for XLA's sake.
        conv = next(
          eqn for eqn in inner.eqns
          if eqn.primitive.name == 'conv_general_dilated'
        )  # fmt: skip
        return [self._conv_general_dilated(conv, *args)]
      return self.walk(inner.jaxpr, inner.consts, args)
    if name == 'broadcast_in_dim' and (
      isinstance(args[0], str)
      or (args[0].ndim == 0 and eqn.outvars[0].aval.ndim == 4)
    ):  # Broadcast where it takes part in arithmetic.
      return [args[0]]
    if args and all(isinstance(arg, np.ndarray) for arg in args):
      results = eqn.primitive.bind(*args, **params)
      results = results if eqn.primitive.multiple_results else [results]
      return [np.asarray(result) for result in results]
    if name in _BINARY:
      is_relu = name == 'max' and any(
        isinstance(arg, np.ndarray) and not arg.any() for arg in args
      )
      if is_relu:
        names = [arg for arg in args if isinstance(arg, str)]
        return [self.add_pointwise('Relu', *names)]
      return [self.add_pointwise(_BINARY[name], *map(self.operand, args))]
    method = getattr(self, f'_{name}', None)
    if method is None:
      raise ConversionError(
        f'The operation {name!r} has no ONNX graph here; export to stablehlo '
        "or use backend 'xla'."
      )
    results = method(eqn, *args)
    return results if isinstance(results, list) else [results]

  def _conv(self, x: str, kernel: np.ndarray, group: int = 1, **options):
    maker = self._makers.get(x)
    if maker is not None and maker.op_type == 'DequantizeLinear':
      scale = np.asarray(
        quantization.kernel_scale(kernel, quantization.kernel_levels())
      )
      rounded = np.rint(kernel / scale).transpose(3, 2, 0, 1)
      weights = self.add(
        'DequantizeLinear', self.constant(rounded, np.int8),
        self.constant(scale.reshape(-1)), axis=0,
      )  # fmt: skip
    else:
      weights = self.constant(kernel.transpose(3, 2, 0, 1))
    return self.add('Conv', x, weights, group=group, **options)

  def _round_input(self, x: str, scale: np.ndarray, zero: np.ndarray) -> str:
    grid = self.constant(scale, np.float32), self.constant(zero, np.uint8)
    return self.add(
      'DequantizeLinear', self.add('QuantizeLinear', x, *grid), *grid
    )

  def _conv_general_dilated(self, eqn, x, kernel):
    p = eqn.params
    (top, bottom), (left, right) = p['padding']
    pads, stride = np.array([top, left, bottom, right]), p['lhs_dilation']
    if stride == (1, 1):
      return self._conv(
        x, kernel, p['feature_group_count'], pads=pads.tolist(),
        strides=p['window_strides'], dilations=p['rhs_dilation'],
      )  # fmt: skip
    # A transposed convolution is the gradient of one, hence flipped.
    weights = self.constant(kernel[::-1, ::-1].transpose(2, 3, 0, 1))
    pads = np.array([*kernel.shape[:2]] * 2) - 1 - pads
    return self.add(
      'ConvTranspose', x, weights, pads=pads.tolist(), strides=stride
    )

  def _reshape(self, eqn, x):
    after = tuple(eqn.outvars[0].aval.shape)
    if isinstance(x, str):
      return _Cut(x, tuple(eqn.invars[0].aval.shape), after)
    x, before, middle = x.name, x.before, x.middle
    if before == after:
      return x
    if middle[0] != before[0]:  # patches.merge
      rows, cols = middle[1:3]
      parts = self.add('Split', x, axis=0, num_outputs=rows * cols,
                       outputs=rows * cols)  # fmt: skip
      lines = [
        self._join(parts[i : i + cols], 3) for i in range(0, len(parts), cols)
      ]
      return self._join(lines, 2)
    if before[3] == after[3]:  # patches.split
      lines = self._split_evenly(x, 2, middle[1])
      return self._join(
        [part for x in lines for part in self._split_evenly(x, 3, middle[3])], 0
      )
    if before[3] < after[3]:
      return self._fold(x, middle[2])
    return self.add('DepthToSpace', x, blocksize=middle[3], mode='DCR')

  def _split_evenly(self, x: str, axis: int, count: int) -> list[str]:
    if count == 1:
      return [x]
    return self.add('Split', x, axis=axis, num_outputs=count, outputs=count)

  def _join(self, parts: list[str], axis: int) -> str:
    return self.add('Concat', *parts, axis=axis) if len(parts) > 1 else parts[0]

  def _transpose(self, eqn, x):
    if not isinstance(x, _Cut) or tuple(eqn.params['permutation']) != _CUT:
      raise ConversionError('A transpose is not part of a cut into patches.')
    return x

  def _concatenate(self, eqn, *xs):
    return self._join(list(xs), _AXES[eqn.params['dimension']])

  def _split(self, eqn, x):
    sizes = self.constant(eqn.params['sizes'], np.int64)
    axis = _AXES[eqn.params['axis']]
    return self.add('Split', x, sizes, axis=axis, outputs=len(eqn.outvars))

  def _slice(self, eqn, x):
    shape = eqn.invars[0].aval.shape
    starts, ends = (
      [
        # From the end, where sizes are open.
        place if isinstance(place, int)
        else int(place - size) or np.iinfo(np.int64).max
        for place, size in zip(eqn.params[name], shape, strict=True)
      ]
      for name in ('start_indices', 'limit_indices')
    )  # fmt: skip
    # Height and width; the batch is open and channels are split, not sliced.
    parts = [self.constant(part, np.int64)
             for part in (starts[1:3], ends[1:3], (2, 3))]  # fmt: skip
    return self.add('Slice', x, *parts)

  def _rev(self, eqn, x):
    axes = [_AXES[axis] for axis in eqn.params['dimensions']]
    first, last = [-1] * len(axes), [np.iinfo(np.int64).min] * len(axes)
    parts = [self.constant(part, np.int64)
             for part in (first, last, axes, first)]  # fmt: skip
    return self.add('Slice', x, *parts)

  def _reduce_sum(self, eqn, x):
    axes = [_AXES[axis] for axis in eqn.params['axes']]
    return self.add('ReduceSum', x, self.constant(axes, np.int64), keepdims=1)

  def _convert_element_type(self, eqn, x):
    new = eqn.params['new_dtype']
    if eqn.invars[0].aval.dtype == new:
      return x
    return self.add_pointwise(
      'Cast', x, to=helper.np_dtype_to_tensor_dtype(new)
    )

  def _dim_as_value(self, eqn):
    """A number of pixels, for a mean: some part of those of the image."""
    share = self._pixels // eqn.params['dim']
    if not isinstance(share, int):
      raise ConversionError(f'The size {eqn.params["dim"]} is not of pixels.')
    size = self.add('Shape', INPUT, start=1, end=3)
    count = self.add('Cast', self.add('ReduceProd', size, keepdims=0),
                     to=onnx.TensorProto.FLOAT)  # fmt: skip
    return self.add('Div', count, self.constant(share, np.float32))

  def _square(self, eqn, x):
    return self.add('Mul', x, x)

  def _rsqrt(self, eqn, x):
    return self.add('Reciprocal', self.add('Sqrt', x))

  def _round(self, eqn, x):
    return self.add_pointwise('Round', x)
