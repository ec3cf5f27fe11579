"""One frame on an accelerator: time, and the share of what the chip can do.

  python -m experiments.gpu.frames [--networks=found,dmphn] [--height=720]

Batch 1, uint8 in and out, on the device before and after; every run is waited
for. Arithmetic is float32, TF32 (float32 numbers, products on tensor cores) or
bfloat16. PyTorch runs eagerly, compiled, and compiled into CUDA graphs
('reduce-overhead'), channels last.

Operations are two a multiply-add, as the architecture counts them; bytes are
those of every convolution's input, output and parameters once: what a network
without fusion moves at least. Peaks are the maker's, dense, and beside them
what a matrix product and a copy reach here. `psnr_to_ours_db` is of the
picture, to that of ours in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks import networks
from pynas_jax import logbook
from pynas_jax.deploy import backends
from pynas_jax.nn.layers import Layer
from pynas_jax.spaces import space_of

HEADER = ('float32', 'tf32', 'bfloat16', 'bytes')
# 1e12 operations and bytes a second. Source: the data sheets of NVIDIA.
PEAKS = {
  'H100 80GB HBM3': (67, 495, 989, 3.35),
  'H200': (67, 495, 989, 4.8),
  'A100-SXM4-80GB': (19.5, 156, 312, 2.039),
}
PRECISIONS = {
  'float32': ('float32', 'float32'),
  'tf32': ('float32', 'tensorfloat32'),
  'bfloat16': ('bfloat16', 'default'),
}
TORCH_MODES = {
  'torch': None, 'torch.compile': 'default', 'torch, graphs': 'reduce-overhead',
}  # fmt: skip
# Of two convolutions, with feature maps between them.
DOUBLE = ('conv_3x3_x2', 'sep_conv_3x3')
PRODUCTS = 8  # Dispatched before they are waited for.


def count_bytes(layer: Layer, itemsize: int) -> int:
  """Returns what a layer reads and writes, in bytes.

  >>> count_bytes(Layer('conv', '', 1, 2, 2, 3, 32), 4)
  4144
  """
  if layer.operator == 'zero':
    return 0  # The compiler drops it.
  values = layer.values + layer.count()[0]
  if layer.operator in DOUBLE:
    values += 2 * layer.batch * layer.height * layer.width * layer.c_in
  return itemsize * values


def measured_peaks(size: int) -> dict[str, float]:
  """Returns operations and bytes a second that simple programs reach."""

  def seconds(function: Callable[[], jax.Array]) -> float:
    def run() -> None:
      jax.block_until_ready([function() for _ in range(PRODUCTS)])

    return measure.median_ms({'': run}, runs=5)[''] / 1e3 / PRODUCTS

  found = {}
  for precision, (dtype, name) in PRECISIONS.items():
    # Chips take less power, and time, for products of equal numbers.
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(functools.partial(jnp.matmul, precision=name))
    found[precision] = 2 * size**3 / seconds(functools.partial(product, x, x))
  x = jnp.ones((8 * size, size))
  copy = jax.jit(lambda x: x + 1)
  moved = 2 * x.nbytes / seconds(functools.partial(copy, x))
  return found | {'bytes': moved}


def find_peaks(
  kind: str, measured: dict[str, float]
) -> tuple[str, dict[str, float]]:
  """Returns where the peaks are from, and the peaks, a second."""
  for name, values in PEAKS.items():
    if name in kind:
      peaks = dict(zip(HEADER, values, strict=True))
      return 'data sheet', {k: 1e12 * v for k, v in peaks.items()}
  return 'measured', measured


def make_ours(
  genotype: Any, params: Any, frame: np.ndarray, precision: str
) -> Callable[[], np.ndarray]:
  """Returns our jitted function of the frame, which waits."""
  dtype, product = PRECISIONS[precision]
  with jax.default_matmul_precision(product):
    restore = jax.jit(backends.make_restore(genotype, dtype=dtype))
    on_device = jax.device_put(frame)
    compiled = restore.lower(params, on_device).compile()
  return lambda: jax.block_until_ready(compiled(params, on_device))


def make_torch(
  genotype: Any,
  params: Any,
  frame: np.ndarray,
  precision: str,
  *,
  mode: str | None,
) -> Callable[[], Any]:
  """Returns PyTorch's function of the frame, which waits."""
  import torch

  from benchmarks import peers

  dtype, _ = PRECISIONS[precision]
  device = measure.torch_device()
  module = peers.load(peers.Pyramid(genotype), params).eval()
  module = module.to(device, getattr(torch, dtype))
  on_device = torch.from_numpy(frame).to(device).permute(0, 3, 1, 2)

  def restore(frame):
    return (255 * module(frame.float() / 255).clamp(0, 1)).round().byte()

  if mode:
    # It is compiled for each mode and type; more than 8 times, it would go on
    # without, and say so in a warning alone.
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    restore = torch.compile(restore, mode=mode)

  def run() -> Any:
    measure.set_tf32(precision == 'tf32')
    with torch.inference_mode():
      restored = restore(on_device)
    if device == 'cuda':
      torch.cuda.synchronize()
    return restored.permute(0, 2, 3, 1)

  return run


