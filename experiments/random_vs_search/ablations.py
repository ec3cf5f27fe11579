"""What each part of the search is worth: one row for each.

  python -m experiments.random_vs_search.ablations --pairs=pairs \
    --photos=bsds500 --out=runs/ablations --width=8 --trials=1

Every row is a search with one thing changed, and trainings of what it found,
as in `run`. The scheme is 1-2 unless the row says otherwise, so that nothing
else differs. Stopped, the same command goes on.
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
  # Of the others, none stops early.
  'early stopping': {'search.patience': 1, 'search.eval_every': 100},
  'even scheme 1-4': {'search.schemes': ('1-4',)},
  'odd scheme 1-3': {'search.schemes': ('1-3',)},
  'no global residual': {'model.global_residual': False},
}


def main() -> None:
  """Runs the rows and writes ablations.json."""
  args = run.parse_args(__doc__)
  rows = []
  for name, settings in ROWS.items():
    config = run.make_config(args)
    config.search.schemes = ('1-2',)
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
