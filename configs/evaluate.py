"""Scores a trained network on held-out images.

  python -m pynas_jax.main --config=configs/evaluate.py \
    --config.checkpoint=runs/demo

Variants: none scores on the bundled photographs, `gopro` on the test split of
GoPro (`--config.data.root=...`), `denoise30`, 50 and 70 on that of BSD500, and
`sr2`, 3 and 4 on Set5 (`--config.data.name=urban100` and so on). Whole images
are restored; `--config.data.eval_patch=64` cuts them up as HiNAS does.
"""

from pynas_jax import config as config_lib


def get_config(arg: str = ''):
  """Returns the settings of an evaluation."""
  make = {'': config_lib.base, 'gopro': config_lib.paper} | config_lib.HINAS
  c = config_lib.variant(arg, make)()
  c.mode = 'evaluate'
  if c.task == 'super_resolution':
    c.data.name = 'set5'
  return c
