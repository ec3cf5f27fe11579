"""Scores the networks in the box in 8 bits.

  python -m experiments.box.int8 --data=data/test [--names fast quality]

The pairs are those of `experiments.box.release`, whose scores in float32 are
beside. Writes int8.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
from pathlib import Path

from experiments.box import release as box
from pynas_jax import api
from pynas_jax import logbook
from pynas_jax.deploy import release
from pynas_jax.deploy.restorer import Restorer


def compare(name: str, data: Path) -> list[dict]:
  """Returns a row for each kind of test pair, with both PSNRs.

  Args:
    name: Of a network in the box.
    data: Of `make_data`.
  """
  card = json.loads((box.HERE / f'{name}.json').read_text())
  before = {row['pairs']: row for row in card['rows']}
  restorer = Restorer.from_pretrained(
    release.MODELS / name, dtype='int8', backend='openvino'
  )
  rows = []
  for row in box.score(restorer, data):
    known = before.get(row['pairs'], {})
    if known.get('number') != row['number']:
      raise SystemExit(
        f'{data} has {row["number"]} pairs of {row["pairs"]!r}; expected '
        f'{known.get("number", 0)}, those that {name}.json is of.'
      )
    rows.append(
      {'pairs': row['pairs'], 'number': row['number'],
       'psnr_float32': known['psnr'], 'psnr_int8': row['psnr'],
       'ssim_float32': known['ssim'], 'ssim_int8': row['ssim']}
    )  # fmt: skip
  return rows


def main(argv: Sequence[str] | None = None) -> None:
  """Scores and writes."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--data', type=Path, required=True, help='of make_data')
  parser.add_argument(
    '--names', nargs='+', default=release.shipped(), help='of networks'
  )
  args = parser.parse_args(argv)
  results = {name: compare(name, args.data) for name in args.names}
  logbook.write_json(
    box.HERE / 'int8.json',
    {'rows': results, 'versions': api.versions(), 'commit': api.commit()},
  )
  for name, rows in results.items():
    for row in rows:
      logbook.say(f'{name}: {row}')


if __name__ == '__main__':
  main()
