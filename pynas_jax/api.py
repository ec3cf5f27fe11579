"""What notebooks and programs call: search, derive, train, derive_and_train.

Images are [H, W, 3], uint8 or float in [0, 1]. Settings are keyword arguments
by group, or a whole `config.base()`:

  result = derive_and_train(search=dict(num_trials=1), workdir='runs/mine')
  sharp = result.restore(blurry)

Everything that is computed is in the working directory; calling again with the
same settings goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from PIL import Image

from pynas_jax import caching
from pynas_jax import config as config_lib
from pynas_jax import drawing
from pynas_jax import evaluate as evaluate_lib
from pynas_jax import genotype as genotype_lib
from pynas_jax import logbook as logbook_lib
from pynas_jax import parallel
from pynas_jax import plot
from pynas_jax import train as train_lib
from pynas_jax.checkpoint import Checkpoints
from pynas_jax.data import check
from pynas_jax.data import files
from pynas_jax.data import sources
from pynas_jax.deploy import backends
from pynas_jax.deploy import benchmark as benchmark_lib
from pynas_jax.deploy import release
from pynas_jax.deploy import restorer as restorer_lib
from pynas_jax.deploy.backends import Network
from pynas_jax.deploy.release import commit
from pynas_jax.deploy.release import versions
from pynas_jax.deploy.restorer import Restorer
from pynas_jax.deploy.restorer import load
from pynas_jax.genotype import Genotype
from pynas_jax.genotype import PyramidGenotype
from pynas_jax.logbook import write_json
from pynas_jax.search import hierarchical
from pynas_jax.search import pareto
from pynas_jax.search import schemes
from pynas_jax.search.hierarchical import SearchResult
from pynas_jax.spaces import base
from pynas_jax.spaces import space_of

__all__ = ['derive', 'derive_and_train', 'load', 'search', 'train']

STRIPS = 'strips'
# How many trials there are and which of them wins, but not what they find.
_MORE_TRIALS = {
  'search.num_trials', 'search.local_trials', 'search.max_hours',
  'search.objective', 'search.psnr_slack',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Result:
  """A found and trained network.

  Attributes:
    genotype: The architecture.
    metrics: The scores on held-out images; see `evaluate`.
    report: All that `report.json` holds.
    restorer: The network as a function.
    workdir: Where everything is.
  """

  genotype: Genotype
  metrics: dict[str, float]
  report: dict[str, Any]
  restorer: Restorer
  workdir: Path

  def restore(self, image: np.ndarray) -> np.ndarray:
    """Restores an image, [H, W, 3] of uint8 or of floats in [0, 1]."""
    return self.restorer(image)

  def benchmark(self, **options: Any) -> dict[str, Any]:
    """Times the network; see `deploy.benchmark.time_restorer`."""
    return benchmark_lib.time_restorer(self.restorer, **options)

  def save(self, directory: str | Path) -> Path:
    """Writes the network and its report, for `load`, to a new folder."""
    directory = self.restorer.save(directory)
    write_json(directory / restorer_lib.REPORT, self.report)
    return directory


def make_config(
  config: ml_collections.ConfigDict | None = None, **settings: Any
) -> ml_collections.ConfigDict:
  """Returns checked settings: `config`, or the defaults, with overrides.

  Args:
    config: Starts from these instead of `config.base()`.
    **settings: By name or by group, such as `train=dict(num_steps=100)`.

  Raises:
    SettingError: Names a setting that does not exist or cannot be.
  """
  config = (config or config_lib.base()).copy_and_resolve_references()
  config_lib.override(config, settings)
  config_lib.validate(config)
  return config


def _check_batches(config: ml_collections.ConfigDict, *names: str) -> None:
  """Raises SettingError unless the devices can share batches."""
  parallel.check_devices()
  for name in names:
    try:
      parallel.check_batch_size(config[name].batch_size)
    except ValueError as error:
      message = f'{name}.batch_size: {error}'
      raise config_lib.SettingError(message) from None


def _is_free(
  name: str, workdir: Path, config: ml_collections.ConfigDict, searches: bool
) -> bool:
  """Returns whether a setting may differ between two runs in one workdir.

  Such settings change what is done with the networks in it, not the networks.
  """
  is_searched, is_trained = _holds(workdir)
  if name in ('benchmark.height', 'benchmark.width'):
    return not is_searched  # The costs of candidates are those of one frame.
  if name in _MORE_TRIALS:
    return searches and not is_trained
  if name == 'checkpoint':  # What is scored in a folder for scores alone.
    return not (config.checkpoint and (is_searched or is_trained))
  if name == 'train.start_from':
    return searches  # It is not read.
  if name == 'data.root':  # Images are known by their names and sizes.
    is_known = check.LEARNT in check.recall(workdir)
    return config.data.name == 'folder' and is_known
  # Architectures are compared themselves. The others do not change what is
  # learnt.
  return name.startswith('benchmark.') or name in (
    'mode', 'genotype', 'data.num_threads', 'data.eval_patch', 'model.remat'
  )


def _holds(workdir: Path) -> tuple[bool, bool]:
  """Returns whether a directory holds a search, and whether a training."""
  names = (hierarchical.TRIALS, restorer_lib.CHECKPOINTS)
  return tuple((workdir / name).exists() for name in names)


def open_workdir(
  workdir: str | Path,
  config: ml_collections.ConfigDict,
  splits: tuple[str, ...] = sources.SPLITS,
  searches: bool = False,
) -> Path:
  """Makes a working directory, once nothing is wrong with settings and data.

  Args:
    workdir: The directory; takes `config.json`.
    config: Settings.
    splits: Those of the data that the run reads.
    searches: Whether it trains alphas.

  Raises:
    BusyError: If another process writes to the directory.
    SettingError: If the directory holds a run with other settings, which this
      one would spoil, or if data are missing or bad.
  """
  workdir = Path(workdir)
  config_lib.require(
    workdir.is_dir() or not workdir.exists(), 'workdir', str(workdir),
    'a folder',
  )  # fmt: skip
  config_lib.require(
    not (workdir / release.TENSORS).exists(), 'workdir', str(workdir),
    'a folder of its own, as this one holds a release',
  )  # fmt: skip
  if workdir.is_dir():
    logbook_lib.lock(workdir).release()  # Busy: sooner said than after checks.
  path = workdir / 'config.json'
  new = json.loads(config.to_json())
  if path.exists():
    try:
      old = json.loads(path.read_text())
    except ValueError:
      old = None
    if not isinstance(old, dict):
      raise config_lib.SettingError(
        f'{path} is not a JSON object; delete it or use another workdir.'
      )
    # A run of before there was a setting went on as its default says.
    defaults = config_lib.flatten(json.loads(config_lib.base().to_json()))
    leaves, changed = defaults | config_lib.flatten(old), []
    for name, value in config_lib.flatten(new).items():
      is_same = leaves[name] == value
      if not is_same and not _is_free(name, workdir, config, searches):
        changed.append(f'{name} was {leaves[name]!r}, is {value!r}')
    if changed:
      raise config_lib.SettingError(
        f'{workdir} holds a run with other settings: {"; ".join(changed)}. Use '
        'another workdir'
        + (', or delete this one to start anew.' if splits == sources.SPLITS
           else '.')
      )
  root = config.data.name == 'folder' and Path(config.data.root).expanduser()
  config_lib.require(
    not (root and files.is_looked_in(root, workdir)), 'workdir', str(workdir),
    f'a folder out of data.root {config.data.root!r}, or its pictures are data',
  )  # fmt: skip
  check.check_data(
    config, workdir=workdir, splits=splits, searches=searches
  )
  workdir.mkdir(parents=True, exist_ok=True)
  if config.mode != 'evaluate' or not any(_holds(workdir)):
    write_json(path, new)
  return workdir


def _check_genotype(
  genotype: Genotype, config: ml_collections.ConfigDict
) -> None:
  """Raises SettingError unless images go in and come out as settings say."""
  is_larger = config.task == 'super_resolution'
  if genotype.scale != (config.data.scale if is_larger else 1):
    raise config_lib.SettingError(
      f'the network enlarges by {genotype.scale}, but task is {config.task!r}'
      + (f' and data.scale {config.data.scale}.' if is_larger else '.')
      + (" Set task to 'super_resolution' and data.scale to that factor."
         if genotype.scale > 1 else ' Use a network that enlarges.')
    )  # fmt: skip


def _compare_tasks(
  restorer: Restorer, config: ml_collections.ConfigDict
) -> None:
  """Says so if a network is scored at another task than it was trained for."""
  trained = restorer.card.task if restorer.card else ''
  scored = config_lib.describe_task(config)
  for name, text in config_lib.TASKS.items():
    if trained.startswith(text) and trained != scored:
      logbook_lib.say(
        f'The network was trained for {trained}, and is scored at {scored}. If '
        f'that is not meant, set task to {name!r}, and data.noise_sigma, '
        'data.noise_clip, data.jpeg_quality and data.grey as in its training.'
      )


def _check_checkpoints(genotype: Genotype, workdir: Path) -> None:
  """Raises SettingError if a directory holds a training of another network."""
  with Checkpoints(workdir / restorer_lib.CHECKPOINTS) as checkpoints:
    step = checkpoints.latest()
    trained = step and checkpoints.meta(step)['genotype']
  if trained and genotype_lib.from_dict(trained) != genotype:
    raise config_lib.SettingError(
      f'{workdir} holds the training of another architecture. Use another '
      'workdir, or delete this one to start anew.'
    )


def search(
  config: ml_collections.ConfigDict | None = None,
  *,
  workdir: str | Path = 'runs/search',
  **settings: Any,
) -> SearchResult:
  """Searches an architecture.

  Args:
    config: Settings, `config.base()` by default.
    workdir: Takes genotype.json, architecture.svg, trials.jsonl, pareto.png,
      pareto.csv, curves.png, metrics and checkpoints; calling again resumes.
    **settings: Overrides, by name or by group.

  Returns:
    The best architecture, its weights and all trials.

  Raises:
    SettingError: Before any work, names the setting.
  """
  config = make_config(config, **settings)
  config_lib.refuse(
    config, 'genotype', 'checkpoint', 'train.start_from',
    reason='the search finds a new network',
  )  # fmt: skip
  _check_batches(config, 'search', 'train')  # Candidates are trained, too.
  caching.keep_compiled_programs()
  # Here too: what is refused must not take the workdir.
  allowed = hierarchical.within_limits(schemes.choices(config), config)
  if not (Path(workdir) / hierarchical.TRIALS).exists():
    hierarchical.check_latency(allowed, config)
  workdir = open_workdir(workdir, config, searches=True)
  with logbook_lib.Logbook(workdir) as logbook:
    result = hierarchical.search(config, workdir=workdir, logbook=logbook)
  derive(result, workdir)
  plot.curves(logbook_lib.read_records(workdir), workdir / 'curves.png')
  _write_pareto(result.trials, workdir)
  return result


def _write_pareto(trials: list[dict[str, Any]], workdir: Path) -> None:
  """Writes pareto.csv and pareto.png: score and time of every trial."""
  points = [trial for trial in trials if 'failed' not in trial]
  front = pareto.front(points)
  columns = ('psnr', 'latency_ms', 'gmacs', 'params')
  with (workdir / 'pareto.csv').open('w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(['trial', 'network', *columns, 'on_front'])
    for point in points:
      name = schemes.Proposal.from_dict(point).describe()
      values = [point[column] for column in columns]
      writer.writerow([point['trial'], name, *values, point in front])
  plot.trade_off(
    [
      point | {'name': point['scheme'], 'front': point in front}
      for point in points
    ],
    workdir / 'pareto.png', x='latency_ms', real_time=config_lib.REAL_TIME_MS,
    x_label='time of a frame, ms',
  )  # fmt: skip


def derive(result: SearchResult | Genotype, workdir: str | Path) -> Genotype:
  """Writes an architecture as genotype.json; a pyramid is drawn as well.

  Args:
    result: Of a search, or an architecture.
    workdir: Takes the files.

  Returns:
    The architecture.
  """
  genotype = result if isinstance(result, Genotype) else result.genotype
  workdir = Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  write_json(workdir / restorer_lib.GENOTYPE, genotype.to_dict())
  if isinstance(genotype, PyramidGenotype):
    size = describe_size(genotype)
    svg = drawing.architecture_svg(
      genotype,
      subtitle=f'{size["params"]:,} parameters, '
      f'{size["gmacs_720p"]:.2f} GMAC at 720p',
    )
    (workdir / 'architecture.svg').write_text(svg)
  return genotype


def describe_size(genotype: Genotype) -> dict[str, float]:
  """Returns `params`, and `gmacs_720p`: 1e9 multiply-adds at 720 x 1280."""
  count = space_of(genotype).count
  params, macs = count(genotype, height=720, width=1280)
  return {'params': params, 'gmacs_720p': macs / 1e9}


def train(
  genotype: Genotype,
  config: ml_collections.ConfigDict | None = None,
  *,
  workdir: str | Path = 'runs/train',
  params: Any = None,
  **settings: Any,
) -> Restorer:
  """Trains an architecture.

  Its compiled programs stay in memory, as of all that `jax.pmap` runs. To train
  many in one process, call `jax.clear_caches()` between them.

  Args:
    genotype: The architecture.
    config: Settings, `config.base()` by default.
    workdir: Takes checkpoints, metrics and curves.png; calling again resumes.
    params: Weights to start from, such as `SearchResult.params`; by default
      those of the network `train.start_from`, or random ones.
    **settings: Overrides, by name or by group.

  Returns:
    The network with the weights of its best validation score.

  Raises:
    SettingError: Before any work, names the setting.
  """
  config = make_config(config, **settings)
  return _train(genotype, config, workdir, params)[0]


def _train(
  genotype: Genotype,
  config: ml_collections.ConfigDict,
  workdir: str | Path,
  params: Any,
) -> tuple[Restorer, float]:
  """Trains an architecture; returns the network and the seconds it took."""
  config_lib.refuse(
    config, 'checkpoint', reason='a training reads train.start_from instead'
  )
  _check_batches(config, 'train')
  caching.keep_compiled_programs()
  start = config.train.start_from
  if start and params is None:
    trained = load(start)
    config_lib.require(
      trained.genotype == genotype, 'train.start_from', start,
      'a network of the architecture that is to be trained',
    )  # fmt: skip
    params = trained.params
  _check_genotype(genotype, config)
  workdir = open_workdir(workdir, config)
  with logbook_lib.Logbook(workdir) as logbook:
    _check_checkpoints(genotype, workdir)
    derive(genotype, workdir)
    result = train_lib.train(
      genotype, config, directory=workdir / restorer_lib.CHECKPOINTS,
      logbook=logbook, params=params,
    )  # fmt: skip
  plot.curves(logbook_lib.read_records(workdir), workdir / 'curves.png')
  restorer = Restorer(genotype, result.params, dtype=config.train.dtype)
  restorer.card = release.Card(task=config_lib.describe_task(config))
  return restorer, result.seconds


def evaluate(
  restorer: Restorer,
  config: ml_collections.ConfigDict | None = None,
  *,
  workdir: str | Path = 'runs/evaluate',
  **settings: Any,
) -> dict[str, float]:
  """Scores a network on the test split of the data.

  Args:
    restorer: The network.
    config: Settings, `config.base()` by default.
    workdir: Takes samples.png, strips/ with parts of the same images for
      `report`, and scores.json, which has the scores of each sequence and
      image.
    **settings: Overrides, by name or by group.

  Returns:
    Means over images of `psnr_input`, `psnr`, `psnr_float`, `ssim_input`,
    `ssim` and `ssim_3d`.

  Raises:
    SettingError: Before any work, names the setting.
  """
  config = make_config(config, **settings)
  _check_genotype(restorer.genotype, config)
  _compare_tasks(restorer, config)
  workdir = open_workdir(workdir, config, splits=('test',))
  _check_checkpoints(restorer.genotype, workdir)
  source = sources.make_source(
    config.data, 'test', seed=config.seed, task=config.task
  )
  means, rows, samples = evaluate_lib.evaluate(
    restorer, source, patch=config.data.eval_patch
  )
  scores = {
    'mean': means,
    'sequences': evaluate_lib.sequence_scores(rows),
    'images': rows,
  }
  write_json(workdir / 'scores.json', scores)
  by_name = {row['name']: row for row in rows}
  captions = [
    (
      f'{by_name[name]["psnr_input"]:.2f} dB',
      f'{by_name[name]["psnr"]:.2f} dB',
      '',
    )
    for name, *_ in samples
  ]
  plot.samples(samples, workdir / 'samples.png', captions=captions)
  (workdir / STRIPS).mkdir(exist_ok=True)
  for name, *images in samples:
    path = workdir / STRIPS / f'{name.replace("/", "_")}.png'
    Image.fromarray(plot.strip(images)).save(path)
  return means


def derive_and_train(
  config: ml_collections.ConfigDict | None = None,
  *,
  workdir: str | Path = 'runs/pipeline',
  **settings: Any,
) -> Result:
  """Searches, derives, trains, evaluates and times a network.

  Args:
    config: Settings, `config.base()` by default.
    workdir: Takes everything; calling again with the same settings resumes.
    **settings: Overrides, by name or by group, such as
      `data=dict(name='folder', root='photos')`.

  Returns:
    The network, its scores and its report.

  Raises:
    SettingError: Before any work, names the setting.
  """
  config = make_config(config, **settings)
  workdir = Path(workdir)
  found = search(config, workdir=workdir)
  restorer, train_seconds = _train(
    found.genotype, config, workdir,
    found.params if config.train.inherit else None,
  )  # fmt: skip
  means = evaluate(restorer, config, workdir=workdir)
  report = make_report(restorer, config, means) | {
    'search_seconds': found.seconds,
    'train_seconds': train_seconds,
    'latency_720p_ms': time_restorer(restorer, config),
  }
  write_json(workdir / restorer_lib.REPORT, report)
  restorer.card = release.card_of(report)
  return Result(found.genotype, means, report, restorer, workdir)


def untrained(genotype: Genotype) -> Restorer:
  """Returns a network with random weights, to be timed."""
  network = space_of(genotype).network(genotype)
  return Restorer(genotype, base.init_params(jax.random.key(0), network))


def time_restorer(
  restorer: Restorer,
  config: ml_collections.ConfigDict,
  *,
  backend: str = 'xla',
) -> dict[str, Any]:
  """Times a network with the settings `benchmark`."""
  b = config.benchmark
  restorer = Restorer(
    restorer.genotype, restorer.params, dtype=b.dtype, backend=backend
  )
  logbook_lib.say(f'timing {backend} at {b.width}x{b.height}')
  return benchmark_lib.time_restorer(
    restorer, height=b.height, width=b.width, runs=b.runs
  )


def compare_backends(
  restorer: Restorer, config: ml_collections.ConfigDict
) -> list[dict[str, Any]]:
  """Times a network by each runtime of `benchmark.backends`, fastest first."""
  b = config.benchmark
  network = Network(restorer.genotype, restorer.params, b.dtype)
  names = (
    tuple(b.backends) or backends.available(network)
    or [backends.choose(backends.AUTO, network)]  # Says why there is none.
  )  # fmt: skip
  timings = [time_restorer(restorer, config, backend=name) for name in names]
  return sorted(timings, key=lambda timing: timing['p50'])


def make_report(
  restorer: Restorer,
  config: ml_collections.ConfigDict,
  means: Mapping[str, float],
) -> dict[str, Any]:
  """Returns the report of a scored network."""
  return {
    'genotype': restorer.genotype.to_dict(),
    **describe_size(restorer.genotype),
    'task': config_lib.describe_task(config),
    'dataset': config.data.name,
    **means,
    'versions': versions(),
    'commit': commit(),
    'seed': config.seed,
    'dtype': restorer.dtype,
  }
