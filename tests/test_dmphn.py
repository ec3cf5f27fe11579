"""DMPHN's published weights in our network give the published outputs."""

import numpy as np
from PIL import Image
import pytest

from pynas_jax.deploy import restorer
from pynas_jax.spaces import dmphn


@pytest.fixture(scope='module')
def published(shared):
  pytest.importorskip('torch', reason='PyTorch reads the published weights')
  folder = shared / 'data' / 'dmphn'
  if not folder.is_dir():
    pytest.skip(f'{folder} is not there: it holds the published weights')
  return folder


@pytest.fixture(scope='module')
def restore(published):
  return restorer.load(published / 'checkpoints')


@pytest.mark.parametrize(
  'name',
  [
    '000002',
    pytest.param('000003', marks=pytest.mark.slow),
    pytest.param('000004', marks=pytest.mark.slow),
  ],
)
def test_published_weights_reproduce_the_stored_frames(
  published, restore, name
):
  blurred, expected = (
    np.asarray(Image.open(published / 'samples' / folder / f'{name}.png'))
    for folder in ('blur', 'restored')
  )
  restored = 255 * restore(blurred / 255)
  assert restored.shape == (720, 1280, 3)
  # The published code truncates where we round.
  for rounding, least in ((np.round, 50), (np.floor, 53)):
    error = np.square(rounding(restored) - expected).mean()
    psnr = 10 * np.log10(255**2 / error)
    print(f'{name}: {psnr:.2f} dB to the stored frame, {rounding.__name__}')
    assert psnr >= least


def test_missing_and_damaged_files_are_named(tmp_path):
  with pytest.raises(dmphn.WeightsError, match='encoder_lv1.pkl is missing'):
    dmphn.load(tmp_path)


def test_files_that_are_not_weights_are_refused(tmp_path):
  pytest.importorskip('torch', reason='PyTorch reads the published weights')
  path = tmp_path / 'encoder_lv1.pkl'
  path.write_bytes(b'not a state dict')
  with pytest.raises(dmphn.WeightsError, match='encoder_lv1.pkl is not'):
    dmphn.read_state_dict(path)
