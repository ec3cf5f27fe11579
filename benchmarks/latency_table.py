"""How well the latency table predicts the time of whole networks.

  python -m benchmarks.latency_table [--number=10] [--width=32]

Random networks of the PyNAS space are predicted from the times of their layers
and timed whole, one after another, on the device at hand. The last line is one
JSON object.
"""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np

from benchmarks import measure
from pynas_jax import config as config_lib
from pynas_jax import genotype as genotype_lib
from pynas_jax import latency
from pynas_jax.genotype import PyramidGenotype
from pynas_jax.genotype import ScaleGenotype

SCHEMES = ('1', '1-2', '1-4', '1-2-4', '1-3')


def random_genotype(
  rng: np.random.Generator, *, width: int, unshuffle: int
) -> PyramidGenotype:
  """Returns a network of the space, every choice as likely as another."""
  operators = config_lib.base().model.candidates
  scales = []
  for patches in genotype_lib.parse_scheme(rng.choice(SCHEMES)):
    encoder, decoder = rng.choice(operators, (2, 3)).tolist()
    scales.append(ScaleGenotype(patches, tuple(encoder), tuple(decoder)))
  widths = (width, 2 * width, 4 * width)
  return PyramidGenotype(tuple(scales), widths, 1, unshuffle=unshuffle)


def main() -> None:
  """Prints the comparison."""
  parser = measure.make_parser(__doc__)
  parser.add_argument('--number', type=int, default=10, help='of networks')
  parser.add_argument('--width', type=int, default=32, help='first stage')
  parser.add_argument('--unshuffle', type=int, default=2, help='1, 2 or 4')
  parser.add_argument('--size', default='720x1280', help='of the frame, HxW')
  args = parser.parse_args()
  height, width = map(int, args.size.split('x'))
  rng = np.random.default_rng(0)
  genotypes = [
    random_genotype(rng, width=args.width, unshuffle=args.unshuffle)
    for _ in range(args.number)
  ]
  with tempfile.TemporaryDirectory() as folder:
    lookup = latency.LatencyTable(
      pathlib.Path(folder) / 'latency.json', height=height, width=width
    )
    rows = latency.validate(lookup, genotypes)
  worst = max(abs(row['error']) for row in rows)
  measure.report('Latency', rows, vars(args) | {'worst_error': worst})


if __name__ == '__main__':
  main()
