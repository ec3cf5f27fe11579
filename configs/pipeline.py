"""All in a row: search, derive, train, evaluate, time.

  python -m pynas_jax.main --config=configs/pipeline.py:demo --workdir=runs/demo

Variants: `demo` (or none) runs on the bundled photographs in minutes; `gopro`
and `gopro_s` have the settings of the PyNAS paper; `tiny` runs in seconds.
"""

from pynas_jax import config as config_lib


def get_config(arg: str = 'demo'):
  """Returns the settings of the whole pipeline."""
  make = {
    'demo': config_lib.base,
    'gopro': config_lib.paper,
    'gopro_s': config_lib.paper,
    'tiny': lambda: config_lib.shrink(config_lib.base()),
  }
  c = config_lib.variant(arg, make)()
  c.mode = 'pipeline'
  if arg == 'gopro_s':
    c.model.share = 'weights'
  return c
