"""Commands that take a config file: flags to settings, errors to exit status.

Settings can be changed by `--config.train.num_steps=100`. The config file is
Python and is run: use your own or ours, not one from a stranger.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
import re
import shlex
import signal
import sys

from absl import flags
from absl import logging
import ml_collections
from ml_collections import config_flags

from pynas_jax import config as config_lib
from pynas_jax.genotype import nearest

_USAGE = 'python -m pynas_jax.main --config=configs/search.py [--workdir=DIR]'
_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Settings, a file such as configs/search.py:variant.'
)
# Where configs/ is in a wheel, and in a clone.
_CONFIGS = tuple(Path(__file__).parents[i] / 'configs' for i in range(2))


def _locate(argument: str) -> str:
  """Returns `--config=configs/...` as our file, if there is none here."""
  match = re.fullmatch(r'((?:--?config=)?)configs/(\w+\.py)(.*)', argument)
  if match and not Path('configs', match[2]).exists():
    for folder in _CONFIGS:
      if (folder / match[2]).is_file():
        return f'{match[1]}{folder / match[2]}{match[3]}'
  return argument


def parse(argv: list[str]) -> ml_collections.ConfigDict:
  """Returns the settings that a command line asks for, checked.

  Raises:
    SettingError: Names a flag or setting that is wrong, and what is near to it.
  """
  try:
    rest = flags.FLAGS([_locate(each) for each in argv])[1:]
  except (AttributeError, KeyError) as error:
    # What ml_collections raises for settings and groups that do not exist.
    known = list(config_lib.flatten(config_lib.base()))
    wrong = [
      a.removeprefix('--config.').removeprefix('-config.').partition('=')[0]
      for a in argv
      if a.lstrip('-').startswith('config.')
    ]
    wrong = [name for name in wrong if name not in known]
    if wrong:
      raise config_lib.SettingError(
        f'{wrong[0]!r} is not a setting.' + nearest(wrong[0], known)
      ) from None
    if 'get_config' not in str(error):
      raise  # Of the user's own file: its place says most.
    raise config_lib.SettingError(
      f'the config file of {shlex.join(argv[1:])} has no get_config(): '
      'write it as configs/search.py is written.'
    ) from None
  except (flags.Error, TypeError, ValueError) as error:
    # A config file's own error comes wrapped in its traceback.
    message = str(error).rpartition('SettingError: ')[2].strip()
    raise config_lib.SettingError(message) from None
  if rest:
    raise config_lib.SettingError(f'{rest[0]!r} is not a flag. Usage: {_USAGE}')
  config = _CONFIG.value
  if config is None:
    raise config_lib.SettingError(f'--config is missing. Usage: {_USAGE}')
  if not isinstance(config, ml_collections.ConfigDict):
    path = config_flags.get_config_filename(flags.FLAGS['config'])
    files = {str(file) for file in Path(path).parent.glob('*.py')} - {path}
    raise config_lib.SettingError(
      f'--config is {path!r}, which is no readable config file: one that has '
      'get_config(), such as configs/search.py, which is always there.'
      + nearest(path, sorted(files))
    )
  config_lib.validate(config)
  return config


def run(
  main: Callable[[ml_collections.ConfigDict], None],
  failures: tuple[type[Exception], ...] = (),
) -> None:
  """Runs a command.

  Args:
    main: Takes the settings.
    failures: Errors of a run that cannot go on, which end it with status 1,
      as a full disk does; bad input ends it with status 2, Ctrl-C with 130.
  """
  logging.set_verbosity(logging.WARNING)
  if {'-h', '--help'} & set(sys.argv[1:]):
    names = '\n  '.join(config_lib.flatten(config_lib.base()))
    print(f'Usage: {_USAGE}\n\nSettings, --config.NAME=VALUE:\n  {names}')
    return
  try:
    main(parse(sys.argv))
  except ValueError as error:
    # Settings, genotypes, checkpoints and data each say what is wrong.
    if type(error).__module__.partition('.')[0] != 'pynas_jax':
      raise
    print(f'Error: {error}', file=sys.stderr)
    sys.exit(2)
  except (*failures, OSError) as error:
    print(f'Error: {error}', file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    print('Stopped; the same command goes on.', file=sys.stderr)
    sys.exit(128 + signal.SIGINT)
