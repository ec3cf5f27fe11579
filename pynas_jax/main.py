r"""The command line: flags to task.

  python -m pynas_jax.main --config=configs/search.py --workdir=runs/search

Settings can be changed by `--config.train.num_steps=100`. The same command
again goes on where it was stopped. The config file is Python and is run: use
your own or ours, not one from a stranger.
"""

from __future__ import annotations

from pathlib import Path
import sys
from typing import Any

from absl import flags
from absl import logging
import ml_collections
from ml_collections import config_flags

from pynas_jax import api
from pynas_jax import config as config_lib
from pynas_jax import logbook
from pynas_jax import train as train_lib
from pynas_jax.deploy import restorer as restorer_lib
from pynas_jax.genotype import nearest

_USAGE = 'python -m pynas_jax.main --config=configs/search.py [--workdir=DIR]'
_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Settings, a file such as configs/search.py:variant.'
)
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
  rows = [(f'{t["scheme"]}: PSNR', t['psnr']) for t in result.trials]
  rows += list(api.describe_size(result.genotype).items())
  logbook.say(result.genotype.describe())
  logbook.table(f'Found in {workdir}', rows)


def _train(config: ml_collections.ConfigDict, workdir: Path) -> None:
  genotype = restorer_lib.read_genotype(config.genotype or workdir)
  restorer = api.train(genotype, config, workdir=workdir)
  _evaluate_restorer(restorer, config, workdir)


def _evaluate(config: ml_collections.ConfigDict, workdir: Path) -> None:
  if config.genotype:
    raise config_lib.SettingError(
      f'genotype is {config.genotype!r}, an architecture without weights; set '
      'checkpoint to a trained network to score it.'
    )
  restorer = api.load(config.checkpoint or workdir)
  _evaluate_restorer(restorer, config, workdir)


def _evaluate_restorer(restorer, config, workdir) -> None:
  means = api.evaluate(restorer, config, workdir=workdir)
  report = api.make_report(restorer, config, means)
  api.write_json(workdir / api.REPORT, report)
  _show(f'Scores in {workdir}', report)


def _benchmark(config: ml_collections.ConfigDict, workdir: Path) -> None:
  if config.genotype:  # Time does not depend on what the weights are.
    restorer = api.untrained(restorer_lib.read_genotype(config.genotype))
  else:
    restorer = api.load(config.checkpoint or workdir)
  timing = api.time_restorer(restorer, config)
  workdir.mkdir(parents=True, exist_ok=True)
  report = {
    'genotype': restorer.genotype.to_dict(),
    **api.describe_size(restorer.genotype),
    'latency_720p_ms': timing,
    'versions': api.versions(),
    'commit': api.commit(),
  }
  api.write_json(workdir / 'benchmark.json', report)
  _show(f'Timing in {workdir}', report)


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


def main(argv: list[str]) -> None:
  """Runs the task that the config's `mode` names."""
  if len(argv) > 1:
    raise config_lib.SettingError(
      f'{argv[1]!r} is not a flag. Usage: {_USAGE}'
    )
  if _CONFIG.value is None:
    raise config_lib.SettingError(f'--config is missing. Usage: {_USAGE}')
  logging.set_verbosity(logging.WARNING)
  config = _CONFIG.value
  if not isinstance(config, ml_collections.ConfigDict):
    path = config_flags.get_config_filename(flags.FLAGS['config'])
    files = [str(file) for file in Path(path).parent.glob('*.py')]
    raise config_lib.SettingError(
      f'--config is {path!r}, which is no readable config file.'
      + nearest(path, files)
    )
  config_lib.validate(config)
  workdir = Path(_WORKDIR.value or f'runs/{config.mode}')
  TASKS[config.mode](config, workdir)


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; says what is wrong with one, and what is near to it."""
  try:
    return flags.FLAGS(argv)
  except AttributeError as error:
    # What ml_collections raises for a setting that does not exist.
    message = str(error).strip('"\'')
    known = list(config_lib.flatten(config_lib.base()))
    wrong = [
      a.removeprefix('--config.').removeprefix('-config.').partition('=')[0]
      for a in argv
      if a.lstrip('-').startswith('config.')
    ]
    wrong = [name for name in wrong if name not in known]
    if wrong:
      message = f'{wrong[0]!r} is not a setting.' + nearest(wrong[0], known)
    raise config_lib.SettingError(message) from None
  except (flags.Error, TypeError, ValueError) as error:
    # A config file's own error comes wrapped in its traceback.
    message = str(error).rpartition('SettingError: ')[2].strip()
    raise config_lib.SettingError(message) from None


def run() -> None:
  """Entry point of `pynas-jax`; bad input ends it with status 2."""
  try:
    main(_parse(sys.argv))
  except ValueError as error:
    # Settings, genotypes, checkpoints and data each say what is wrong.
    if type(error).__module__.partition('.')[0] != 'pynas_jax':
      raise
    print(f'Error: {error}', file=sys.stderr)
    sys.exit(2)
  except train_lib.TrainingError as error:
    print(f'Error: {error}', file=sys.stderr)
    sys.exit(1)


if __name__ == '__main__':
  run()
