"""A network compiled for one image shape, by any of the runtimes at hand.

Batches are uint8 or float32 [B, H, W, 3], floats in [0, 1]; the output is
clipped and has the input's type and size, or a multiple of its size in
super-resolution.

OpenVINO and ONNX Runtime read an ONNX graph that serves every size. It is kept
in the user's cache folder, with a note of each runtime that restored a
photograph by it as XLA does.

In int8, convolutions multiply integers (`nn.quantization`), on grids that
`calibration` finds once for each network; the cache keeps them as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import dataclasses
import hashlib
import importlib
import importlib.metadata
import json
import math
import os
from pathlib import Path
import sys
import threading
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from pynas_jax import caching
from pynas_jax import compiling
from pynas_jax import parallel
from pynas_jax.genotype import Genotype
from pynas_jax.genotype import nearest
from pynas_jax.nn import canvas
from pynas_jax.nn import quantization
from pynas_jax.nn.quantization import Grid
from pynas_jax.spaces import base
from pynas_jax.spaces import space_of

AUTO = 'auto'
DTYPES = ('float32', 'bfloat16', 'int8')
MAX_DIFFERENCE = 1e-3  # From XLA in float32, of values in [0, 1].
MAX_PSNR_CHANGE_DB = {'bfloat16': 0.05, 'int8': 0.1}  # Of a photograph.
PHOTO = Path(__file__).parents[1] / 'data' / 'photos' / 'city.png'
PHOTO_SIZE = (96, 128)
_STEPS = (128, 64, 32, 16, 8, 4, 2, 1)  # Of the sides of canvases, pixels.
SMALL_CANVAS = 1 << 14  # Pixels: sooner restored than another is compiled.
_CHECKSUM_BYTES = 32  # Of what is cached, before it.
_unkept: dict[str, bytes] = {}  # What would be cached, where nothing can be.


class BackendError(ValueError):
  """A runtime that is unknown, missing or wrong."""


@dataclasses.dataclass(frozen=True)
class Network:
  """What a runtime compiles.

  Attributes:
    genotype: The architecture.
    params: Its float32 parameters.
    dtype: Of the arithmetic, one of `DTYPES`.
    streams: Threads that will restore at once. OpenVINO shares the cores among
      them: more images an hour, each of them later.
  """

  genotype: Genotype
  params: Any
  dtype: str = 'float32'
  streams: int = 1


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled network; the three steps can be timed apart.

  Attributes:
    put: Host array -> what `run` takes; the host array is left alone.
    run: Restores, and waits for the result; may use its argument up.
    get: Result of `run` -> host array.
  """

  put: Callable[[np.ndarray], Any]
  run: Callable[[Any], Any]
  get: Callable[[Any], np.ndarray]

  def __call__(self, batch: np.ndarray) -> np.ndarray:
    """Restores a batch of a shape and the type compiled for."""
    return self.get(self.run(self.put(batch)))


def make_restore(
  genotype: Genotype, *, dtype: str = 'float32'
) -> Callable[[Any, jax.Array], jax.Array]:
  """Returns the pure function `(params, image) -> image`.

  It maps uint8 or float32 [B, H, W, 3] to the same type, clipped; uint8 is
  rounded to nearest.

  Args:
    genotype: The architecture.
    dtype: Of the arithmetic, 'float32' or 'bfloat16'.
  """
  network = space_of(genotype).network(genotype, dtype=jnp.dtype(dtype))

  def restore(params: Any, image: jax.Array) -> jax.Array:
    is_uint8 = image.dtype == jnp.uint8
    x = image.astype(jnp.float32) / 255 if is_uint8 else image
    y = jnp.clip(base.apply(network, params, x), 0, 1)
    return jnp.round(y * 255).astype(jnp.uint8) if is_uint8 else y

  return restore


def make_int8_restore(
  network: Network,
) -> Callable[[Any, jax.Array], jax.Array]:
  """Returns the function of `make_restore` whose convolutions are in 8 bits.

  By XLA it takes longer than in float32: it shows what exported graphs do.
  """
  restore, grids = make_restore(network.genotype), _grids(network)

  def rounded(params: Any, image: jax.Array) -> jax.Array:
    with quantization.rounding(grids):
      return restore(params, image)

  return rounded


