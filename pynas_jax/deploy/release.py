"""Release folder: a network as plain data that can be mailed and published.

It holds `config.json` (genotype and card), `model.safetensors` (one tensor per
leaf, named by its path), `README.md` (the card for people) and perhaps
`before.png` and `after.png`. Nothing in it is run, and nothing is read before
its size and kind are known to be right.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import importlib.metadata
import json
import math
from pathlib import Path
import re
from typing import Any

from flax import traverse_util
import jax
import numpy as np
from PIL import Image
import safetensors
from safetensors import numpy as safetensors_numpy

from pynas_jax import genotype as genotype_lib
from pynas_jax import logbook
from pynas_jax.genotype import Genotype
from pynas_jax.spaces import base
from pynas_jax.spaces import space_of

CONFIG = 'config.json'
TENSORS = 'model.safetensors'
README = 'README.md'
SAMPLES = ('before.png', 'after.png')
MODELS = Path(__file__).resolve().parents[1] / 'models'
LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain')
_SCORES = ('psnr', 'ssim')
_TIMING = {'device', 'backend', 'dtype', 'height', 'width', 'p50', 'p95'}
MAX_CONFIG_BYTES = genotype_lib.MAX_JSON_BYTES
HEADER_BYTES = 512  # Of a tensor's entry in the file's header, at most.
# What some other tool would run, or may run, on loading.
CODE_SUFFIXES = (
  '.py', '.pyc', '.so', '.dll', '.sh', '.pkl', '.pickle', '.pt', '.pth', '.bin',
  '.ckpt', '.joblib', '.h5', '.keras',
)  # fmt: skip


class LoadError(ValueError):
  """A network that cannot be loaded; the message names the file."""


@dataclasses.dataclass(frozen=True)
class Card:
  """What people want to know of a network.

  Attributes:
    task: What it does, such as `config.describe_task`.
    data: What it was trained and scored on.
    metrics: Name -> score.
    timings: Of `deploy.benchmark.time_restorer`.
    limits: What it cannot do.
    license: SPDX name; '' where its owner has named none.
    versions: Library -> version that made it.
  """

  task: str = 'image restoration'
  data: str = ''
  metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
  timings: tuple[Mapping[str, Any], ...] = ()
  limits: str = ''
  license: str = ''
  versions: Mapping[str, str] = dataclasses.field(default_factory=dict)


def card_of(report: Mapping[str, Any]) -> Card:
  """Returns the card of a network that was scored.

  Args:
    report: The `report.json` of its run.
  """
  timing = report.get('latency_720p_ms')
  return Card(
    task=report.get('task', Card.task),
    data=f'Trained and scored on the data {report.get("dataset")!r}.',
    metrics={k: v for k, v in report.items() if k.startswith(_SCORES)},
    timings=(timing,) if timing else (),
    versions=report.get('versions', {}),
  )


def versions() -> dict[str, str]:
  """Returns the versions of this package and of what figures depend on."""
  names = ('pynas-jax', *LIBRARIES)
  found = {}
  for name in names:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = 'not installed'
  return found


def commit() -> str | None:
  """Returns the commit of the source tree, or None for an installed wheel."""
  git = Path(__file__).parents[2] / '.git'
  try:
    head = (git / 'HEAD').read_text().strip()
    if not head.startswith('ref: '):
      return head
    ref = head.removeprefix('ref: ')
    if (git / ref).exists():
      return (git / ref).read_text().strip()
    packed = (git / 'packed-refs').read_text().splitlines()
    return next(line.split()[0] for line in packed if line.endswith(' ' + ref))
  except (OSError, StopIteration):
    return None


def shipped() -> list[str]:
  """Returns the names of the networks in this package."""
  return sorted(path.parent.name for path in MODELS.glob(f'*/{CONFIG}'))


def is_release(path: Path) -> bool:
  """Returns whether a folder is meant to be a release, whole or not."""
  # The folders of runs have a config.json too, of settings, but no card.
  return (path / TENSORS).exists() or all(
    (path / name).exists() for name in (CONFIG, README)
  )


def find(source: str | Path) -> Path | None:
  """Returns the folder of a network on this machine, if there is one.

  Args:
    source: A name of `shipped`, or a folder; the first that exists counts.

  Raises:
    LoadError: If it is a file.
  """
  if str(source) in shipped():
    return MODELS / source
  source = Path(source)
  if source.is_dir():
    return source
  if source.exists():
    raise no_network(source)
  return None


def download(
  name: str,
  *,
  revision: str | None = None,
  cache_dir: str | Path | None = None,
  local_files_only: bool = False,
) -> Path:
  """Returns the folder of a network of the Hugging Face hub.

  Args:
    name: Of the repository, 'owner/name'.
    revision: Branch, tag or commit.
    cache_dir: Takes what is downloaded; the hub's own folder by default.
    local_files_only: Whether to look for it in `cache_dir` only.

  Raises:
    LoadError: If there is none.
  """
  if not re.fullmatch(r'[\w-][\w.-]*/[\w.-]+', name):
    raise no_network(name)
  try:
    import huggingface_hub  # Optional, and needed by nobody else.
  except ImportError:
    raise LoadError(
      f'{name} is no folder; to look for it on the Hugging Face hub, pip '
      "install 'pynas-jax[hub]'."
    ) from None
  try:
    for file in (TENSORS, CONFIG):
      path = huggingface_hub.hf_hub_download(
        name, file, revision=revision, cache_dir=cache_dir,
        local_files_only=local_files_only,
      )  # fmt: skip
  except Exception as error:  # The hub's own, the network's, the disk's.
    reason = str(error).strip().partition('\n')[0]
    raise LoadError(
      f'{name} is no folder, and cannot be had from the Hugging Face hub: '
      f'{reason}'
    ) from error
  return Path(path).parent


def no_network(source: str | Path) -> LoadError:
  """Returns the error that there is no network of a name."""
  names = ', '.join(shipped()) or 'none in this version'
  return LoadError(
    f'{source} is no folder; expected a workdir, a checkpoint, a release '
    f'folder or the name of a network of this package ({names}).'
  )


def _checked(path: Path, max_bytes: int) -> Path:
  """Returns a file's path once it is a plain file inside its folder."""
  # The hub keeps files in blobs/ and links to them from snapshots/COMMIT/.
  folder = path.parent.resolve()
  is_hub = folder.parent.name == 'snapshots'
  root = folder.parents[1] if is_hub else folder
  if not path.is_file():
    raise LoadError(f'{path} is missing; expected {CONFIG} and {TENSORS}.')
  if not path.resolve().is_relative_to(root):
    raise LoadError(
      f'{path} is a link to {path.resolve()}, out of its folder; put the file '
      'itself there.'
    )
  size = path.stat().st_size
  if size > max_bytes:
    raise LoadError(
      f'{path} has {size:,} bytes; expected at most {max_bytes:,}. It is not '
      'what belongs to this genotype.'
    )
  return path


