"""Release folders: written, read as they were, and refused when not whole."""

import json
import os
from pathlib import Path
import shutil
import sys

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from pynas_jax import genotype as genotype_lib
from pynas_jax.deploy import release
from pynas_jax.deploy.release import Card
from pynas_jax.deploy.release import LoadError
from pynas_jax.deploy.restorer import Restorer
from pynas_jax.deploy.restorer import load
from pynas_jax.spaces import base
from pynas_jax.spaces import space_of

CELLS = ('conv_3x3', 'sep_conv_3x3')
NETWORK = genotype_lib.PyramidGenotype(
  scales=(genotype_lib.ScaleGenotype(1, CELLS, CELLS),), widths=(4, 8),
  cells_per_stage=1,
)  # fmt: skip
TIMING = {
  'device': 'cpu: a', 'backend': 'xla', 'dtype': 'float32', 'height': 720,
  'width': 1280, 'p50': 31.25, 'p95': 40.0,
}  # fmt: skip
CARD = Card(
  data='Twelve photographs.', metrics={'psnr': 31.0}, timings=(TIMING,),
  limits='None known.', license='apache-2.0',
)  # fmt: skip
IMAGE = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def restorer():
  network = space_of(NETWORK).network(NETWORK)
  return Restorer(NETWORK, base.init_params(jax.random.key(0), network))


@pytest.fixture(scope='module')
def published(restorer, tmp_path_factory):
  folder = tmp_path_factory.mktemp('release') / 'sharp'
  samples = IMAGE, restorer(IMAGE)
  return restorer.save_pretrained(folder, card=CARD, samples=samples)


@pytest.fixture
def folder(published, tmp_path):
  """A copy, to be spoilt."""
  return shutil.copytree(published, tmp_path / 'sharp')


def test_a_release_comes_back_as_it_was(published, restorer):
  loaded = Restorer.from_pretrained(published)
  assert loaded.genotype == NETWORK
  jax.tree.map(np.testing.assert_array_equal, loaded.params, restorer.params)
  np.testing.assert_array_equal(loaded(IMAGE), restorer(IMAGE))
  assert loaded.card.metrics == CARD.metrics
  assert loaded.card.timings == CARD.timings
  assert loaded.card.versions['jax'] == jax.__version__


def test_what_was_loaded_can_be_published_again(published, tmp_path):
  again = Restorer.from_pretrained(published).save_pretrained(tmp_path / 'b')
  for name in (release.CONFIG, release.TENSORS):
    assert (again / name).read_bytes() == (published / name).read_bytes()


def test_samples_of_another_network_do_not_stay(folder, restorer):
  restorer.save_pretrained(folder)
  assert not any((folder / name).exists() for name in release.SAMPLES)
  assert 'before.png' not in (folder / release.README).read_text()


@pytest.mark.parametrize(
  ('task', 'tag'),
  [
    ('super-resolution x2', 'super-resolution-x2'),
    ('denoising, sigma 30, grey', 'denoising'),
  ],
)
def test_the_task_is_a_tag(task, tag):
  text = release._readme(NETWORK, Card(task=task), Path('net'))
  assert f'tags:\n- image-restoration\n- {tag}\n---' in text
  assert f'# net: {task}' in text
  assert 'licen' not in text.lower()  # Its owner has named none.


@pytest.mark.parametrize('name', [release.CONFIG, release.README])
def test_files_of_something_else_stay(restorer, tmp_path, name):
  (tmp_path / name).write_text('mine')
  with pytest.raises(LoadError, match=f'{name} is there, and of no release'):
    restorer.save_pretrained(tmp_path)
  assert [path.read_text() for path in tmp_path.iterdir()] == ['mine']


def test_a_file_is_no_name_of_the_hub(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'net').touch()
  with pytest.raises(release.LoadError, match='in/net is no folder; expected'):
    Restorer.from_pretrained('in/net')


