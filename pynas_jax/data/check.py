"""Checks the images of a configuration before any work on them.

  python -m pynas_jax.data.check --config=configs/train.py \
    --config.data.name=folder --config.data.root=pairs

Prints what the splits hold, or everything that is wrong, with status 2. The
same check runs before search, training and evaluation.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import ml_collections

from pynas_jax import config as config_lib
from pynas_jax import logbook
from pynas_jax import metrics
from pynas_jax.data import faults as faults_lib
from pynas_jax.data import pipeline
from pynas_jax.data import sources

CHECKED = 'data_check.json'  # In a workdir: what was found to be good.


def check_data(
  config: ml_collections.ConfigDict,
  *,
  workdir: Path | None = None,
  splits: tuple[str, ...] = sources.SPLITS,
) -> None:
  """Checks all images that a run will read, and prepares its dataset.

  Args:
    config: All settings.
    workdir: Remembers files that were good, so that a run which resumes does
      not decode them all again.
    splits: Those that the run reads.

  Raises:
    SettingError: With everything that is wrong, or how to get the dataset.
  """
  data = config.data
  if data.name == 'folder':
    _check_folder(data, config.seed, workdir, splits)
  for split in splits:
    sources.make_source(data, split, seed=config.seed, task=config.task)
  trained = ('train', 'alphas') if data.alpha_fraction else ('train',)
  for split in trained if 'train' in splits else ():
    source = sources.make_training_source(data, split, seed=config.seed)
    pipeline.check_crop(config, source, data.crop)
  _check_window(config, splits)


def _check_window(
  config: ml_collections.ConfigDict, splits: tuple[str, ...]
) -> None:
  """Raises SettingError if crops or test images are too small for SSIM."""
  for name in ('search', 'train') if 'train' in splits else ():
    loss, crop = config[name].loss, config.data.crop
    config_lib.require(
      'ssim' not in loss or crop >= metrics.WINDOW, 'data.crop', crop,
      f'{metrics.WINDOW} or more, the window of {name}.loss {loss!r}',
    )  # fmt: skip
  if 'test' not in splits:
    return
  source = sources.make_source(
    config.data, 'test', seed=config.seed, task=config.task
  )
  small = [
    f'{name} ({height}x{width})'
    for name, (height, width) in zip(source.names, source.sizes, strict=True)
    if min(height, width) < metrics.WINDOW
  ]
  if small:
    raise config_lib.SettingError(
      f'{len(small)} images for testing are smaller than the window of SSIM, '
      f'{metrics.WINDOW}x{metrics.WINDOW} pixels, such as {small[0]}; remove '
      'them.'
    )


def _check_folder(
  data: ml_collections.ConfigDict,
  seed: int,
  workdir: Path | None,
  splits: tuple[str, ...],
) -> None:
  root = Path(data.root).expanduser()
  pairs, faults = sources.list_pairs(data)
  owners = sources.split_of(pairs, data, seed=seed)
  read = [i for i, split in enumerate(owners) if split in splits]
  pairs, owners = [pairs[i] for i in read], [owners[i] for i in read]
  digest = hashlib.sha256(json.dumps(owners).encode())
  for path in sorted({path for pair in pairs for path in pair.files}):
    stat = path.stat()
    digest.update(f'{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n'.encode())
  memory, good = workdir and workdir / CHECKED, {}
  if memory and memory.exists():
    good = json.loads(memory.read_text())
  key, value = '+'.join(splits), digest.hexdigest()
  if not faults and good.get(key) == value:
    return
  faults = faults + faults_lib.find_faults(pairs, owners, root=root)
  if faults:
    where = f'data.root is {data.root!r}'
    raise config_lib.SettingError(faults_lib.listing(faults, where=where))
  if memory:
    workdir.mkdir(parents=True, exist_ok=True)
    memory.write_text(json.dumps(good | {key: value}))


def main(config: ml_collections.ConfigDict) -> None:
  """Checks the data and prints what each split holds.

  With a config of mode 'evaluate' it is the test split alone, which is all that
  some datasets have.
  """
  splits = ('test',) if config.mode == 'evaluate' else sources.SPLITS
  check_data(config, splits=splits)
  rows = []
  for split in splits:
    source = sources.make_source(
      config.data, split, seed=config.seed, task=config.task
    )
    heights, widths = zip(*source.sizes, strict=True)
    rows.append(
      (
        split,
        f'{len(source):,} images of {min(heights)}x{min(widths)} to '
        f'{max(heights)}x{max(widths)}',
      )
    )
  logbook.table(f'{config.data.name}: nothing is wrong', rows)


if __name__ == '__main__':
  from pynas_jax import command

  command.run(main)
