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
LEARNT = 'learnt'  # In it, beside the splits: of which images a run learns.


def check_data(
  config: ml_collections.ConfigDict,
  *,
  workdir: Path | None = None,
  splits: tuple[str, ...] = sources.SPLITS,
  searches: bool = False,
) -> None:
  """Checks all images that a run will read, and prepares its dataset.

  Args:
    config: All settings.
    workdir: Remembers files that were good, so that a run which resumes does
      not decode them all again.
    splits: Those that the run reads.
    searches: Whether it trains alphas.

  Raises:
    SettingError: With everything that is wrong, or how to get the dataset.
  """
  data = config.data
  if data.name == 'folder':
    _check_folder(data, config.seed, workdir, splits)
  found = {
    split: sources.make_source(
      data, split, seed=config.seed, task=config.task
    )
    for split in splits
  }
  if 'train' in splits:
    for split in sources.search_splits(data) if searches else ('train',):
      source = sources.make_training_source(data, split, seed=config.seed)
      pipeline.check_crop(config, source, data.crop)
    computed = [('train', 'crop')]
    if searches:
      computed.append(('search', 'crop'))
      if config.search.refine_passes:  # On validation crops.
        computed.append(('search', 'eval_crop'))
    for group, name in computed:
      loss = config[group].loss
      config_lib.require(
        'ssim' not in loss or data[name] >= metrics.WINDOW, f'data.{name}',
        data[name], f'{metrics.WINDOW} or more, the window of {group}.loss '
        f'{loss!r}',
      )  # fmt: skip
  # Scores of what has begun stay as they are: of smaller crops.
  if 'validation' in found and not _has_begun(workdir):
    least = min(data.crop, data.eval_crop)
    small = sources.smaller_than(
      pipeline.scored(found['validation'], data), least
    )
    if small:
      raise config_lib.SettingError(
        f'data.eval_crop is {data.eval_crop}, but of the images for validation '
        f'{len(small)} are smaller than {least}x{least} pixels, such as '
        f'{small[0]}. Lower data.eval_crop, or remove them.'
      )
  if 'test' in found:
    border = data.scale if config.task == 'super_resolution' else 0
    _check_window(found['test'], border)


def _check_window(source: sources.Source, border: int) -> None:
  """Raises SettingError if test images are smaller than the window of SSIM."""
  least = metrics.WINDOW + 2 * border  # The border is not scored.
  small = sources.smaller_than(source, least)
  if small:
    raise config_lib.SettingError(
      f'{len(small)} images for testing are smaller than what SSIM needs, '
      f'{least}x{least} pixels, such as {small[0]}; remove them.'
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
  # Copies elsewhere have the same names and sizes, other images seldom both.
  kept = sorted(
    (pair.name, owner, [path.stat().st_size for path in pair.files])
    for pair, owner in zip(pairs, owners, strict=True) if owner != 'test'
  )  # fmt: skip
  learnt = hashlib.sha256(json.dumps(kept).encode()).hexdigest()
  read = [i for i, split in enumerate(owners) if split in splits]
  pairs, owners = [pairs[i] for i in read], [owners[i] for i in read]
  digest = hashlib.sha256(json.dumps(owners).encode())
  for path in sorted({path for pair in pairs for path in pair.files}):
    stat = path.stat()
    digest.update(f'{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n'.encode())
  good = recall(workdir)
  if _has_begun(workdir) and good.get(LEARNT, learnt) != learnt:
    raise config_lib.SettingError(
      f'data.root is {data.root!r}, whose images for training and validation '
      f'are not those that the run in {workdir} began with. Use another '
      'workdir, or put back what was there.'
    )
  found = {'+'.join(splits): digest.hexdigest()}
  is_new = bool(found.items() - good.items())
  if 'train' in splits:
    found[LEARNT] = learnt
  if faults or is_new:
    faults = faults + faults_lib.find_faults(pairs, owners, root=root)
  if faults:
    where = f'data.root is {data.root!r}'
    raise config_lib.SettingError(faults_lib.listing(faults, where=where))
  if workdir and found.items() - good.items():
    workdir.mkdir(parents=True, exist_ok=True)
    logbook.write_json(workdir / CHECKED, good | found)


def _has_begun(workdir: Path | None) -> bool:
  """Returns whether there is a run; what refused to begin may be mended."""
  return workdir is not None and (workdir / 'config.json').exists()


def recall(workdir: Path | None) -> dict[str, str]:
  """Returns what a workdir remembers of its images; {} if nothing.

  Its keys are the splits that were found to be good, and LEARNT of a training.
  """
  try:
    return dict(json.loads((workdir / CHECKED).read_text())) if workdir else {}
  except (OSError, ValueError, TypeError):
    return {}  # Damaged, it is made again.


def main(config: ml_collections.ConfigDict) -> None:
  """Checks the data and prints what each split holds.

  With a config of mode 'evaluate' it is the test split alone, which is all that
  some datasets have.
  """
  splits = ('test',) if config.mode == 'evaluate' else sources.SPLITS
  searches = config.mode in ('pipeline', 'search')
  check_data(config, splits=splits, searches=searches)
  rows = []
  for split in splits:
    source = sources.make_source(
      config.data, split, seed=config.seed, task=config.task
    )
    heights, widths = zip(*source.sizes, strict=True)
    is_made = isinstance(source, sources.Degraded)
    kind = 'sharp images, to be degraded,' if is_made else 'pairs'
    rows.append(
      (
        split,
        f'{len(source):,} {kind} of {min(heights)}x{min(widths)} to '
        f'{max(heights)}x{max(widths)}',
      )
    )
  logbook.table(f'{config.data.name}: nothing is wrong', rows)


if __name__ == '__main__':
  from pynas_jax import command

  command.run(main)