def _grids(network: Network) -> list[Grid]:
  """Returns the grids of a network's convolutions, from the cache or new."""

  def make():
    from pynas_jax import logbook  # Rarely wanted.
    from pynas_jax.deploy import calibration

    logbook.say('calibrating for 8 bits, once for each network')
    grids = calibration.calibrate(network.genotype, network.params)
    return json.dumps([dataclasses.astuple(grid) for grid in grids]).encode()

  kept = json.loads(_cached(network, 'grids', make))
  return [Grid(scale, zero, tuple(widths)) for scale, zero, widths in kept]


def _compile_xla(network: Network, restore: Callable, *args: Any) -> Callable:
  """Returns what restores the first of the arrays, which it may use up."""
  # The frame is donated: its memory becomes the output's, if as large.
  donated = (1,) if network.genotype.scale == 1 else ()
  compiled = compiling.compile_program(
    jax.jit(restore, donate_argnums=donated), network.params, *args,
    dtype=network.dtype,
  )  # fmt: skip
  return lambda *args: jax.block_until_ready(compiled(network.params, *args))


def _put(batch: np.ndarray) -> jax.Array:
  # A copy: the donated buffer must not be the caller's own memory.
  return jax.block_until_ready(jnp.array(batch, copy=True))


def _xla(network: Network, shape: tuple[int, ...], dtype: Any) -> Program:
  restore = make_restore(network.genotype, dtype=network.dtype)
  image = jax.ShapeDtypeStruct(shape, dtype)
  # JAX's own memory is for reading only, hence the copy.
  return Program(_put, _compile_xla(network, restore, image), get=np.array)


def max_canvas(shape: tuple[int, ...]) -> int:
  """Returns the most pixels of a canvas for images of a shape [B, H, W, 3]."""
  return 2 * math.prod(shape[:3]) + SMALL_CANVAS


