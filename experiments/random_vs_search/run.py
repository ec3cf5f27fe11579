"""Does the search find better networks than chance, and than plain designs?

  python -m experiments.random_vs_search.run --pairs=pairs --photos=bsds500 \
    --out=runs/rvs

`pairs` is what `pynas_jax.data.make_pairs` wrote; some of them are taken, and
photographs of BSDS500, blurred by random walks. Every architecture is trained
from its beginning with the same steps, seeds and data, and scored on scenes
that no training saw. Stopped, the same command goes on. See README.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
import shlex
import shutil
import statistics
import sys

import jax
import ml_collections
import numpy as np
from PIL import Image

from experiments import video_pairs
from pynas_jax import api
from pynas_jax import config as config_lib
from pynas_jax import genotype as genotype_lib
from pynas_jax import logbook
from pynas_jax import spaces
from pynas_jax.data import blur
from pynas_jax.genotype import PyramidGenotype
from pynas_jax.genotype import ScaleGenotype
from pynas_jax.search import schemes

SCHEMES = ('1', '1-2', '1-4')
CHEAP_WIDTHS = range(8, 17)  # Eighths of --width: few scales may be wider.
PAIRS_PER_SCENE = 12
NUM_PHOTOS = {'train': 200, 'val': 40, 'test': 60}
NUM_KERNELS = 4  # Ways that the camera shakes; few, to be learnt in minutes.
CROP = 192  # Pixels of a photograph.
NOISE = 1 / 255
EQUAL_COST = 0.1  # Relative difference of multiply-adds that counts as equal.


def has_blur(path: Path) -> bool:
  """Tells whether there is something to learn from a blurred picture's pair."""
  pair = (
    np.asarray(Image.open(path.parent.parent / side / path.name))
    for side in ('blur', 'sharp')
  )
  return video_pairs.has_blur(*pair)


