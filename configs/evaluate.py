"""Scores a trained network on held-out images.

  python -m pynas_jax.main --config=configs/evaluate.py \
    --config.checkpoint=runs/demo

Variants: none scores on the bundled photographs, `gopro` on the test split of
GoPro (`--config.data.root=...`).
"""

from pynas_jax import config as config_lib


def get_config(arg: str = ''):
  """Returns the settings of an evaluation."""
  make = {'': config_lib.base, 'gopro': config_lib.paper}
  c = config_lib.variant(arg, make)()
  c.mode = 'evaluate'
  return c
