"""Writes a network for other runtimes, and checks what was written.

  python -m pynas_jax.deploy.export --model=runs/demo --format=onnx \
    --size=720x1280 --out=demo.onnx

Formats: `onnx`; `openvino`, an IR of two files; `stablehlo`, portable MLIR
bytecode for CPU and CUDA; `saved`, the same as `jax.export` keeps it, which
`load_saved` runs without the code of the network. Images are uint8 or float32
[B, H, W, 3] as everywhere. At a fixed size one image of any size is padded
inside. Where the size is open, height and width must be multiples of what the
network cuts them into, which is printed: pad before, crop after.

What was written is read again (except for MLIR, which is checked before it is
written) and restores a blurred photograph: in float32 it must agree with XLA,
in bfloat16 and int8 its PSNR must. In int8, which is for `onnx` and `openvino`,
inputs and kernels of convolutions are written as QuantizeLinear and
DequantizeLinear, calibrated by the photographs of the package. Written on x86
without VNNI, kernels have 7 bits, which are right anywhere; those of 8 are not
on such processors.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
import math
from pathlib import Path
import re
import signal
import sys
import tempfile

import jax
from jax import export
import numpy as np

from pynas_jax import interruption
from pynas_jax.deploy import backends
from pynas_jax.deploy import release
from pynas_jax.deploy import restorer as restorer_lib
from pynas_jax.deploy.backends import BackendError
from pynas_jax.deploy.backends import Network
from pynas_jax.spaces import space_of

Run = Callable[[np.ndarray], np.ndarray]
PLATFORMS = ('cpu', 'cuda')
SUFFIXES = {
  'stablehlo': '.mlir', 'onnx': '.onnx', 'openvino': '.xml', 'saved': '.jax',
}  # fmt: skip
DTYPES = {'f32': 'float32', 'bf16': 'bfloat16', 'int8': 'int8'}
OPEN_SIZE = (96, 128)  # A size to check at where any may come.


def parse_size(text: str) -> tuple[int, int] | None:
  """Reads height and width, or None for 'dynamic'.

  >>> parse_size('720x1280'), parse_size('dynamic')
  ((720, 1280), None)
  """
  if text == 'dynamic':
    return None
  match = re.fullmatch(r'([1-9]\d{0,4})x([1-9]\d{0,4})', text)
  if not match:
    raise BackendError(
      f"size is {text!r}; expected height x width such as 720x1280, or "
      "'dynamic'."
    )
  return int(match[1]), int(match[2])


def write(
  network: Network,
  path: str | Path,
  *,
  format: str,
  size: tuple[int, int] | None = None,
  image_dtype: str = 'uint8',
) -> dict[str, float]:
  """Writes a network and checks the file.

  Args:
    network: The network, with the type of its arithmetic.
    path: File to write; gets the suffix of its format, in the place of that of
      another, or at its end.
    format: Key of `SUFFIXES`.
    size: Height and width in pixels; None leaves them and the batch open.
    image_dtype: Of images, 'uint8' or 'float32'.

  Returns:
    `max_difference` from XLA in float32, of values in [0, 1], and
    `psnr_change_db`.

  Raises:
    BackendError: If the format has no such type, or if the file is wrong; it is
      not left behind.
  """
  path = path_of(path, format)
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path.parent, prefix='.export') as folder:
    partial = Path(folder) / path.name
    run = WRITERS[format](network, partial, size, np.dtype(image_dtype))
    figures = backends.check_close(
      network, run, _check_size(network, size), np.dtype(image_dtype),
      what='What was written',
      remedy=f'Try {"" if size else "a fixed size, "}another format or type.',
    )  # fmt: skip
    for file in sorted(Path(folder).iterdir()):
      file.replace(path.parent / file.name)
  return figures


def path_of(path: str | Path, format: str) -> Path:
  """Returns the file that a format is written to.

  >>> str(path_of('net-1.5', 'onnx')), str(path_of('net.onnx', 'saved'))
  ('net-1.5.onnx', 'net.jax')

  Args:
    path: As asked for: with the suffix of the format, of another, or none.
    format: Key of `SUFFIXES`.

  Raises:
    BackendError: If it is a folder.
  """
  path = Path(path)
  stem = path.with_suffix('') if path.suffix in SUFFIXES.values() else path
  for each in (path, file := Path(f'{stem}{SUFFIXES[format]}')):
    if each.is_dir():
      raise BackendError(f'out is {each}, a folder; expected a file to write.')
  return file


def _check_size(network: Network, size) -> tuple[int, int]:
  """Returns a size to check at, where any may come."""
  if size is not None:
    return size
  multiple = space_of(network.genotype).multiple(network.genotype)
  rows, cols = (
    math.ceil(n / m) * m for n, m in zip(OPEN_SIZE, multiple, strict=True)
  )
  return rows, cols


def _exported(network: Network, size, dtype) -> export.Exported:
  if network.dtype == 'int8':
    raise BackendError(
      'int8 is for formats onnx and openvino; use one of them, f32 or bf16.'
    )
  if size is None:
    rows, cols = space_of(network.genotype).multiple(network.genotype)
    shape = export.symbolic_shape(f'b, {rows}*h, {cols}*w, 3')
  else:
    shape = (1, *size, 3)
  restore = backends.make_restore(network.genotype, dtype=network.dtype)
  params = jax.device_get(network.params)
  return export.export(
    jax.jit(lambda image: restore(params, image)), platforms=PLATFORMS
  )(jax.ShapeDtypeStruct(shape, dtype))


def _stablehlo(network: Network, path: Path, size, dtype) -> Run:
  exported = _exported(network, size, dtype)
  path.write_bytes(exported.mlir_module_serialized)
  return exported.call


def _saved(network: Network, path: Path, size, dtype) -> Run:
  try:
    content = _exported(network, size, dtype).serialize()
  except ImportError as error:
    raise BackendError(f"{error}: pip install 'pynas-jax[export]'.") from None
  path.write_bytes(content)
  return load_saved(path)


def load_saved(path: str | Path) -> Run:
  """Returns the function of a file of format `saved`.

  JAX reads such a file for 6 months of versions; a release folder is for ever.

  Args:
    path: The file. It holds a program: only load what you trust.
  """
  exported = export.deserialize(bytearray(Path(path).read_bytes()))
  return lambda image: np.asarray(exported.call(image))


def _onnx(network: Network, path: Path, size, dtype) -> Run:
  if network.dtype == 'bfloat16':
    raise BackendError(
      'ONNX Runtime has no bfloat16 convolutions on CPUs; use f32, or format '
      'openvino.'
    )
  path.write_bytes(backends.export_onnx(network, dtype, size=size))
  return backends.open_onnx(path)


def _openvino(network: Network, path: Path, size, dtype) -> Run:
  openvino = backends.need('openvino')
  content = backends.export_onnx(network, dtype, size=size)
  model = openvino.Core().read_model(content)
  try:
    openvino.save_model(model, path, compress_to_fp16=False)
  except RuntimeError as error:  # Its own kind, as of a full disk.
    raise OSError(f'{path.name} cannot be written: {error}') from None
  # But for 8 bits, the type is chosen when an IR is compiled, by this hint.
  return backends.open_openvino(path, network.dtype)


WRITERS = {
  'stablehlo': _stablehlo, 'onnx': _onnx, 'openvino': _openvino,
  'saved': _saved,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit status: 2 bad input, 1 a disk that fails, 130 stopped."""
  parser = argparse.ArgumentParser(
    prog='python -m pynas_jax.deploy.export', allow_abbrev=False,
    description='Writes a network for other runtimes, and checks the file.',
  )  # fmt: skip
  add = parser.add_argument
  add('--model', required=True, help='workdir, checkpoint, release folder, or '
      f'name: {", ".join(release.shipped()) or "none yet"}')  # fmt: skip
  add('--out', required=True, help='file to write')
  add('--format', required=True, choices=SUFFIXES)
  add('--dtype', default='f32', choices=DTYPES, help='of the arithmetic')
  add('--size', default='dynamic', help='720x1280, or dynamic, the default')
  add('--image', default='uint8', choices=('uint8', 'float32'),
      help='type of images; float32 for more than 8 bits')  # fmt: skip
  args = parser.parse_args(argv)
  try:
    size = parse_size(args.size)
    path_of(args.out, args.format)
    restorer = restorer_lib.load(args.model)
    network = Network(restorer.genotype, restorer.params, DTYPES[args.dtype])
    with interruption.stopped_by_sigterm():
      figures = write(
        network, args.out, format=args.format, size=size, image_dtype=args.image
      )
  except ValueError as error:
    if type(error).__module__.partition('.')[0] != 'pynas_jax':
      raise
    print(f'Error: {error}', file=sys.stderr)
    return 2
  except OSError as error:
    print(f'Error: {error}', file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print('Stopped; nothing was written.', file=sys.stderr)
    return 128 + signal.SIGINT
  print(
    f'{path_of(args.out, args.format)}: differs from XLA by '
    f'{figures["max_difference"]:.2g} and {figures["psnr_change_db"]:+.4f} dB'
  )
  if args.format == 'openvino' and args.dtype != 'int8':
    print(f"compile it with INFERENCE_PRECISION_HINT='{args.dtype}': the file "
          'is the same for f32 and bf16')  # fmt: skip
  if size is None:
    rows, cols = space_of(network.genotype).multiple(network.genotype)
    print(f'height must be a multiple of {rows}, width of {cols}')
    if args.dtype == 'int8':
      print('in OpenVINO, fix the size before compiling: in int8, it is wrong '
            'at open sizes on some processors')  # fmt: skip
  return 0


if __name__ == '__main__':
  sys.exit(main())