def add_video(data: Path, pairs: Path) -> None:
  """Copies some blurred pairs of each scene, evenly spaced."""
  for folder in sorted(pairs.glob('*/*/blur')):
    split, scene = folder.parts[-3:-1]
    split = 'val' if scene in video_pairs.VALIDATION else split
    blurred = list(filter(has_blur, sorted(folder.glob('*.png'))))
    for path in blurred[:: max(1, -(-len(blurred) // PAIRS_PER_SCENE))]:
      for side in ('blur', 'sharp'):
        target = data / split / scene / side / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder.parent / side / path.name, target)


def add_photos(data: Path, photos: Path) -> None:
  """Adds crops of photographs, blurred."""
  kernels = [
    blur.random_walk_kernel(np.random.default_rng(i), size=9, steps=16)
    for i in range(NUM_KERNELS)
  ]
  for split, number in NUM_PHOTOS.items():
    for i, path in enumerate(sorted((photos / split).glob('*.jpg'))[:number]):
      with Image.open(path) as image:
        pixels = np.array(image.convert('RGB'), np.float32) / 255
      rng = np.random.default_rng((i, len(split)))
      for k in range(2 if split == 'train' else 1):
        y, x = (rng.integers(n - CROP + 1) for n in pixels.shape[:2])
        sharp = pixels[y : y + CROP, x : x + CROP]
        blurred = blur.apply_kernel(sharp, kernels[rng.integers(NUM_KERNELS)])
        blurred += NOISE * rng.standard_normal(sharp.shape, np.float32)
        for side, crop in (('blur', blurred), ('sharp', sharp)):
          target = data / split / f'photo_{path.stem}' / side / f'{k}.png'
          target.parent.mkdir(parents=True, exist_ok=True)
          crop = np.rint(np.clip(crop, 0, 1) * 255).astype(np.uint8)
          Image.fromarray(crop).save(target)


def make_config(args: argparse.Namespace) -> ml_collections.ConfigDict:
  """Returns the settings that search and training share."""
  c = config_lib.base()
  c.model.widths = (args.width, 2 * args.width, 4 * args.width)
  c.model.unshuffle = args.unshuffle
  c.data.name, c.data.root = 'folder', str(args.out / 'data')
  c.data.crop = args.crop
  c.data.eval_crop, c.data.num_validation = 192, 48
  s = c.search
  s.schemes, s.num_trials = SCHEMES, args.trials
  s.warmup_steps, s.num_steps, s.score_steps = 1500, 2400, 500
  s.eval_every, s.collapse_fraction = 300, 1.0
  c.train.num_steps = c.train.eval_every = args.steps
  c.train.optimizer, c.train.inherit = 'adam', False
  return c


def count(genotype: PyramidGenotype) -> float:
  """Returns 1e9 multiply-adds at 720p."""
  return api.describe_size(genotype)['gmacs_720p']


def random_genotype(
  rng: np.random.Generator, space: spaces.Space, *, shared: bool = False
) -> PyramidGenotype:
  """Returns a network of the space, every choice as likely as another.

  Args:
    rng: Draws.
    space: Of PyNAS_d.
    shared: Whether scales share cells and weights, as those of PyNAS_s.
  """
  scheme = genotype_lib.parse_scheme(rng.choice(SCHEMES))
  half = space.num_edges // 2
  scales = []
  for patches in scheme:
    if not (shared and scales):
      cells = tuple(rng.choice(space.operators, space.num_edges).tolist())
    scales.append(ScaleGenotype(patches, cells[:half], cells[half:]))
  return PyramidGenotype(
    tuple(scales), space.widths, space.cells_per_stage,
    unshuffle=space.unshuffle, share_weights=shared and len(scales) > 1,
  )  # fmt: skip


def equal_cost_genotypes(
  rng: np.random.Generator, config: ml_collections.ConfigDict, gmacs: float,
  number: int,
) -> list[PyramidGenotype]:  # fmt: skip
  """Returns random networks whose cost is that of the found one."""
  widths = [
    spaces.make_space(proposal.apply(config))
    for proposal in schemes.choices(config)
  ]
  found = []
  while len(found) < number:
    genotype = random_genotype(rng, widths[rng.integers(len(widths))])
    if abs(count(genotype) / gmacs - 1) <= EQUAL_COST:
      found.append(genotype)
  return found


def trivial_genotypes(
  scheme: tuple[int, ...], gmacs: float, model: ml_collections.ConfigDict
) -> dict[str, PyramidGenotype]:
  """Returns one operator everywhere, with widths that make the cost equal."""
  designs = {}
  for operator in ('conv_3x3', 'conv_5x5', 'conv_3x3_dil2'):
    cells = (operator,) * (len(model.widths) * model.cells_per_stage)
    scales = tuple(ScaleGenotype(p, cells, cells) for p in scheme)
    # Deeper widths are two and four times the first, give or take a channel or
    # two: whole channels alone would be too coarse.
    sizes = [
      PyramidGenotype(
        scales, (w, 2 * w + a, 4 * w + b), model.cells_per_stage,
        unshuffle=model.unshuffle,
      )
      for w in range(2, 80)
      for a in (-1, 0, 1)
      for b in (-2, -1, 0, 1, 2)
    ]  # fmt: skip
    designs[operator] = min(sizes, key=lambda g: abs(count(g) - gmacs))
  return designs


class Runs:
  """Trains and scores architectures, and keeps what was done."""

  def __init__(self, config: ml_collections.ConfigDict, args):
    self._config, self._args = config, args

  def psnr(self, genotype: PyramidGenotype, steps: int) -> list[float]:
    """Returns the PSNR on the test split, in dB, of each seed."""
    scores = []
    for seed in range(self._args.seeds):
      config = self._config.copy_and_resolve_references()
      config.seed = seed
      config.train.num_steps = config.train.eval_every = steps
      name = f'{genotype.digest()}-{seed}'
      if steps != self._args.steps:
        name += f'-{steps}'
      workdir = self._args.out / 'train' / name
      path = workdir / 'scores.json'
      if not path.exists():
        restorer = api.train(genotype, config, workdir=workdir)
        api.evaluate(restorer, config, workdir=workdir)
        jax.clear_caches()  # Of programs of this network, else kept.
      scores.append(json.loads(path.read_text())['mean']['psnr'])
    return scores

  def rows(
    self, genotypes: dict[str, PyramidGenotype], steps: int | None = None
  ) -> list[dict]:
    """Returns a row for each architecture, trained for `--steps` or these."""
    steps = steps or self._args.steps
    rows = []
    for name, genotype in genotypes.items():
      scores = self.psnr(genotype, steps)
      rows.append(
        {
          'name': name,
          'psnr': statistics.mean(scores),
          'seeds': scores,
          'train_steps': steps,
          'gmacs_720p': count(genotype),
          'scheme': genotype_lib.format_scheme(genotype.scheme),
          'genotype': genotype.to_dict(),
        }
      )
      logbook.say(
        f'{name}: {rows[-1]["psnr"]:.3f} dB, {count(genotype):.1f} GMAC'
      )
    return rows


def make_searches(
  config: ml_collections.ConfigDict,
) -> dict[str, ml_collections.ConfigDict]:
  """Returns the settings of each search."""
  width = config.model.widths[0]
  changes = {
    'PyNAS_d': {},
    'PyNAS_s': {'model.share': 'weights'},
    # Below half of DMPHN's cost, of any scheme and width that can be.
    'PyNAS_d, cost': {
      'search.cost': 'macs',
      'search.cost_weight': 0.05,
      'search.base_widths': tuple(width * f // 8 for f in CHEAP_WIDTHS),
      'search.max_gmacs': count(small_dmphn(config.model)) / 2,
      'search.num_trials': 3,
      'search.local_trials': 24,
      # Networks are ranked by what they will be.
      'search.score_steps': config.train.num_steps,
    },
  }
  searches = {}
  for name, settings in changes.items():
    searches[name] = config.copy_and_resolve_references()
    config_lib.override(searches[name], settings)
  return searches


def parse_args(
  description: str, argv: Sequence[str] | None = None
) -> argparse.Namespace:
  """Returns the flags of all experiments of this folder."""
  parser = argparse.ArgumentParser(description=description.partition('\n')[0])
  parser.add_argument('--pairs', type=Path, required=True, help='of make_pairs')
  parser.add_argument(
    '--photos', type=Path, required=True, help='BSDS500: train, val, test'
  )
  parser.add_argument('--out', type=Path, required=True, help='folder to write')
  parser.add_argument('--steps', type=int, default=2000, help='of training')
  parser.add_argument('--seeds', type=int, default=2, help='trainings of each')
  parser.add_argument('--number', type=int, default=10, help='random networks')
  parser.add_argument('--trials', type=int, default=2, help='of each search')
  parser.add_argument('--width', type=int, default=8, help='first stage')
  parser.add_argument('--unshuffle', type=int, default=1, help='1, 2 or 4')
  parser.add_argument('--crop', type=int, default=64, help='pixels')
  args = parser.parse_args(argv)
  data = args.out / 'data'
  if not data.exists():
    partial = data.with_suffix('.tmp')
    shutil.rmtree(partial, ignore_errors=True)
    add_video(partial, args.pairs)
    add_photos(partial, args.photos)
    partial.rename(data)
  return args


def main() -> None:
  """Runs the comparison and writes results.json."""
  args = parse_args(__doc__)
  config = make_config(args)
  space = spaces.make_space(config)
  runs = Runs(config, args)
  searches = make_searches(config)
  found = {}
  for name, own in searches.items():
    logbook.say(name)
    folder = args.out / 'search' / name.replace(', ', '_')
    found[name] = api.search(own, workdir=folder).genotype
  cheap = count(found['PyNAS_d, cost'])
  rng = np.random.default_rng(0)
  random = [random_genotype(rng, space) for _ in range(args.number)]
  shared = [
    random_genotype(rng, space, shared=True) for _ in range(args.number)
  ]
  equal = equal_cost_genotypes(
    rng, searches['PyNAS_d, cost'], cheap, args.number
  )
  scheme = found['PyNAS_d, cost'].scheme
  trivial = trivial_genotypes(scheme, cheap, config.model)
  dmphn = small_dmphn(config.model)
  groups = {
    'found': found,
    'random': {f'random {i}': g for i, g in enumerate(random)},
    'random_shared': {f'shared {i}': g for i, g in enumerate(shared)},
    'random_equal_cost': {f'equal {i}': g for i, g in enumerate(equal)},
    'trivial': {f'{name} everywhere': g for name, g in trivial.items()},
    'by_hand': {'DMPHN 1-2-4, small': dmphn},
  }
  rows = {name: runs.rows(group) for name, group in groups.items()}
  rows['found_as_long_as_by_hand'] = runs.rows(
    {"PyNAS_d, cost, with DMPHN's training in multiply-adds":
     found['PyNAS_d, cost']},
    steps=round(args.steps * count(dmphn) / cheap),
  )  # fmt: skip
  results = {
    'command': 'python -m experiments.random_vs_search.run '
    + shlex.join(sys.argv[1:]),
    'dataset': 'video pairs and blurred photographs',
    'budget': {
      'train_steps': args.steps, 'batch': config.train.batch_size,
      'crop': config.data.crop,
      'search': {k: own.search.to_dict() for k, own in searches.items()},
    },
    'seeds': list(range(args.seeds)),
    **{name: [row['psnr'] for row in own] for name, own in rows.items()},
    'rows': rows,
    'versions': api.versions(),
    'commit': api.commit(),
  }  # fmt: skip
  api.write_json(args.out / 'results.json', results)


def small_dmphn(model: ml_collections.ConfigDict) -> PyramidGenotype:
  """Returns DMPHN(1-2-4) with the widths and the folding of the others."""
  cells = ('conv_3x3_x2',) * (len(model.widths) * model.cells_per_stage)
  return PyramidGenotype(
    tuple(ScaleGenotype(p, cells, cells) for p in (1, 2, 4)), model.widths,
    model.cells_per_stage, 'transposed', unshuffle=model.unshuffle,
  )  # fmt: skip


if __name__ == '__main__':
  main()
