"""What each part of the search is worth: one row for each.

  python -m experiments.random_vs_search.ablations --pairs=pairs --out=runs/abl

Every row is a search with one thing changed, and trainings of what it found,
as in `run`. Stopped, the same command goes on.
"""

from __future__ import annotations

from experiments.random_vs_search import run
from pynas_jax import api
from pynas_jax import config as config_lib
from pynas_jax import logbook

ROWS = {
  'as it is': {},
  'alphas by one path': {'search.estimator': 'one_path'},
  'alphas by two paths': {'search.estimator': 'two_path'},
  'all scales at once': {'model.joint': True},
  'no early stopping': {'search.patience': 1000},
  'even schemes': {'search.schemes': ('1', '1-2', '1-4', '1-2-4', '1-2-8')},
  'odd schemes': {'search.schemes': ('1-3', '1-9', '1-3-9', '1-3-15')},
  'no global residual': {'model.global_residual': False},
}


def main() -> None:
  """Runs the rows and writes ablations.json."""
  args = run.parse_args(__doc__)
  rows = []
  for name, settings in ROWS.items():
    config = run.make_config(args)
    config_lib.override(config, settings)
    logbook.say(name)
    folder = name.replace(' ', '_')
    genotype = api.search(config, workdir=args.out / 'search' / folder).genotype
    rows += run.Runs(config, args).rows({name: genotype})
  api.write_json(
    args.out / 'ablations.json',
    {
      'steps': args.steps,
      'seeds': args.seeds,
      'rows': rows,
      'versions': api.versions(),
      'commit': api.commit(),
    },
  )


if __name__ == '__main__':
  main()