def to_host(restored: Any) -> np.ndarray:
  """Returns a picture of JAX or PyTorch as an array in [0, 1]."""
  on_host = restored.cpu() if hasattr(restored, 'cpu') else restored
  return np.asarray(on_host, np.float32) / 255


def measure_network(
  name: str, args: argparse.Namespace, peaks: dict[str, float]
) -> list[dict[str, Any]]:
  """Returns the rows of one network."""
  genotype, params = networks.read(name)
  size = {'height': args.height, 'width': args.width}
  frame = np.rint(255 * backends.photograph(**size)).astype(np.uint8)
  space = space_of(genotype)
  operations = 2 * space.count(genotype, **size)[1]
  layers = [x for group in space.layers(genotype, **size) for x in group]
  makers = {'ours': make_ours}
  if measure.is_installed('torch'):
    for runtime, mode in TORCH_MODES.items():
      if not (mode and args.eager):
        makers[runtime] = functools.partial(make_torch, mode=mode)
  functions, pictures, notes = {}, {}, {}
  for runtime, make in makers.items():
    for precision in PRECISIONS:
      key = runtime, precision
      if time.perf_counter() > args.ready_by:
        notes[key] = 'left out: no time'
        continue
      try:
        began = time.perf_counter()
        function = make(genotype, params, frame, precision)
        pictures[key] = to_host(function())
        # Once more: CUDA graphs are recorded by the second run.
        function()
        functions[key] = function
        notes[key] = f'ready after {time.perf_counter() - began:.1f} s'
      except Exception as error:  # A mode that fails is a row that says so.
        notes[key] = f'{type(error).__name__}: {error}'.splitlines()[0][:60]
      logbook.say(f'{name}, {runtime}, {precision}: {notes[key]}')
  times = measure.times_ms(functions, runs=args.runs, settle_s=0)
  rows, exact = [], pictures.get(('ours', 'float32'))
  for key, note in notes.items():
    runtime, precision = key
    p50, p95 = np.percentile(times.get(key, [math.nan]), [50, 95])
    itemsize = 2 if precision == 'bfloat16' else 4
    moved = sum(count_bytes(layer, itemsize) for layer in layers)
    seconds = p50 / 1e3
    figures = {
      'p50_ms': p50,
      'p95_ms': p95,
      'of_peak_operations': operations / seconds / peaks[precision],
      'of_peak_bytes': moved / seconds / peaks['bytes'],
    }
    rows.append(
      {
        'network': name, 'runtime': runtime, 'precision': precision, **size,
        'giga_operations': operations / 1e9,
        'mib_moved': moved / measure.MIB,
        **{k: float(v) if key in times else None for k, v in figures.items()},
        'psnr_to_ours_db': measure.psnr_db(pictures[key], exact)
        if key in pictures and exact is not None else None,
        'note': note,
      }
    )  # fmt: skip
  return rows


def main() -> None:
  """Measures and prints."""
  parser = measure.make_networks_parser(__doc__)
  parser.add_argument('--height', type=int, default=720, help='pixels')
  parser.add_argument('--width', type=int, default=1280, help='pixels')
  parser.add_argument('--runs', type=int, default=100, help='timed frames')
  parser.add_argument('--peak-size', type=int, default=8192, help='of a matrix')
  parser.add_argument('--eager', action='store_true', help='nothing compiled')
  parser.add_argument(
    '--ready-within', type=float, default=math.inf,
    help='seconds; programs not begun by then are left out',
  )  # fmt: skip
  args = parser.parse_args()
  args.ready_by = time.perf_counter() + args.ready_within
  kind = jax.devices()[0].device_kind
  measured = measured_peaks(args.peak_size)
  source, peaks = find_peaks(kind, measured)
  summary = {
    'runs': args.runs, 'peaks': peaks, 'peaks_from': source,
    'measured_peaks': measured,
  }  # fmt: skip
  rows = measure.of_networks(measure_network, args, peaks)
  measure.report('One frame on the device', rows, summary)


if __name__ == '__main__':
  main()