def read(directory: str | Path) -> tuple[Genotype, Any, Card]:
  """Reads a release folder.

  Returns:
    Genotype, float32 parameters on the host, and card.

  Raises:
    LoadError: Names the file that is missing, foreign or does not fit.
  """
  directory = Path(directory)
  for path in sorted(directory.iterdir()):
    if path.suffix.lower() in CODE_SUFFIXES:
      raise LoadError(
        f'{path} is code or may hold code; a release is data only. Delete it '
        'if you trust the rest.'
      )
  path = _checked(directory / CONFIG, MAX_CONFIG_BYTES)
  try:
    config = json.loads(path.read_text(encoding='utf-8'))
    if not isinstance(config, dict):
      raise ValueError(f'it is {type(config).__name__}, expected an object.')
    genotype = genotype_lib.from_dict(config.pop('genotype', None))
    dtype = config.pop('dtype', None)
    if dtype != 'float32':
      raise ValueError(f"dtype is {dtype!r}; expected 'float32'.")
    card = _card(config)
  except (ValueError, RecursionError) as error:
    raise LoadError(f'{path} does not describe a network: {error}') from None
  return genotype, _read_tensors(directory / TENSORS, genotype), card


def _card(values: dict[str, Any]) -> Card:
  """Builds the card of a config.json, refusing what it should not hold."""
  fields = {field.name: field for field in dataclasses.fields(Card)}
  for name, value in values.items():
    if name not in fields:
      near = genotype_lib.nearest(name, list(fields))
      raise ValueError(f'{name!r} is not a field.{near}')
    default = getattr(Card(), name)
    kind = list if isinstance(default, tuple) else type(default)
    if not isinstance(value, kind):
      raise ValueError(f'{name} is {value!r}; expected {kind.__name__}.')
  for name, value in values.get('metrics', {}).items():
    if not isinstance(value, int | float):
      raise ValueError(f'metrics.{name} is {value!r}; expected a number.')
  for timing in values.get('timings', ()):
    if not isinstance(timing, dict) or not timing.keys() >= _TIMING:
      raise ValueError(
        f'a timing is {timing!r}; expected {", ".join(sorted(_TIMING))}.'
      )
  values = {k: tuple(v) if isinstance(v, list) else v
            for k, v in values.items()}  # fmt: skip
  return Card(**values)


