"""Times a trained network on a 720p frame.

  python -m pynas_jax.main --config=configs/benchmark.py \
    --config.checkpoint=runs/demo

Time is synchronised; compilation and copies are reported apart.
"""

from pynas_jax import config as config_lib


def get_config():
  """Returns the settings of a timing."""
  c = config_lib.base()
  c.mode = 'benchmark'
  return c
