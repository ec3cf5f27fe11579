"""HiNAS on BSD500 and on super-resolution: search, train, score.

  python -m experiments.hinas.run --task=denoise --sigma=30 \
    --train=BSDS500 --out=runs/hinas/sigma30 --epochs=100 --steps=400000
  python -m experiments.hinas.run --task=super_resolution --scale=4 \
    --train=photos --test set5=Set5 set14=Set14 --out=runs/hinas/x4

`--train` is BSD500 for denoising, whose test images are scored, and a folder of
photographs for super-resolution. At the paper's settings but for what the flags
shorten; a crop or width given is for search and training alike, a batch for the
training. With `--genotype` nothing is searched. Stopped, the same command goes
on. What was found and scored is in results.json of the folder. See README.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
import time
from typing import Any

import ml_collections

from pynas_jax import api
from pynas_jax import config as config_lib
from pynas_jax import logbook
from pynas_jax.deploy import restorer as restorer_lib

RESULTS = 'results.json'


def make_config(args: argparse.Namespace) -> ml_collections.ConfigDict:
  """Returns the settings of search and training."""
  c = config_lib.hinas(args.task, sigma=args.sigma, scale=args.scale)
  denoise = args.task == 'denoise'
  c.data.name, c.data.root = 'bsd500' if denoise else 'folder', str(args.train)
  c.data.prepared_dir = str(args.out / 'prepared')
  c.seed = args.seed
  s, t = c.search, c.train
  epoch = s.num_steps // 100
  s.num_steps, s.warmup_steps = epoch * args.epochs, epoch * args.epochs // 5
  s.first_score = epoch * (args.epochs * 3 // 5) + 1
  t.num_steps = args.steps
  t.eval_every = max(1, min(t.eval_every, args.steps // 10))
  for name, value in (('width', args.width), ('stem_width', args.stem_width)):
    if value:
      c.hinas[name] = value
  if args.batch:
    t.batch_size = args.batch
  if args.crop:
    c.data.crop, c.data.eval_crop = args.crop, 4 * args.crop
  if args.adam:  # Sooner good in few steps than the paper's SGD.
    t.optimizer, t.lr, t.schedule = 'adam', args.adam, 'cosine'
    t.clip_norm = 1.0
    c.model.zero_init_last = True
  if args.loss:
    t.loss = args.loss
  return c


def score(
  restorer: restorer_lib.Restorer,
  config: ml_collections.ConfigDict,
  args: argparse.Namespace,
) -> dict[str, dict[str, float]]:
  """Returns the mean scores of each data set."""
  tests = dict(text.split('=', 1) for text in args.test)
  if args.task == 'denoise':
    tests = {'bsd500': str(args.train)} | tests
  scores = {}
  for name, root in tests.items():
    own = config.copy_and_resolve_references()
    own.data.name, own.data.root = name, root
    for kind, patch in (('whole', 0), ('patches', 64 * args.scale)):
      own.data.eval_patch = patch
      workdir = args.out / 'scores' / f'{name}-{kind}-{args.steps}'
      scores[f'{name}, {kind}'] = api.evaluate(restorer, own, workdir=workdir)
  return scores


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Searches, trains and scores; returns what results.json holds."""
  config = make_config(args)
  began, searched = time.monotonic(), {}
  if args.genotype:
    genotype = restorer_lib.read_genotype(args.genotype)
  else:
    found = api.search(config, workdir=args.out / 'search')
    genotype, (trial,) = found.genotype, found.trials
    searched = {'search_seconds': found.seconds, 'trial': trial}
  restorer = api.train(genotype, config, workdir=args.out / 'train')
  results = {
    'flags': {k: str(v) for k, v in vars(args).items()},
    'genotype': genotype.to_dict(),
    **api.describe_size(genotype),
    **searched,
    # Of this session: what one that was stopped took is not in it.
    'session_seconds': time.monotonic() - began,
    'scores': score(restorer, config, args),
    'commit': api.commit(),
    'versions': api.versions(),
  }
  logbook.write_json(args.out / RESULTS, results)
  return results


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Returns the flags."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  add = parser.add_argument
  tasks = ('denoise', 'super_resolution')
  add('--task', choices=tasks, required=True)
  add('--sigma', type=float, default=30.0, help='of the noise, of 255')
  add('--scale', type=int, default=1, help='of super-resolution')
  add('--train', type=Path, required=True, help='folder of images')
  add('--test', nargs='*', default=[], help='data set=folder')
  add('--out', type=Path, required=True, help='of all results')
  add('--genotype', default='', help='architecture, to search none')
  add('--epochs', type=int, default=100, help='of the search')
  add('--steps', type=int, default=400_000, help='of the training')
  add('--width', type=int, default=0, help="channels; 0 is the paper's")
  add('--stem_width', type=int, default=0, help='likewise')
  add('--batch', type=int, default=0, help="of the training; 0 is the paper's")
  add('--crop', type=int, default=0, help="pixels; 0 is the paper's")
  add('--adam', type=float, default=0.0, help='learning rate; 0 is SGD')
  add('--loss', default='', help="of the training; '' is the paper's")
  add('--seed', type=int, default=0)
  args = parser.parse_args(argv)
  for text in args.test:
    if '=' not in text:
      parser.error(f'--test is {text!r}; expected a data set=folder')
  return args


def main() -> None:
  """Runs, and prints the scores."""
  args = parse_args()
  for name, means in run(args)['scores'].items():
    logbook.table(name, list(means.items()))


if __name__ == '__main__':
  main()