def _abstract(genotype: Genotype) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shape and type of each tensor of a network, by name."""
  network = space_of(genotype).network(genotype)
  tree = jax.eval_shape(lambda: base.init_params(jax.random.key(0), network))
  return traverse_util.flatten_dict(tree, sep='.')


def _read_tensors(path: Path, genotype: Genotype) -> Any:
  """Returns the parameters, once names, shapes and types are right."""
  expected = _abstract(genotype)
  count = sum(math.prod(leaf.shape) for leaf in expected.values())
  _checked(path, 4 * count + HEADER_BYTES * (len(expected) + 1))
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      found = {
        name: (tuple(part.get_shape()), part.get_dtype())
        for name in file.keys()  # noqa: SIM118 (it is no dict)
        for part in [file.get_slice(name)]
      }
    for name in sorted(expected.keys() | found.keys()):
      wanted = expected.get(name) and (expected[name].shape, 'F32')
      if found.get(name) != wanted:
        raise LoadError(
          f'{path}: tensor {name} is {_kind(found.get(name))}; expected '
          f'{_kind(wanted)} by the genotype in {CONFIG}.'
        )
    tensors = safetensors_numpy.load_file(path)
  except safetensors.SafetensorError as error:
    raise LoadError(f'{path} is not a safetensors file: {error}') from None
  for name, tensor in tensors.items():
    if not np.isfinite(tensor).all():
      raise LoadError(f'{path}: tensor {name} holds numbers that are not.')
  return traverse_util.unflatten_dict(tensors, sep='.')


def _kind(found: tuple[tuple[int, ...], str] | None) -> str:
  """Returns type and shape for people.

  >>> _kind(((2, 3), 'F32')), _kind(None)
  ('F32[2, 3]', 'absent')
  """
  return f'{found[1]}{list(found[0])}' if found else 'absent'


def write(
  directory: str | Path,
  genotype: Genotype,
  params: Any,
  *,
  card: Card | None = None,
  samples: tuple[np.ndarray, np.ndarray] | None = None,
) -> Path:
  """Writes a release folder; `read` is its inverse.

  Args:
    directory: A new folder, or one whose release is replaced.
    genotype: The architecture.
    params: Its float32 parameters.
    card: What is known of it; versions are filled in.
    samples: A blurry picture and the restored one, uint8 [H, W, 3].

  Returns:
    The folder.

  Raises:
    LoadError: If the folder has files of these names that are no release.
  """
  directory = Path(directory)
  for name in (CONFIG, README):
    if (directory / name).exists() and not (directory / TENSORS).exists():
      raise LoadError(
        f'{directory / name} is there, and of no release; write to a new '
        'folder.'
      )
  directory.mkdir(parents=True, exist_ok=True)
  card = card or Card()
  card = dataclasses.replace(card, versions=card.versions or versions())
  tensors = traverse_util.flatten_dict(jax.device_get(params), sep='.')
  partial = directory / f'{TENSORS}.tmp'
  # Not `save_file`, whose file none but its owner may read.
  partial.write_bytes(safetensors_numpy.save(tensors))
  partial.replace(directory / TENSORS)
  for name, image in zip(SAMPLES, samples or (None, None), strict=True):
    if image is None:  # Those that may be there are another network's.
      (directory / name).unlink(missing_ok=True)
    else:
      Image.fromarray(image).save(directory / name)
  config = {'genotype': genotype.to_dict(), 'dtype': 'float32'}
  logbook.write_json(directory / CONFIG, config | dataclasses.asdict(card))
  text = _readme(genotype, card, directory)
  (directory / README).write_text(text, encoding='utf-8')
  return directory


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
  lines = [header, ('---',) * len(header), *rows]
  return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def _slug(text: str) -> str:
  """Returns a text as a tag of the hub.

  >>> _slug('super-resolution x2')
  'super-resolution-x2'
  """
  return re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')


def _readme(genotype: Genotype, card: Card, directory: Path) -> str:
  """Returns the model card, with the header that the hub reads."""
  params, macs = space_of(genotype).count(genotype, height=720, width=1280)
  kind = card.task.partition(',')[0]  # Without how much there is to do.
  tags = dict.fromkeys(('image-restoration', _slug(kind)))
  parts = [
    '---\n' + (f'license: {card.license}\n' if card.license else '')
    + 'library_name: pynas-jax\n'
    'pipeline_tag: image-to-image\ntags:\n'
    + ''.join(f'- {tag}\n' for tag in tags) + '---',
    f'# {directory.resolve().name}: {card.task}',
    f'A network of the `{genotype.space}` space, {params:,} parameters, '
    f'{macs / 1e9:.2f} GMAC for a 720p frame.',
    '```python\nfrom pynas_jax.deploy.restorer import Restorer\n\n'
    f"restorer = Restorer.from_pretrained('{directory.resolve().name}')\n"
    'restored = restorer(image)  # [H, W, 3], uint8 or float in [0, 1].\n```',
  ]
  if all((directory / name).exists() for name in SAMPLES):
    parts.append(
      _table(('before', 'after'), [tuple(f'![]({n})' for n in SAMPLES)])
    )
  parts.append(f'```\n{genotype.describe()}\n```')
  if card.data:
    parts.append(f'## Data\n\n{card.data}')
  if card.metrics:
    rows = [(name, f'{value:.4g}') for name, value in card.metrics.items()]
    parts.append('## Metrics\n\n' + _table(('metric', 'value'), rows))
  if card.timings:
    rows = [
      (t['device'], t['backend'], t['dtype'], f'{t["height"]} x {t["width"]}',
       f'{t["p50"]:.1f}', f'{t["p95"]:.1f}')
      for t in card.timings
    ]  # fmt: skip
    header = ('device', 'backend', 'type', 'size', 'p50, ms', 'p95, ms')
    parts.append('## Latency\n\n' + _table(header, rows))
  if card.limits:
    parts.append(f'## Limits\n\n{card.limits}')
  if card.license:
    parts.append(f'## Licence\n\n{card.license}')
  rows = list(card.versions.items())
  parts.append('## Versions\n\n' + _table(('library', 'version'), rows))
  return '\n\n'.join(parts) + '\n'
