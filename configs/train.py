"""Trains an architecture from its beginning, and scores it.

  python -m pynas_jax.main --config=configs/train.py \
    --config.genotype=runs/search/genotype.json
  python -m pynas_jax.main --config=configs/train.py:gopro \
    --config.genotype=runs/gopro/genotype.json --config.data.root=downloads
  python -m pynas_jax.main --config=configs/train.py \
    --config.train.start_from=fast

The last goes on from a trained network instead.

Variants: none trains on the bundled photographs; `gopro` has the settings of
the PyNAS paper, `video_deblurring` the same on the data set of Su et al.;
`dmphn` trains the hand-made DMPHN(1-2-4-8) with them; `box` trains the
networks of the package (`experiments/box`); `denoise30`, 50 and 70 have those
of HiNAS on BSD500, `sr2`, 3 and 4 those on DIV2K; `tiny` runs in seconds.
"""

from pynas_jax import config as config_lib


def get_config(arg: str = ''):
  """Returns the settings of a training."""
  make = {
    '': config_lib.base,
    'gopro': config_lib.paper,
    'video_deblurring': config_lib.paper,
    'dmphn': lambda: config_lib.paper(odd=False),
    'box': config_lib.box,
    **config_lib.HINAS,
    'tiny': lambda: config_lib.shrink(config_lib.base()),
  }
  c = config_lib.variant(arg, make)()
  c.mode = 'train'
  if arg == 'video_deblurring':
    c.data.name = arg
  if arg == 'dmphn':
    c.genotype = 'dmphn'
    c.model.zero_init_last = False
  return c
