"""The datasets that can be prepared, by the name of the setting `data.name`."""

from __future__ import annotations

from pathlib import Path
import types

import ml_collections
import tensorflow_datasets as tfds

from pynas_jax import config as config_lib
from pynas_jax import logbook
from pynas_jax.data.builders import base
from pynas_jax.data.builders import deblurring
from pynas_jax.data.builders import restoration

DATASETS = types.MappingProxyType({
  builder.name: builder
  for builder in (
    deblurring.Gopro, deblurring.VideoDeblurring, deblurring.Kohler,
    deblurring.Reds, deblurring.Realblur, restoration.Rain800,
    restoration.SiddMedium, restoration.Bsd500, restoration.Div2k,
    restoration.Set5, restoration.Set14, restoration.Urban100,
    restoration.Bsd100, restoration.Set12, restoration.Bsd68,
    restoration.Kodak24, restoration.Live1, restoration.Classic5,
  )
})  # fmt: skip


def prepare(
  data: ml_collections.ConfigDict, *, tiles: bool = False
) -> base.Prepared:
  """Opens a dataset, and prepares it the first time.

  Args:
    data: The settings `config.data`; reads `name`, `root`, `subset` and
      `prepared_dir`.
    tiles: Whether its training images are cut into tiles.

  Returns:
    The dataset.

  Raises:
    SettingError: Says how to get the dataset if it is neither prepared nor in
      `data.root`, and lists what is wrong with its files.
  """
  cls = DATASETS[data.name]
  subset = data.subset or cls.SUBSETS[0]
  config = next(
    (c for c in cls.BUILDER_CONFIGS if (c.subset, c.tiles) == (subset, tiles)),
    None,
  )
  if config is None:
    raise config_lib.SettingError(
      f'data.subset is {subset!r}; {data.name} has '
      f'{" and ".join(map(repr, cls.SUBSETS))}.'
    )
  options = {'config': config.name, 'file_format': 'array_record'}
  if data.prepared_dir:
    options['data_dir'] = str(Path(data.prepared_dir).expanduser())
  builder = cls(**options)
  if not builder.data_path.exists():
    root = Path(data.root).expanduser()
    if not data.root or not root.is_dir():
      raise config_lib.SettingError(
        f'data.root is {data.root!r}, no folder. {cls.instructions()}'
      )
    logbook.say(f'preparing {data.name}/{config.name} in {builder.data_path}')
    tfds.disable_progress_bar()
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(manual_dir=str(root)),
      file_format='array_record',
    )
    builder = cls(**options)
  return base.Prepared(builder)
