"""Teaches a trained network to leave alone what is sharp.

  python -m experiments.box.finetune --run=runs/box --data=data/box_all \
    --out=runs/box_fine

`data` is what `make_data --keep=1` made: with all the pairs that hardly differ,
from which alone the network would have learnt the identity. See README.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pynas_jax import api
from pynas_jax import config as config_lib


def main() -> None:
  """Trains on, at a lower learning rate."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--run', type=Path, required=True, help='workdir')
  parser.add_argument('--data', type=Path, required=True, help='of make_data')
  parser.add_argument('--out', type=Path, required=True, help='new workdir')
  parser.add_argument('--steps', type=int, default=10_000)
  args = parser.parse_args()
  trained = api.load(args.run)
  api.train(
    trained.genotype, config_lib.box(), workdir=args.out,
    params=trained.params,
    data={'root': str(args.data), 'crop': 96, 'num_validation': 200},
    train={'num_steps': args.steps, 'eval_every': 1000, 'lr': 5e-4},
  )  # fmt: skip


if __name__ == '__main__':
  main()
