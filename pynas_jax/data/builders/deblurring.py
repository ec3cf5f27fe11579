"""Deblurring datasets: blurred and sharp frames of videos and photographs."""

from __future__ import annotations

from pathlib import Path
import re

from pynas_jax.data import files
from pynas_jax.data.builders import base


class Gopro(base.Builder):
  """GoPro: averaged frames of 240 fps video (Nah et al., CVPR 2017).

  Papers differ in the input: DMPHN, MPRNet and most others use `blur`,
  DeepDeblur `blur_gamma`; their figures do not compare.
  """

  PAGE = 'https://seungjunnah.github.io/Datasets/gopro'
  LAYOUT = 'GOPRO_Large/{train,test}/SEQUENCE/{blur,blur_gamma,sharp}/*.png'
  COUNTS = {'train': 2103, 'test': 1111}
  SUBSETS = ('blur', 'blur_gamma')

  @classmethod
  def find(cls, root, subset):
    return files.find_pairs(base.home(root, 'GOPRO_Large'), subset=subset)


class VideoDeblurring(base.Builder):
  """Deep Video Deblurring, quantitative subset (Su et al., CVPR 2017)."""

  PAGE = 'https://www.cs.ubc.ca/labs/imager/tr/2017/DeepVideoDeblurring/'
  LAYOUT = 'quantitative_datasets/VIDEO/{input,GT}/*.jpg'
  COUNTS = {'train': 5708, 'test': 1000}
  # The test videos of its authors, in the order of PyNAS's Table 2.
  TEST = (
    '720p_240fps_2', 'IMG_0003', 'IMG_0021', 'IMG_0030', 'IMG_0031',
    'IMG_0032', 'IMG_0033', 'IMG_0037', 'IMG_0039', 'IMG_0049',
  )  # fmt: skip

  @classmethod
  def find(cls, root, subset):
    home = base.home(root, 'quantitative_datasets')
    pairs, faults = [], []
    for folder in base.folders(home):
      found, bad = files.match(
        folder / 'input', folder / 'GT', root=home, top=home,
        split='test' if folder.name in cls.TEST else 'train',
      )  # fmt: skip
      pairs += found
      faults += bad
    return pairs, faults


class Kohler(base.Builder):
  """Recorded camera shake: 4 pictures x 12 trajectories (Köhler et al., 2012).

  A trajectory was played back in about 199 steps with a sharp frame of each; an
  output is scored against the frame that it matches best.
  """

  PAGE = 'https://webdav.tuebingen.mpg.de/pixel/benchmark4camerashake/'
  LAYOUT = 'Blurry{I}_{K}.png and Image{I}/Kernel{K}/GroundTruth{I}_{K}_*.png'
  COUNTS = {'test': 48}
  PROTOCOL = 'best_match'

  @classmethod
  def find(cls, root, subset):
    home = base.home(root, 'Kohler')
    pairs, faults = [], []
    for blurred in files.images_under(home):
      numbers = re.fullmatch(r'Blurry(\d+)_(\d+)', blurred.stem)
      if not numbers:
        continue
      i, k = numbers.groups()
      frames = sorted(
        home.glob(f'Image{i}/Kernel{k}/GroundTruth{i}_{k}_*.png'),
        key=lambda path: int(path.stem.rpartition('_')[2]),
      )
      if len(frames) > 1:
        pair = files.Pair(
          f'Blurry{i}_{k}', 'test', f'Image{i}', blurred, tuple(frames)
        )
        pairs.append(pair)
      else:
        faults.append(
          f'{blurred.relative_to(root)}: {len(frames)} frames in '
          f'Image{i}/Kernel{k}; expected about 199'
        )
    return pairs, faults


class Reds(base.Builder):
  """REDS: averaged frames of 120 fps video (Nah et al., CVPR Workshops 2019).

  Its own test frames are not public, so papers test on those of validation.
  """

  PAGE = 'https://seungjunnah.github.io/Datasets/reds'
  LAYOUT = '{train/train,val/val}_{blur,blur_comp,sharp}/SEQUENCE/*.png'
  COUNTS = {'train': 24000, 'test': 3000}
  SUBSETS = ('blur', 'blur_comp')

  @classmethod
  def find(cls, root, subset):
    home = base.home(root, 'REDS')
    pairs, faults = [], []
    for part, split in (('train', 'train'), ('val', 'test')):
      top = home / part / f'{part}_{subset}'
      found, bad = files.match(
        top, home / part / f'{part}_sharp', root=home, top=home / part,
        split=split,
      )  # fmt: skip
      pairs += found
      faults += bad
    return pairs, faults


class Realblur(base.Builder):
  """RealBlur: real blur and its sharp picture by two cameras (ECCV 2020).

  The two are not quite aligned: an output is registered to the sharp picture
  (ECC) and scored where they overlap.
  """

  PAGE = 'https://github.com/rimchang/RealBlur'
  LAYOUT = (
    'RealBlur_{J,R}_{train,test}_list.txt and '
    'RealBlur-{J,R_BM3D}_ECC_IMCORR_centroid_itensity_ref/SCENE/{blur,gt}/*.png'
  )
  COUNTS = {'train': 3758, 'test': 980}
  SUBSETS = ('J', 'R')
  PROTOCOL = 'registered'

  @classmethod
  def find(cls, root, subset):
    home = base.home(root, 'RealBlur')
    pairs, faults = [], []
    for split in cls.COUNTS:
      path = home / f'RealBlur_{subset}_{split}_list.txt'
      lines = path.read_text().splitlines() if path.is_file() else []
      for number, line in enumerate(filter(str.strip, lines)):
        where = f'{path.name}, line {number + 1}'
        names = line.split()
        if len(names) < 2 or any(map(_escapes, names[:2])):
          faults.append(f'{where}: {line[:60]!r} is no pair of paths below it')
          continue
        sharp, blurred = (home / name for name in names[:2])
        missing = [p.name for p in (sharp, blurred) if not p.is_file()]
        if missing:
          faults.append(f'{where}: {missing[0]} is not there')
          continue
        scene = sharp.parent.parent
        name = f'{scene.name}/{blurred.stem}'
        pairs.append(files.Pair(name, split, scene.name, blurred, (sharp,)))
    return pairs, faults


def _escapes(name: str) -> bool:
  """Returns whether a listed path leads out of the dataset's folder."""
  return Path(name).is_absolute() or '..' in Path(name).parts
