"""Does a supernet rank networks as their own training does?

  python -m experiments.random_vs_search.correlation --pairs=pairs \
    --photos=bsds500 --out=runs/correlation

Networks of one scale are drawn at random. Each is scored by the supernet with
one-hot gates, and by its own training from the beginning, and from the weights
that the supernet gives it. Kendall's tau compares the orders.
"""

from __future__ import annotations

import jax
import numpy as np
from scipy import stats

from experiments.random_vs_search import run
from pynas_jax import api
from pynas_jax import logbook as logbook_lib
from pynas_jax import spaces
from pynas_jax import train as train_lib
from pynas_jax.data import pipeline
from pynas_jax.nn import gates
from pynas_jax.search import bilevel

STAGE = 'scale1'


def main() -> None:
  """Runs the comparison and writes correlation.json."""
  args = run.parse_args(__doc__)
  config = run.make_config(args)
  # The supernet is trained with all operators as likely, as in a warm-up.
  config.search.warmup_steps = config.search.num_steps = 2000
  space = spaces.make_space(config)
  draft = space.draft((1,))
  with logbook_lib.Logbook(args.out) as logbook:
    stage = bilevel.search_stage(
      space, draft, STAGE, config, key=jax.random.key(0), params={},
      workdir=args.out, logbook=logbook, name='supernet',
    )  # fmt: skip
    supernet = space.supernet(draft, STAGE)
    score = train_lib.make_score(supernet)
    held_out = pipeline.validation_batch(config)
    rng = np.random.default_rng(5)
    rows = []
    for i in range(args.number):
      choice = rng.integers(len(space.operators), size=space.num_edges)
      alphas = jax.nn.one_hot(choice, len(space.operators))
      genotype = space.genotype(space.derive(draft, STAGE, alphas))
      row = {
        'cells': genotype.scales[0].cells,
        'supernet': score(stage.params, held_out, gates.argmax(alphas)),
      }
      for name, params in (('alone', None), ('inherited', stage.params)):
        row[name] = train_lib.train(
          genotype, config, directory=args.out / f'{i}-{name}-{args.steps}',
          logbook=logbook, stage=f'{i}-{name}', params=params,
        ).psnr  # fmt: skip
      rows.append(row)
      logbook_lib.say(str(row))
  tau = {
    name: stats.kendalltau(
      [row['supernet'] for row in rows], [row[name] for row in rows]
    )
    for name in ('alone', 'inherited')
  }
  api.write_json(
    args.out / 'correlation.json',
    {
      'steps': args.steps,
      'rows': rows,
      'kendall_tau': {k: float(v.statistic) for k, v in tau.items()},
      'p_value': {k: float(v.pvalue) for k, v in tau.items()},
      'versions': api.versions(),
      'commit': api.commit(),
    },
  )


if __name__ == '__main__':
  main()