def test_whoever_may_read_the_card_may_read_the_weights(published):
  modes = {path.stat().st_mode for path in published.iterdir()}
  assert len(modes) == 1


def test_the_card_tells_people_what_they_ask(published):
  text = (published / release.README).read_text()
  for part in (
    'license: apache-2.0', 'Twelve photographs.', '| psnr | 31 |',
    '720 x 1280 | 31.2 | 40.0', '![](before.png)', 'None known.',
    "from_pretrained('sharp')", NETWORK.describe(),
  ):  # fmt: skip
    assert part in text


def test_the_folder_at_hand_has_a_name(restorer, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  text = (restorer.save_pretrained('.') / release.README).read_text()
  assert f"from_pretrained('{tmp_path.name}')" in text


def test_names_are_plain(published):
  tensors = safetensors_numpy.load_file(published / release.TENSORS)
  assert 'scale1.encoder.stem.kernel' in tensors


def edit(folder, **changes):
  path = folder / release.CONFIG
  values = json.loads(path.read_text()) | changes
  path.write_text(json.dumps(values))


def edit_tensors(folder, change):
  path = folder / release.TENSORS
  tensors = safetensors_numpy.load_file(path)
  change(tensors)
  safetensors_numpy.save_file(tensors, path)


BIAS = 'scale1.encoder.stem.bias'
SPOILT = {
  'no config': (
    lambda f: (f / 'config.json').unlink(), r'config\.json is missing'
  ),
  'no tensors': (
    lambda f: (f / 'model.safetensors').unlink(),
    r'model\.safetensors is missing',
  ),
  'no JSON': (
    lambda f: (f / 'config.json').write_text('{'), 'does not describe a network'
  ),
  'a list': (
    lambda f: (f / 'config.json').write_text('[]'), 'expected an object'
  ),
  'deep JSON': (
    lambda f: (f / 'config.json').write_text('[' * 100_000),
    'does not describe a network',
  ),
  'large config': (
    lambda f: (f / 'config.json').write_text(' ' * (1 << 20) + '{}'),
    'expected at most 1,048,576',
  ),
  'no genotype': (
    lambda f: edit(f, genotype=None), 'genotype is None; expected a JSON object'
  ),
  'a foreign operator': (
    lambda f: edit(f, genotype=NETWORK.to_dict() | {'upsample': 'x'}),
    'upsample is .x.; expected one of',
  ),
  'another type': (
    lambda f: edit(f, dtype='int8'), "dtype is 'int8'; expected 'float32'"
  ),
  'a field that names code': (
    lambda f: edit(f, auto_map={'AutoModel': 'modeling.Model'}),
    "'auto_map' is not a field",
  ),
  'a field of another kind': (
    lambda f: edit(f, metrics='high'), "metrics is 'high'; expected dict"
  ),
  'a score that is none': (
    lambda f: edit(f, metrics={'psnr': 'x'}),
    "metrics.psnr is 'x'; expected a number",
  ),
  'a timing that is none': (
    lambda f: edit(f, timings=[1]), 'a timing is 1; expected backend, device'
  ),
  'another genotype': (
    lambda f: edit(f, genotype=NETWORK.to_dict() | {'link': 'concat',
                                                    'unshuffle': 2}),
    r'tensor scale1\.decoder\.out\.bias is F32\[3\]; expected F32\[12\]',
  ),
  'one tensor less': (
    lambda f: edit_tensors(f, lambda t: t.pop(BIAS)),
    rf'tensor {BIAS} is absent; expected F32\[4\]',
  ),
  'one tensor more': (
    lambda f: edit_tensors(f, lambda t: t.update(x=np.zeros(1, np.float32))),
    r'tensor x is F32\[1\]; expected absent',
  ),
  'half precision': (
    lambda f: edit_tensors(
      f, lambda t: t.update({BIAS: t[BIAS].astype(np.float16)})
    ),
    r'is F16\[4\]; expected F32\[4\]',
  ),
  'not a number': (
    lambda f: edit_tensors(f, lambda t: t[BIAS].fill(np.nan)),
    f'tensor {BIAS} holds numbers that are not',
  ),
  'too many bytes': (
    lambda f: (f / 'model.safetensors').write_bytes(bytes(1 << 20)),
    'model.safetensors has 1,048,576 bytes; expected at most',
  ),
  'no safetensors': (
    lambda f: (f / 'model.safetensors').write_bytes(b'PK\3\4' * 50),
    'is not a safetensors file',
  ),
  'half a file': (
    lambda f: os.truncate(f / 'model.safetensors', 3000),
    'is not a safetensors file',
  ),
  'code beside it': (
    lambda f: (f / 'modeling.py').write_text('1'), r'modeling\.py is code'
  ),
  'a pickle beside it': (
    lambda f: (f / 'model.pkl').write_text('1'), r'model\.pkl is code'
  ),
}


@pytest.mark.parametrize('name', SPOILT)
def test_what_is_not_whole_is_refused_by_name(name, folder):
  spoil, message = SPOILT[name]
  spoil(folder)
  with pytest.raises(LoadError, match=message) as caught:
    Restorer.from_pretrained(folder)
  assert str(folder) in str(caught.value)


@pytest.mark.skipif(sys.platform == 'win32', reason='needs links')
def test_links_out_of_the_folder_are_refused(folder, tmp_path):
  for name in (release.CONFIG, release.TENSORS):
    shutil.move(folder / name, tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(LoadError, match='is a link to'):
      Restorer.from_pretrained(folder)
    (folder / name).unlink()
    shutil.move(tmp_path / name, folder / name)
  assert load(folder).genotype == NETWORK


def test_networks_of_this_package_are_known_by_name(
  published, tmp_path, monkeypatch
):
  monkeypatch.setattr(release, 'MODELS', tmp_path)
  with pytest.raises(LoadError, match=r'of this package \(none'):
    Restorer.from_pretrained('sharp')
  shutil.copytree(published, tmp_path / 'sharp')
  assert release.shipped() == ['sharp']
  assert Restorer.from_pretrained('sharp').genotype == NETWORK
  assert load('sharp').card.data == CARD.data
  with pytest.raises(LoadError, match=r'of this package \(sharp'):
    load('shrap')


def test_the_hub_is_read_from_its_cache(published, tmp_path):
  """A repository as huggingface_hub keeps it: links from commits to blobs."""
  pytest.importorskip('huggingface_hub')
  repository = tmp_path / 'models--someone--sharp'
  commit = 'a' * 40
  snapshot = repository / 'snapshots' / commit
  snapshot.mkdir(parents=True)
  (repository / 'blobs').mkdir()
  for name in (release.CONFIG, release.TENSORS):
    shutil.copy(published / name, repository / 'blobs' / name)
    (snapshot / name).symlink_to(f'../../blobs/{name}')
  (repository / 'refs').mkdir()
  (repository / 'refs' / 'main').write_text(commit)
  options = {'cache_dir': tmp_path, 'local_files_only': True}
  loaded = Restorer.from_pretrained('someone/sharp', **options)
  np.testing.assert_array_equal(loaded(IMAGE), load(published)(IMAGE))
  loaded = Restorer.from_pretrained('someone/sharp', revision=commit, **options)
  assert loaded.genotype == NETWORK
  for name in ('someone/other', 'someone/sharp/x', '../sharp'):
    with pytest.raises(LoadError, match=f'{name} is no folder'):
      Restorer.from_pretrained(name, **options)


def test_what_is_saved_keeps_its_task(tmp_path):
  network = load('fast')
  saved = load(network.save(tmp_path / 'saved'))
  assert saved.card.task == network.card.task
  plain = Restorer(network.genotype, network.params)
  text = (plain.save_pretrained(tmp_path / 'plain') / 'README.md').read_text()
  assert text.count('- image-restoration\n') == 1
