"""Datasets of other tasks: noise, rain, and sharp images to be degraded."""

from __future__ import annotations

from typing import ClassVar

from pynas_jax.data import files
from pynas_jax.data.builders import base


class Rain800(base.Builder):
  """Synthetic rain (Zhang et al., IEEE TCSVT 2019).

  A file holds both pictures side by side, the clean one on the left.
  """

  PAGE = 'https://github.com/hezhangsprinter/ID-CGAN'
  LAYOUT = 'rain/{training,test_syn}/*.jpg'
  COUNTS = {'train': 700, 'test': 100}

  @classmethod
  def find(cls, root, subset):
    home = base.home(root, 'rain')
    parts = (('training', 'train'), ('test_syn', 'test'))
    return [
      files.Pair(f'{part}/{path.stem}', split, '', None, (path,), halves=True)
      for part, split in parts
      for path in files.images_under(home / part)
    ], []


class SiddMedium(base.Builder):
  """SIDD Medium: real noise of phone cameras (Abdelhamed et al., CVPR 2018).

  Its benchmark images have no public clean ones; the ten scenes, two of the
  three numbers of a folder's name on, are what a split may not divide.
  """

  PAGE = 'https://www.eecs.yorku.ca/~kamel/sidd/dataset.php'
  LAYOUT = 'SIDD_Medium_Srgb/Data/INSTANCE/*_{GT,NOISY}_SRGB_*.PNG'
  COUNTS = {'train': 320}

  @classmethod
  def find(cls, root, subset):
    home = base.home(root, 'SIDD_Medium_Srgb') / 'Data'
    pairs, faults = [], []
    for noisy in files.images_under(home):
      if '_NOISY_' not in noisy.name:
        continue
      clean = noisy.with_name(noisy.name.replace('_NOISY_', '_GT_'))
      if not clean.is_file():
        faults.append(f'{noisy.relative_to(root)}: no {clean.name} beside it')
        continue
      scene = '_'.join(noisy.parent.name.split('_')[1:2])
      name = f'{noisy.parent.name}/{noisy.stem}'
      pairs.append(files.Pair(name, 'train', scene, noisy, (clean,)))
    return pairs, faults


class SharpImages(base.Builder, skip_registration=True):
  """Sharp images, of which a task makes its inputs."""

  PAIRED = False
  # Split -> names that its folder may have.
  FOLDERS: ClassVar[dict[str, tuple[str, ...]]]

  @classmethod
  def find(cls, root, subset):
    pairs = []
    for split, folders in cls.FOLDERS.items():
      found = [root / name for name in folders if (root / name).is_dir()]
      for path in files.images_under(found[0]) if found else []:
        name = path.relative_to(root).as_posix()
        pairs.append(files.Pair(name, split, '', None, (path,)))
    return pairs, []


class Bsd500(SharpImages):
  """Berkeley segmentation: 481x321 photographs (Arbelaez et al., PAMI 2011).

  As HiNAS: trained on its training and validation images.
  """

  PAGE = 'https://github.com/BIDS/BSDS500'
  LAYOUT = 'BSDS500/data/images/{train,val,test}/*.jpg'
  COUNTS = {'train': 300, 'test': 200}

  @classmethod
  def find(cls, root, subset):
    homes = ('BSDS500/data/images', 'data/images', 'images', '.')
    home = next(
      (root / h for h in homes if (root / h / 'train').is_dir()), root
    )
    parts = (('train', 'train'), ('val', 'train'), ('test', 'test'))
    return [
      files.Pair(f'{part}/{path.stem}', split, '', None, (path,))
      for part, split in parts
      for path in files.images_under(home / part)
    ], []


class Div2k(SharpImages):
  """DIV2K: 2K photographs (Agustsson and Timofte, CVPR Workshops 2017).

  TFDS has a builder of it, which needs TensorFlow to list its files.
  """

  PAGE = 'https://data.vision.ee.ethz.ch/cvl/DIV2K/'
  LAYOUT = 'DIV2K_train_HR/*.png and DIV2K_valid_HR/*.png'
  COUNTS = {'train': 800, 'test': 100}
  FOLDERS = {'train': ('DIV2K_train_HR',), 'test': ('DIV2K_valid_HR',)}


class Set5(SharpImages):
  """Five pictures for super-resolution (Bevilacqua et al., BMVC 2012)."""

  PAGE = 'https://github.com/jbhuang0604/SelfExSR'
  LAYOUT = 'Set5/*'
  COUNTS = {'test': 5}
  FOLDERS = {'test': ('Set5', 'set5', '.')}


class Set14(SharpImages):
  """Fourteen pictures for super-resolution (Zeyde et al., 2010)."""

  PAGE = 'https://github.com/jbhuang0604/SelfExSR'
  LAYOUT = 'Set14/*'
  COUNTS = {'test': 14}
  FOLDERS = {'test': ('Set14', 'set14', '.')}


class Urban100(SharpImages):
  """A hundred pictures of buildings (Huang et al., CVPR 2015)."""

  PAGE = 'https://github.com/jbhuang0604/SelfExSR'
  LAYOUT = 'Urban100/*'
  COUNTS = {'test': 100}
  FOLDERS = {'test': ('Urban100', 'urban100', '.')}


class Bsd100(SharpImages):
  """The test images of BSDS300 (Martin et al., ICCV 2001).

  They lie in the validation images of BSDS500: do not train on those.
  """

  PAGE = 'https://github.com/jbhuang0604/SelfExSR'
  LAYOUT = 'BSD100/*'
  COUNTS = {'test': 100}
  FOLDERS = {'test': ('BSD100', 'bsd100', 'B100', '.')}


class Set12(SharpImages):
  """Twelve grey pictures for denoising (Zhang et al., IEEE TIP 2017)."""

  PAGE = 'https://github.com/cszn/DnCNN'
  LAYOUT = 'Set12/*.png'
  COUNTS = {'test': 12}
  FOLDERS = {'test': ('Set12', 'set12', '.')}


class Bsd68(SharpImages):
  """Sixty-eight grey pictures for denoising (Roth and Black, IJCV 2009)."""

  PAGE = 'https://github.com/cszn/DnCNN'
  LAYOUT = 'BSD68/*.png'
  COUNTS = {'test': 68}
  FOLDERS = {'test': ('BSD68', 'bsd68', 'Set68', '.')}


class Kodak24(SharpImages):
  """Kodak's lossless true colour pictures."""

  PAGE = 'https://r0k.us/graphics/kodak/'
  LAYOUT = 'Kodak24/*.png'
  COUNTS = {'test': 24}
  FOLDERS = {'test': ('Kodak24', 'kodak24', 'kodak', '.')}


class Live1(SharpImages):
  """The references of LIVE, for JPEG artifacts (Sheikh et al., TIP 2006)."""

  PAGE = 'https://live.ece.utexas.edu/research/quality/'
  LAYOUT = 'LIVE1/*.bmp'
  COUNTS = {'test': 29}
  FOLDERS = {'test': ('LIVE1', 'live1', 'refimgs', '.')}


class Classic5(SharpImages):
  """Five grey pictures for JPEG artifacts (Foi et al., IEEE TIP 2007)."""

  PAGE = 'https://github.com/cszn/DnCNN'
  LAYOUT = 'classic5/*.bmp'
  COUNTS = {'test': 5}
  FOLDERS = {'test': ('classic5', 'Classic5', '.')}
