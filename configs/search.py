"""Searches an architecture.

  python -m pynas_jax.main --config=configs/search.py
  python -m pynas_jax.main --config=configs/search.py:gopro \
    --config.data.root=downloads --workdir=runs/gopro

  python -m pynas_jax.main --config=configs/search.py:denoise30 \
    --config.data.root=BSDS500 --workdir=runs/denoise30

Variants: none searches two schemes on the bundled photographs in minutes on a
laptop; `gopro` has the settings of the PyNAS paper (PyNAS_d: cells per scale),
`gopro_s` those of PyNAS_s (one cell structure and one set of weights for all
scales); `box` those of the package's own networks (`experiments/box`);
`denoise30`, 50 and 70 those of HiNAS on BSD500, `sr2`, 3 and 4 those on DIV2K
(or a `folder` of photographs); `tiny` runs in seconds.
"""

from pynas_jax import config as config_lib


def get_config(arg: str = ''):
  """Returns the settings of a search."""
  make = {
    '': config_lib.base,
    'gopro': config_lib.paper,
    'gopro_s': config_lib.paper,
    'box': config_lib.box,
    **config_lib.HINAS,
    'tiny': lambda: config_lib.shrink(config_lib.base()),
  }
  c = config_lib.variant(arg, make)()
  c.mode = 'search'
  if arg == 'gopro_s':
    c.model.share = 'weights'
  return c
