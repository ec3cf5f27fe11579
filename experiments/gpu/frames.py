"""One frame on an accelerator: time, and the share of what the chip can do.

  python -m experiments.gpu.frames [--networks=found,dmphn] [--height=720]

Batch 1, uint8 in and out, on the device before and after; every run is waited
for. Arithmetic is float32, TF32 (float32 numbers, products on tensor cores) or
bfloat16. PyTorch runs eagerly, compiled, and compiled into CUDA graphs
('reduce-overhead'), channels last.

Operations are two a multiply-add, as the architecture counts them; bytes are
those of every layer's input, output and parameters once: what a network without
fusion moves at least. Peaks are the maker's, dense; on a chip that is not in
the table they are measured, by a matrix product and a copy.
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


def count_bytes(layer: Layer, itemsize: int) -> int:
  """Returns what a layer reads and writes, in bytes.

  >>> count_bytes(Layer('conv', '', 1, 2, 2, 3, 32), 4)
  4144
  """
  pixels = layer.batch * layer.height * layer.width
  maps_in = 2 if layer.kind == 'fuse' else 1
  grows = {'up': 4, 'down': 1 / 4}.get(layer.kind, 1)
  values = pixels * (maps_in * layer.c_in + grows * layer.c_out)
  return int(itemsize * (values + layer.count()[0]))


def measured_peaks(size: int) -> dict[str, float]:
  """Returns operations and bytes a second that simple programs reach."""
  found = {}
  for precision, (dtype, name) in PRECISIONS.items():
    x = jnp.ones((size, size), dtype)
    product = jax.jit(functools.partial(jnp.matmul, precision=name))
    run = functools.partial(lambda f, x: jax.block_until_ready(f(x, x)),
                            product, x)  # fmt: skip
    ms = measure.median_ms({'': run}, runs=5)['']
    found[precision] = 2 * size**3 / (ms / 1e3)
  x = jnp.ones((8 * size, size))
  copy = jax.jit(lambda x: x + 1)
  ms = measure.median_ms(
    {'': lambda: jax.block_until_ready(copy(x))}, runs=5
  )['']
  return found | {'bytes': 2 * x.nbytes / (ms / 1e3)}


def find_peaks(kind: str, size: int) -> tuple[str, dict[str, float]]:
  """Returns where the peaks are from, and the peaks, a second."""
  for name, values in PEAKS.items():
    if name in kind:
      peaks = dict(zip(HEADER, values, strict=True))
      return 'data sheet', {k: 1e12 * v for k, v in peaks.items()}
  return 'measured', measured_peaks(size)


def make_ours(
  genotype: Any, params: Any, frame: np.ndarray, precision: str
) -> Callable[[], None]:
  """Returns our jitted function of the frame, and waits."""
  dtype, product = PRECISIONS[precision]
  with jax.default_matmul_precision(product):
    restore = jax.jit(backends.make_restore(genotype, dtype=dtype))
    on_device = jax.device_put(frame)
    compiled = restore.lower(params, on_device).compile()
  return lambda: jax.block_until_ready(compiled(params, on_device))


def make_torch(
  genotype: Any, params: Any, frame: np.ndarray, precision: str, mode: str
) -> Callable[[], None]:
  """Returns PyTorch's function of the frame, and waits."""
  import torch

  from benchmarks import peers

  dtype, _ = PRECISIONS[precision]
  device = measure.torch_device()
  module = peers.load(peers.Pyramid(genotype), params).eval()
  module = module.to(device, getattr(torch, dtype))
  on_device = torch.from_numpy(frame).to(device).permute(0, 3, 1, 2)

  def restore(frame):
    return (255 * module(frame.float() / 255).clamp(0, 1)).round().byte()

  if TORCH_MODES[mode]:
    restore = torch.compile(restore, mode=TORCH_MODES[mode])

  def run() -> None:
    for flags in (torch.backends.cuda.matmul, torch.backends.cudnn):
      flags.allow_tf32 = precision == 'tf32'
    with torch.inference_mode():
      restore(on_device)
    if device == 'cuda':
      torch.cuda.synchronize()

  return run


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
    modes = TORCH_MODES if not args.eager else ('torch',)
    makers |= {m: functools.partial(make_torch, mode=m) for m in modes}
  functions, notes = {}, {}
  for runtime, make in makers.items():
    for precision in PRECISIONS:
      key = runtime, precision
      try:
        functions[key] = make(genotype, params, frame, precision)
        began = time.perf_counter()
        functions[key]()
        notes[key] = f'first run {time.perf_counter() - began:.1f} s'
      except Exception as error:  # A mode that fails is a row that says so.
        functions.pop(key, None)
        notes[key] = f'{type(error).__name__}: {error}'.splitlines()[0][:60]
  times = measure.times_ms(functions, runs=args.runs)
  rows = []
  for key, note in notes.items():
    runtime, precision = key
    p50, p95 = np.percentile(times.get(key, [math.nan]), [50, 95])
    itemsize = 2 if precision == 'bfloat16' else 4
    moved = sum(count_bytes(layer, itemsize) for layer in layers)
    seconds = p50 / 1e3
    is_measured = key in times
    rows.append(
      {
        'network': name, 'runtime': runtime, 'precision': precision, **size,
        'p50_ms': float(p50) if is_measured else None,
        'p95_ms': float(p95) if is_measured else None,
        'giga_operations': operations / 1e9,
        'mib_moved': moved / measure.MIB,
        'of_peak_operations': float(operations / seconds / peaks[precision])
        if is_measured else None,
        'of_peak_bytes': float(moved / seconds / peaks['bytes'])
        if is_measured else None,
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
  parser.add_argument('--peak-size', type=int, default=4096, help='of a matrix')
  parser.add_argument('--eager', action='store_true', help='nothing compiled')
  args = parser.parse_args()
  kind = jax.devices()[0].device_kind
  source, peaks = find_peaks(kind, args.peak_size)
  rows = [
    row for name in args.networks
    for row in measure_network(name, args, peaks)
  ]  # fmt: skip
  summary = {'runs': args.runs, 'peaks': peaks, 'peaks_from': source}
  measure.report('One frame on the device', rows, summary)


if __name__ == '__main__':
  main()