def canvas_shape(network: Network, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the shape of the canvas for images of a shape.

  Its sides are multiples of a power of two, the largest up to 128 that keeps it
  within `max_canvas`.

  Args:
    network: The network.
    shape: Of the images, [B, H, W, 3].
  """
  b, *sides, c = shape
  multiples = space_of(network.genotype).multiple(network.genotype)
  for step in _STEPS:
    canvas = []
    for side, multiple in zip(sides, multiples, strict=True):
      step_here = step + -step % multiple
      larger = side + -side % step_here
      if larger == side + 1 and network.genotype.scale > 1:
        larger += step_here  # Bicubic enlargement looks two pixels far.
      canvas.append(larger)
    if b * math.prod(canvas) <= max_canvas(shape):
      break
  return b, *canvas, c


def compile_canvas(
  network: Network, shape: tuple[int, ...], dtype: Any
) -> Program:
  """Compiles a network by XLA, for all images that a canvas holds.

  They are restored as by a program of their own size, in the time that the
  canvas takes.

  Args:
    network: The network.
    shape: Of the canvas, as of `canvas_shape`.
    dtype: Of the images, uint8 or float32.
  """
  restore = make_restore(network.genotype, dtype=network.dtype)
  scale = network.genotype.scale

  def restore_held(params, image, size):
    with canvas.holding(size, shape[1:3]):
      return restore(params, image)

  image, size = (
    jax.ShapeDtypeStruct(*x) for x in ((shape, dtype), ((2,), jnp.int32))
  )
  compiled = _compile_xla(network, restore_held, image, size)

  def put(batch):
    given = batch.shape
    size = padded_shape(network, given)
    # Bicubic enlargement, which is no part of the network, reads what is beside
    # the image: its mirror image.
    for target, mode in ((size, 'reflect'), (shape, 'symmetric')):
      pads = [(0, n - m) for n, m in zip(target, batch.shape, strict=True)]
      batch = np.pad(batch, pads, mode=mode)
    return _put(batch), np.asarray(size[1:3], np.int32), given

  def run(held):
    *args, given = held
    return compiled(*args), given

  def get(result):
    restored, (_, h, w, _) = result
    return np.asarray(restored)[:, : scale * h, : scale * w].copy()

  return Program(put, run, get)


def need(name: str) -> Any:
  """Returns a module that only some backends need."""
  # When imported, OpenVINO tells its makers so, from a forked process, unless
  # this module of it is missing; ONNX Runtime does when it is used. Restoring
  # pictures is no business of theirs.
  sys.modules.setdefault('openvino_telemetry', None)
  os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')
  try:
    return importlib.import_module(name)
  except (ImportError, OSError) as error:  # Missing, or a library of its own.
    raise BackendError(
      f"{error}. It comes with pip install 'pynas-jax[export]'; backend 'xla' "
      'does without.'
    ) from None


def _digest(network: Network) -> str:
  """Returns what exported graphs depend on, in 16 hex digits."""
  sha256 = hashlib.sha256(network.genotype.to_json().encode())
  libraries = ('pynas-jax', 'jax', 'onnx')
  versions = [importlib.metadata.version(name) for name in libraries]
  # A cache may be shared by processors that are not alike.
  sha256.update(f'{versions}{quantization.kernel_levels()}'.encode())
  for leaf in jax.tree.leaves(network.params):
    sha256.update(np.asarray(leaf).tobytes())
  return sha256.hexdigest()[:16]


def export_onnx(
  network: Network, dtype: Any, *, size: tuple[int, int] | None = None
) -> bytes:
  """Returns the ONNX graph of a network.

  Args:
    network: The network. In int8, so are the graph's convolutions; else it is
      in float32, and a runtime may choose another type.
    dtype: Of images, uint8 or float32.
    size: Height and width of one image in pixels. By default the graph is for
      batches of any size, in multiples; it comes from the cache if it can.
  """
  onnx_graph = need('pynas_jax.deploy.onnx_graph')

  def convert():
    space, is_int8 = space_of(network.genotype), network.dtype == 'int8'
    return onnx_graph.to_onnx(
      make_int8_restore(network) if is_int8 else make_restore(network.genotype),
      network.params, dtype=dtype,
      multiple=space.multiple(network.genotype), size=size,
    ).SerializeToString()  # fmt: skip

  if size is not None:
    return convert()
  kind = 'int8-' if network.dtype == 'int8' else ''
  return _cached(network, f'{kind}{np.dtype(dtype)}.onnx', convert)


def _cached(network: Network, name: str, make: Callable[[], bytes]) -> bytes:
  """Returns what `make` makes of a network, from the cache or new."""
  name = f'{_digest(network)}-{name}'
  if name in _unkept:
    return _unkept[name]
  folder = caching.folder()
  path = folder and folder / 'onnx' / name
  try:
    kept = path.read_bytes() if path else b''
  except OSError:  # There is none, or none for us.
    kept = b''
  checksum, content = kept[:_CHECKSUM_BYTES], kept[_CHECKSUM_BYTES:]
  if kept and checksum == hashlib.sha256(content).digest():
    return content
  if kept:
    logging.info('%s is damaged; it is made again', path)
  content = make()
  if not path or not _keep(path, content):
    _unkept[name] = content
  return content


def _keep(path: Path, content: bytes) -> bool:
  """Writes a file of the cache; returns whether it could be written."""
  # Others may be writing the same.
  me = f'{os.getpid()}-{threading.get_ident()}'
  partial = path.with_name(f'{path.name}.{me}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(hashlib.sha256(content).digest() + content)
    partial.replace(path)
  except OSError as error:  # It serves without.
    logging.info('%s cannot be kept: %s', path, error)
    return False
  return True


def padded_shape(network: Network, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the shape that an exported graph takes for images of a shape."""
  b, h, w, c = shape
  rows, cols = space_of(network.genotype).multiple(network.genotype)
  return b, h + -h % rows, w + -w % cols, c


def _padded(
  network: Network,
  shape: tuple[int, ...],
  run: Callable[[np.ndarray], np.ndarray],
) -> Program:
  """Returns the program of a graph whose sizes are multiples."""
  h, w = (network.genotype.scale * size for size in shape[1:3])
  pads = [(0, new - old) for old, new in
          zip(shape, padded_shape(network, shape), strict=True)]  # fmt: skip
  return Program(
    put=lambda batch: np.ascontiguousarray(
      np.pad(batch, pads, mode='reflect') if np.any(pads) else batch
    ),
    run=run,
    get=lambda result: result[:, :h, :w],
  )


def open_onnx(
  model: bytes | Path, shape: tuple[int, ...] = ()
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns the function of an ONNX graph, by ONNX Runtime.

  Args:
    model: The graph, or its file.
    shape: What its open sizes are known to be.
  """
  ort, onnx_graph = need('onnxruntime'), need('pynas_jax.deploy.onnx_graph')
  options = ort.SessionOptions()
  for name, size in zip(onnx_graph.DIMENSIONS, shape, strict=False):
    options.add_free_dimension_override_by_name(name, size)
  session = ort.InferenceSession(
    model, options, providers=['CPUExecutionProvider']
  )

  def run(batch):
    try:
      return session.run(None, {onnx_graph.INPUT: batch})[0]
    except Exception as error:  # The runtime's own have no kind in common.
      raise RuntimeError(f'ONNX Runtime: {error}') from error

  return run


def open_openvino(
  model: bytes | Path,
  dtype: str,
  shape: tuple[int, ...] = (),
  *,
  streams: int = 1,
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns the function of an ONNX graph or an IR, by OpenVINO.

  Args:
    model: The graph, or its file.
    dtype: Of the arithmetic, one of `DTYPES`. A graph says itself what is in 8
      bits; 'int8' is for the rest, in bfloat16 if the processor has it.
    shape: What its open sizes are known to be.
    streams: See `Network`.
  """
  core = need('openvino').Core()
  model = core.read_model(model)
  if shape:
    model.reshape(list(shape))
  if dtype == 'int8' and _has_type('openvino', 'bfloat16'):
    dtype = 'bfloat16'
  precision = 'bf16' if dtype == 'bfloat16' else 'f32'
  hint = (
    {'PERFORMANCE_HINT': 'LATENCY'} if streams == 1
    else {'NUM_STREAMS': str(streams)}
  )  # fmt: skip
  compiled = core.compile_model(
    model, 'CPU', {'INFERENCE_PRECISION_HINT': precision} | hint
  )
  local = threading.local()  # A request serves one thread.

  def run(batch):
    if not hasattr(local, 'request'):
      local.request = compiled.create_infer_request()
    local.request.infer({0: batch}, share_inputs=True)
    # A copy: the request's next result takes the place of this one.
    return local.request.get_output_tensor(0).data.copy()

  return run


def _onnxruntime(network: Network, shape: tuple[int, ...], dtype: Any):
  run = open_onnx(export_onnx(network, dtype), padded_shape(network, shape))
  return _padded(network, shape, run)


def _openvino(network: Network, shape: tuple[int, ...], dtype: Any):
  model, sizes = export_onnx(network, dtype), padded_shape(network, shape)
  run = open_openvino(model, network.dtype, sizes, streams=network.streams)
  return _padded(network, shape, run)


def _has_type(backend: str, dtype: str) -> bool:
  """Returns whether a runtime restores in a type, sooner than in float32."""
  if dtype == 'float32' or (backend, dtype) == ('xla', 'bfloat16'):
    return True
  if backend != 'openvino':  # ONNX Runtime takes longer in 8 bits.
    return False
  capabilities = need('openvino').Core().get_property(
    'CPU', 'OPTIMIZATION_CAPABILITIES'
  )
  return {'bfloat16': 'BF16', 'int8': 'INT8'}[dtype] in capabilities


# Fastest first, of pictures of many sizes; of one size, and where it has oneDNN
# (`compiling`), XLA is ahead of ONNX Runtime.
BACKENDS: dict[str, Callable[..., Program]] = {
  'openvino': _openvino, 'onnxruntime': _onnxruntime, 'xla': _xla,
}  # fmt: skip


def _check(backend: str, network: Network) -> None:
  """Raises BackendError unless a runtime can restore by this network."""
  if backend == 'xla':
    return _check_runtime(backend, network)
  for name in ('onnx', backend):
    need(name)
  try:
    _check_runtime(backend, network)
  except BackendError:
    raise
  except Exception as error:  # Runtimes raise what they like.
    reason = str(error).strip().partition('\n')[0] or type(error).__name__
    raise BackendError(
      f"{backend} does not work here: {reason}. Use backend 'xla'."
    ) from error


def _check_runtime(backend: str, network: Network) -> None:
  dtype = network.dtype
  if not _has_type(backend, dtype):
    raise BackendError(
      f'{backend} has no {dtype} '
      + ("here; use float32, or backend 'openvino'." if dtype == 'int8' else
         "on this processor; use float32, or backend 'xla'.")
    )  # fmt: skip
  if backend == 'xla':
    return
  if dtype == 'bfloat16':  # By the same graph.
    network = dataclasses.replace(network, dtype='float32')
  version = importlib.metadata.version(backend)
  note = f'{backend}-{version}-{network.dtype}-difference'
  _cached(network, note, lambda: b'%g' % compare(backend, network))


def compare(backend: str, network: Network) -> float:
  """Compares a runtime with XLA on a photograph.

  Returns:
    The largest difference, of values in [0, 1].

  Raises:
    BackendError: If the results differ too much; see `check_close`.
  """
  other = 'float32' if network.dtype == 'int8' else "backend 'xla'"

  def run(image):
    return compile_network(backend, network, image.shape, image.dtype)(image)

  return check_close(
    network, run, PHOTO_SIZE, np.float32, what=backend, remedy=f'Use {other}.'
  )['max_difference']


def check_close(
  network: Network,
  run: Callable[[np.ndarray], np.ndarray],
  size: tuple[int, int],
  dtype: Any,
  *,
  what: str,
  remedy: str,
) -> dict[str, float]:
  """Restores a blurred photograph and compares with XLA in float32.

  Args:
    network: The network; float32 must agree with XLA, by `MAX_DIFFERENCE`, and
      the PSNR of other types by `MAX_PSNR_CHANGE_DB`.
    run: What restores by it.
    size: Height and width of the image, pixels.
    dtype: Of the image, uint8 or float32.
    what: Name of what is compared, for errors.
    remedy: What to do about an error.

  Returns:
    `max_difference`, of values in [0, 1], and `psnr_change_db`.

  Raises:
    BackendError: If they differ by more.
  """
  scale = network.genotype.scale
  sharp = photograph(*(scale * n for n in size))
  blurry = sum(np.roll(sharp, shift, 2) for shift in range(5)) / 5
  blurry, unit = blurry[:, ::scale, ::scale].astype(np.float32), 1
  if dtype == np.uint8:
    blurry, unit = np.round(255 * blurry).astype(np.uint8), 255
  exact = dataclasses.replace(network, dtype='float32')
  with jax.default_matmul_precision('float32'):  # Else TF32 on a GPU.
    xla = compile_network('xla', exact, blurry.shape, dtype)
  wanted, found = (
    np.asarray(restore(blurry), np.float64) / unit for restore in (xla, run)
  )
  psnr = [-10 * np.log10(np.square(y - sharp).mean()) for y in (wanted, found)]
  figures = {
    'max_difference': float(np.abs(found - wanted).max()),
    'psnr_change_db': float(psnr[1] - psnr[0]),
  }
  # uint8 may round the other way.
  most = MAX_DIFFERENCE + (1 / 255 if dtype == np.uint8 else 0)
  most_db = MAX_PSNR_CHANGE_DB.get(network.dtype)
  if most_db is None:
    is_close = figures['max_difference'] <= most
  else:
    is_close = abs(figures['psnr_change_db']) <= most_db
  if not is_close:
    limit = f'{most:.2g}' if most_db is None else f'{most_db} dB'
    raise BackendError(
      f'{what} in {network.dtype} differs from XLA by '
      f'{figures["max_difference"]:.2g} and {figures["psnr_change_db"]:.3f} dB '
      f'on a photograph; expected at most {limit}. {remedy}'
    )
  return figures


def photograph(height: int, width: int) -> np.ndarray:
  """Returns a photograph of a size, f32[1, H, W, 3] in [0, 1]."""
  with Image.open(PHOTO) as image:
    resized = image.convert('RGB').resize((width, height), Image.BICUBIC)
  return np.asarray(resized, np.float32)[None] / 255


def choose(backend: str, network: Network) -> str:
  """Returns the runtime that a name stands for, once it can be used.

  Args:
    backend: Key of `BACKENDS`, or 'auto': XLA on an accelerator, else the first
      of `BACKENDS` that is installed, has the network's type and restores as
      XLA does. Only OpenVINO has int8.
    network: What is to be run.

  Raises:
    BackendError: If there is no such runtime or type, or if it is wrong.
  """
  for field, value, known in (
    ('dtype', network.dtype, DTYPES), ('backend', backend, (*BACKENDS, AUTO))
  ):  # fmt: skip
    if value not in known:
      raise BackendError(
        f'{field} is {value!r}; expected one of {", ".join(known)}.'
        + nearest(value, known)
      )
  if backend == AUTO:
    if parallel.device().platform != 'cpu':
      backend = 'xla'
    elif network.dtype == 'int8':
      backend = 'openvino'  # Or the error says why not.
    else:
      return next(_usable(network))
  _check(backend, network)
  return backend


def available(network: Network) -> list[str]:
  """Returns the runtimes that can restore by a network, as `BACKENDS` has them.

  None may have int8; XLA has the other types.
  """
  return list(_usable(network))


def _usable(network: Network) -> Iterator[str]:
  for name in BACKENDS:
    try:
      _check(name, network)
    except ValueError as error:
      logging.info('not %s: %s', name, error)
    else:
      yield name


def compile_network(
  backend: str, network: Network, shape: tuple[int, ...], dtype: Any
) -> Program:
  """Compiles a network for one shape.

  Args:
    backend: Key of `BACKENDS`.
    network: The network.
    shape: Of the batch, [B, H, W, 3].
    dtype: Of the batch, uint8 or float32.
  """
  return BACKENDS[backend](network, shape, np.dtype(dtype))
