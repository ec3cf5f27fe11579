"""Time of a frame through a network, by the runtime.

  python -m benchmarks.inference [--networks=found,dmphn] [--height=720]

A network is 'found', which stands for what a search finds, 'dmphn', or the
folder of a trained one. A frame is a photograph, uint8 in and out: all runtimes
scale, clip and round. 'xla' is the package's restorer, 'jax.jit' the same
function compiled as JAX does by itself (`pynas_jax.compiling`). Times are
medians of interleaved frames, with the copies; `psnr_to_f32_db` is of the frame
before rounding, to XLA's in float32.
`share_of_peak` is of the multiply-adds a second that PyTorch's product of large
matrices reaches in that type: a runtime at the peak would take
`floor_to_torch` of PyTorch's time in bfloat16, and none can take less but by
counting fewer (Winograd).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import importlib
import statistics
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from benchmarks import networks
from pynas_jax.deploy import backends
from pynas_jax.deploy.backends import Network
from pynas_jax.spaces import space_of

RUNTIMES = (
  ('xla', 'float32'), ('xla', 'bfloat16'), ('jax.jit', 'float32'),
  ('torch', 'float32'), ('torch', 'bfloat16'), ('torch.compile', 'float32'),
  ('torch.compile', 'bfloat16'), ('onnxruntime', 'float32'),
  ('openvino', 'float32'), ('openvino', 'bfloat16'), ('openvino', 'int8'),
)  # fmt: skip
SURE_MS = 100.0  # Of a product: beyond, a larger one is no better measured.
_Restore = Callable[[np.ndarray], np.ndarray]


def make_torch(
  network: Network, *, dtype: str, compiled: bool, threads: int
) -> _Restore:
  """Returns PyTorch's function of a frame, uint8 or float32."""
  import torch

  from benchmarks import peers

  torch.set_num_threads(threads)
  module = peers.load(peers.Pyramid(network.genotype), network.params).eval()
  device = measure.torch_device()
  module = module.to(device, getattr(torch, dtype))
  function = torch.compile(module) if compiled else module

  def restore(frame: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
      x = torch.from_numpy(frame).to(device).permute(0, 3, 1, 2)
      is_uint8 = x.dtype == torch.uint8
      y = function(x.float() / 255 if is_uint8 else x).clamp(0, 1)
      y = (255 * y).round().to(torch.uint8) if is_uint8 else y
      return y.permute(0, 2, 3, 1).cpu().numpy()

  return restore


def make_restore(
  runtime: str, network: Network, frame: np.ndarray, *, threads: int
) -> _Restore:
  """Returns a runtime's function of frames like this one."""
  if runtime == 'jax.jit':  # XLA without `compiling`.
    restore = jax.jit(backends.make_restore(network.genotype))
    return lambda batch: np.asarray(restore(network.params, batch))
  if runtime.startswith('torch'):
    return make_torch(
      network, dtype=network.dtype, compiled='compile' in runtime,
      threads=threads,
    )  # fmt: skip
  backends.choose(runtime, network)
  return backends.compile_network(runtime, network, frame.shape, frame.dtype)


def peak_gmacs(dtype: str, *, threads: int) -> float:
  """Returns 1e9 multiply-adds a second of a product of large matrices."""
  import torch

  torch.set_num_threads(threads)
  device = measure.torch_device()
  largest = 2048 if device == 'cpu' else 8192  # A launch is little beside it.
  size, ms = 128, 0.0
  # A type that a processor emulates has its peak at once; it takes minutes for
  # the largest.
  while size < largest and ms < SURE_MS:
    size *= 2
    # Chips take less power, and time, for products of equal numbers.
    x = torch.randn((size, size), device=device).to(getattr(torch, dtype))

    def product(x=x) -> None:
      # A number that the host reads: on a GPU, that waits.
      torch.mm(x, x)[0, 0].item()

    ms = measure.median_ms({'': product}, runs=5)['']
  return size**3 / ms / 1e6


def why_not(runtime: str, error: Exception) -> str:
  """Returns what stands in the place of a time."""
  library = runtime.partition('.')[0]
  try:
    importlib.import_module('jax' if library == 'xla' else library)
  except ImportError:
    return 'not installed'
  return f'{type(error).__name__}: {error}'.splitlines()[0][:60]


def measure_network(
  name: str, args: argparse.Namespace, peaks: dict[str, float]
) -> list[dict[str, Any]]:
  """Returns the rows of one network."""
  genotype, params = networks.read(name)
  _, macs = space_of(genotype).count(
    genotype, height=args.height, width=args.width
  )
  photo = backends.photograph(args.height, args.width)
  frame = np.rint(255 * photo).astype(np.uint8)
  restores, notes, psnrs, exact = {}, {}, {}, None
  asked = [
    (runtime, dtype)
    for runtime, dtype in RUNTIMES
    if runtime in args.runtimes and dtype in args.dtypes
  ]
  for runtime, dtype in asked:
    network = Network(genotype, params, dtype)
    make = lambda like: make_restore(  # noqa: E731
      runtime, network, like, threads=args.threads  # noqa: B023
    )
    try:
      restored = make(photo)(photo)
      exact = restored if exact is None else exact
      psnrs[runtime, dtype] = measure.psnr_db(restored, exact)
      restores[runtime, dtype] = make(frame)
      restores[runtime, dtype](frame)
    except Exception as error:  # A runtime that fails is a row that says so.
      restores.pop((runtime, dtype), None)
      notes[runtime, dtype] = why_not(runtime, error)
  functions = {k: lambda f=f: f(frame) for k, f in restores.items()}
  times = measure.times_ms(functions, runs=args.runs)
  rows = []
  for runtime, dtype in asked:
    key = runtime, dtype
    p50_ms = statistics.median(times[key]) if key in times else None
    peak = peaks.get(dtype)
    share = p50_ms and peak and macs / 1e6 / p50_ms / peak
    rows.append(
      {
        'network': name, 'runtime': runtime, 'dtype': dtype,
        'height': args.height, 'width': args.width, 'gmacs': macs / 1e9,
        'p50_ms': p50_ms, 'share_of_peak': share,
        'psnr_to_f32_db': psnrs.get(key), 'note': notes.get(key, ''),
      }
    )  # fmt: skip
  return rows


def ratios(
  rows: list[dict[str, Any]], peaks: dict[str, float]
) -> dict[str, float]:
  """Returns XLA's and the best exported graph's time over PyTorch's eager.

  And that of a runtime at the peak of bfloat16.
  """
  found: dict[str, float] = {}
  gmacs = {row['network']: row['gmacs'] for row in rows}
  for name in gmacs:
    ms = {
      (r['runtime'], r['dtype']): r['p50_ms']
      for r in rows
      if r['network'] == name and r['p50_ms']
    }
    exported = [v for k, v in ms.items() if k[0] in ('onnxruntime', 'openvino')]
    peer = ms.get(('torch', 'float32'))
    if peer and ('xla', 'float32') in ms:
      found[f'{name}_xla_to_torch'] = ms['xla', 'float32'] / peer
    if peer and exported:
      found[f'{name}_best_exported_to_torch'] = min(exported) / peer
    if peer and 'bfloat16' in peaks:
      floor_ms = 1e3 * gmacs[name] / peaks['bfloat16']
      found[f'{name}_floor_to_torch'] = floor_ms / peer
  return found


def main() -> None:
  """Measures and prints."""
  parser = measure.make_networks_parser(__doc__)
  runtimes, dtypes = zip(*RUNTIMES, strict=True)
  measure.add_names(parser, '--runtimes', runtimes, help='with xla')
  measure.add_names(parser, '--dtypes', dtypes, help='with float32')
  parser.add_argument('--height', type=int, default=720, help='pixels')
  parser.add_argument('--width', type=int, default=1280, help='pixels')
  parser.add_argument('--runs', type=int, default=5, help='timed frames')
  parser.add_argument('--threads', type=int, default=2, help='of PyTorch')
  args = parser.parse_args()
  peaks = {
    dtype: peak_gmacs(dtype, threads=args.threads)
    for dtype in ('float32', 'bfloat16')
    if dtype in args.dtypes
    and 'torch' in args.runtimes
    and measure.is_installed('torch')
  }
  settings = {
    'runs': args.runs, 'threads': args.threads, 'peak_gmacs_per_s': peaks
  }  # fmt: skip
  measure.report(
    'One frame',
    measure.of_networks(measure_network, args, peaks),
    lambda rows: settings | ratios(rows, peaks),
  )


if __name__ == '__main__':
  main()
