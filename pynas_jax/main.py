"""The command line: flags to task.

  python -m pynas_jax.main --config=configs/search.py --workdir=runs/search

Settings can be changed by `--config.train.num_steps=100`. The same command
again goes on where it was stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags
import ml_collections

from pynas_jax import api
from pynas_jax import caching
from pynas_jax import command
from pynas_jax import config as config_lib
from pynas_jax import logbook
from pynas_jax import train as train_lib
from pynas_jax.deploy import restorer as restorer_lib

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; runs/<mode> by default.'
)


def _show(title: str, report: dict[str, Any]) -> None:
  rows = []
  for name, value in report.items():
    if isinstance(value, dict):
      if name == 'latency_720p_ms':
        rows += [(f'latency: {key}', v) for key, v in value.items()]
    else:
      rows.append((name, value))
  logbook.table(title, rows)


def _search(config: ml_collections.ConfigDict, workdir: Path) -> None:
  result = api.search(config, workdir=workdir)
  rows = [
    (f'{t["trial"] + 1}: {t["scheme"]}, PSNR', t.get('psnr', 'failed'))
    for t in result.trials
  ]
  rows += list(api.describe_size(result.genotype).items())
  logbook.say(result.genotype.describe())
  logbook.table(f'Found in {workdir}', rows)


def _train(config: ml_collections.ConfigDict, workdir: Path) -> None:
  start, params = config.train.start_from, None
  if start and not config.genotype:
    trained = api.load(start)
    genotype, params = trained.genotype, trained.params
  else:
    genotype = restorer_lib.read_genotype(config.genotype or workdir)
  restorer = api.train(genotype, config, workdir=workdir, params=params)
  _evaluate_restorer(restorer, config, workdir)


def _evaluate(config: ml_collections.ConfigDict, workdir: Path) -> None:
  config_lib.refuse(
    config, 'genotype',
    reason='an architecture has no weights; set checkpoint to a trained '
    'network to score it',
  )  # fmt: skip
  if Path(config.checkpoint or workdir).resolve() == workdir.resolve():
    config.checkpoint = ''  # As the run that trained it.
  # In the arithmetic that a training scores it in.
  restorer = api.load(config.checkpoint or workdir, dtype=config.train.dtype)
  _evaluate_restorer(restorer, config, workdir)


def _evaluate_restorer(restorer, config, workdir) -> None:
  means = api.evaluate(restorer, config, workdir=workdir)
  # What is known of it already, such as its time, remains.
  known = restorer_lib.read_report(workdir, restorer.genotype)
  report = known | api.make_report(restorer, config, means)
  api.write_json(workdir / restorer_lib.REPORT, report)
  _show(f'Scores in {workdir}', report)


def _benchmark(config: ml_collections.ConfigDict, workdir: Path) -> None:
  if config.genotype:
    config_lib.refuse(
      config, 'checkpoint', reason='genotype names what is to be timed'
    )
    # Time does not depend on what the weights are.
    restorer = api.untrained(restorer_lib.read_genotype(config.genotype))
  else:
    restorer = api.load(config.checkpoint or workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  timings = api.compare_backends(restorer, config)
  report = {
    'genotype': restorer.genotype.to_dict(),
    **api.describe_size(restorer.genotype),
    'timings': timings,
    'versions': api.versions(),
    'commit': api.commit(),
  }
  api.write_json(workdir / 'benchmark.json', report)
  for timing in timings:
    title = f'{timing.pop("backend")}, in {workdir}'
    logbook.table(title, list(timing.items()))


def _pipeline(config: ml_collections.ConfigDict, workdir: Path) -> None:
  result = api.derive_and_train(config, workdir=workdir)
  logbook.say(result.genotype.describe())
  _show(f'Report in {workdir}', result.report)


TASKS = {
  'search': _search,
  'train': _train,
  'evaluate': _evaluate,
  'benchmark': _benchmark,
  'pipeline': _pipeline,
}


def main(config: ml_collections.ConfigDict) -> None:
  """Runs the task that the config's `mode` names."""
  workdir = Path(_WORKDIR.value or f'runs/{config.mode}')
  TASKS[config.mode](config, workdir)


def run() -> None:
  """Entry point of `pynas-jax`."""
  caching.keep_compiled_programs()
  command.run(main, failures=(train_lib.TrainingError,))


if __name__ == '__main__':
  run()
