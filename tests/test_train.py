"""Training: schedules, averaging, divergence, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pynas_jax import compiling
from pynas_jax import config as config_lib
from pynas_jax import genotype as genotype_lib
from pynas_jax import metrics
from pynas_jax import parallel
from pynas_jax import spaces
from pynas_jax import train as train_lib
from pynas_jax.data import pipeline
from pynas_jax.logbook import Logbook
from pynas_jax.logbook import read_records
from pynas_jax.spaces import base

CELLS = ('conv_3x3', 'conv_3x3')
NETWORK = genotype_lib.PyramidGenotype(
  scales=(genotype_lib.ScaleGenotype(1, CELLS, CELLS),),
  widths=(4, 8), cells_per_stage=1,
)  # fmt: skip


def config(**train):
  c = config_lib.shrink(config_lib.base())
  return config_lib.override(c, {'train': train})


def test_schedules():
  t = config().train
  t.lr, t.decay_every, t.decay_rate = 1.0, 10, 0.1
  rates = {}
  for t.schedule in ('constant', 'step', 'cosine'):
    schedule = train_lib.make_schedule(t, 20)
    rates[t.schedule] = [float(schedule(i)) for i in (0, 9, 10, 20)]
  np.testing.assert_allclose(rates['constant'], [1, 1, 1, 1])
  np.testing.assert_allclose(rates['step'], [1, 1, 0.1, 0.01], rtol=1e-5)
  np.testing.assert_allclose(rates['cosine'][::3], [1, 0], atol=1e-6)
  assert rates['cosine'][2] == pytest.approx(0.5)


def test_average_follows_the_weights():
  step = train_lib.make_train_step(
    _Scale(), optax.sgd(1.0), loss='mse', ema_decay=0.75
  )
  state = train_lib.init_state(
    {'scale': jnp.zeros(())}, optax.sgd(1.0), ema_decay=0.75
  )
  step = parallel.make_parallel(step, devices=jax.local_devices()[:1])
  ones = np.ones((1, 2, 2, 3), np.float32)
  state, _ = step(state, {'blurred': ones, 'sharp': ones}, jax.random.key(0))
  # The gradient of (scale - 1)^2 at 0 is -2.
  assert float(state.params['scale']) == pytest.approx(2.0)
  assert float(state.averaged['scale']) == pytest.approx(0.5)


class _Scale:
  """image -> scale * image."""

  @staticmethod
  def apply(variables, image):
    return variables['params']['scale'] * image


def test_clipping_bounds_the_update():
  tx = train_lib.clipped(optax.sgd(1.0), 0.5)
  params = {'w': jnp.zeros(2)}
  updates, _ = tx.update({'w': jnp.asarray([3.0, 4.0])}, tx.init(params))
  np.testing.assert_allclose(updates['w'], [-0.3, -0.4], rtol=1e-6)
  unclipped = train_lib.clipped(optax.sgd(1.0), 0.0)
  updates, _ = unclipped.update({'w': jnp.ones(2)}, unclipped.init(params))
  np.testing.assert_allclose(updates['w'], -1)


@pytest.mark.parametrize('clip_norm', [0.0, 0.5, 5.0, 50.0])
def test_the_factor_is_that_of_the_clip(clip_norm):
  clip = train_lib.make_clip(clip_norm)
  for grads in ({'w': jnp.asarray([3.0, 4.0]), 'b': jnp.zeros(1)},
                {'w': jnp.zeros(2)}):  # fmt: skip
    factor = train_lib.clip_factor(grads, clip_norm)
    clipped, _ = clip.update(grads, clip.init(grads))
    jax.tree.map(
      lambda x, y, factor=factor: np.testing.assert_allclose(factor * x, y),
      grads, clipped,
    )  # fmt: skip


def test_muon_makes_updates_of_convolutions_orthogonal():
  t = config(optimizer='muon', schedule='constant', lr=1e-2, clip_norm=0).train
  tx = train_lib.make_tx(t, 10)
  rng = np.random.default_rng(0)
  grads = {
    'conv': rng.normal(size=(3, 3, 8, 16)) * np.linspace(0.1, 1, 16),
    'depthwise': rng.normal(size=(3, 3, 1, 8)),
    'bias': rng.normal(size=8),
  }
  grads = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), grads)
  updates, _ = tx.update(grads, tx.init(grads), grads)
  conv = np.asarray(updates['conv'])
  u, values, v = np.linalg.svd(grads['conv'].reshape(-1, 16), False)
  assert values.max() > 8 * values.min()
  found = u.T @ -conv.reshape(-1, 16) @ v.T / (0.2 * 1e-2 * np.sqrt(72))
  assert np.diag(found).min() > 0.6 and np.diag(found).max() < 1.25
  np.testing.assert_allclose(found, np.diag(np.diag(found)), atol=1e-4)
  # So the root mean square of an update is 0.2 of the learning rate.
  rms = np.sqrt(np.square(conv).mean())
  assert rms == pytest.approx(0.2 * 1e-2, rel=0.3)
  adam = optax.nadam(1e-2)
  others = {k: grads[k] for k in ('depthwise', 'bias')}
  expected, _ = adam.update(others, adam.init(others))
  for name, value in expected.items():
    np.testing.assert_allclose(updates[name], value, rtol=1e-5)


@pytest.mark.parametrize('loss', ['mse', 'psnr'])
def test_a_network_learns_a_batch_by_heart(loss):
  network = spaces.space_of(NETWORK).network(NETWORK, zero_init_last=True)
  tx = train_lib.clipped(optax.adam(1e-2), 1.0)
  params = base.init_params(jax.random.key(0), network)
  state = train_lib.init_state(params, tx, ema_decay=0.0)
  step = train_lib.make_train_step(network, tx, loss=loss, ema_decay=0.0)
  step = parallel.make_parallel(step, devices=jax.local_devices()[:1])
  batch = next(
    pipeline.make_train_iterator(
      config(), split='train', batch_size=2, crop=24, seed=0
    )
  )
  values = []
  for _ in range(120):
    state, figures = step(state, batch, jax.random.key(0))
    values.append(float(figures['loss']))
  error = np.square(batch['blurred'] - batch['sharp']).mean((1, 2, 3))
  first = {'mse': error.mean(), 'psnr': 10 * np.log10(error).mean()}[loss]
  assert values[0] == pytest.approx(first, rel=1e-3)  # Starts as the identity.
  better = {'mse': 0.93 * first, 'psnr': first - 0.3}[loss]
  assert values[-1] < better


@pytest.mark.usefixtures('short_of_memory')
@pytest.mark.parametrize('remat', [False, True])
def test_want_of_memory_names_the_settings(remat, tmp_path):
  c = config(num_steps=1)
  c.model.remat = remat
  with (
    Logbook(tmp_path) as logbook,
    pytest.raises(train_lib.TrainingError) as raised,
  ):
    train_lib.train(NETWORK, c, directory=tmp_path / 'run', logbook=logbook)
  message = str(raised.value)
  assert message.startswith('train: memory does not suffice (RESOURCE_EXHAUS')
  assert 'lower train.batch_size or data.crop, in a new workdir' in message
  assert ('set model.remat=True' in message) != remat


def test_memory_of_the_host_is_memory():
  with (
    pytest.raises(train_lib.TrainingError, match='lower a or data.crop'),
    train_lib.explaining_memory(config(), what='', batch_size='a'),
  ):
    np.empty(1 << 60, np.uint8)


def test_other_errors_are_not_of_memory():
  for error in (jax.errors.JaxRuntimeError('INTERNAL: x'), KeyError('x')):
    with (
      pytest.raises(type(error)),
      train_lib.explaining_memory(config(), what='', batch_size=''),
    ):
      raise error


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_training_keeps_the_best(tmp_path, dtype):
  c = config(num_steps=30, eval_every=10, ema_decay=0.5, dtype=dtype)
  with Logbook(tmp_path) as logbook:
    result = train_lib.train(
      NETWORK, c, directory=tmp_path / 'checkpoints', logbook=logbook
    )
  records = read_records(tmp_path)
  assert [r['step'] for r in records] == [10, 20, 30]
  assert result.psnr == max(r['validation/psnr'] for r in records)
  with Logbook(tmp_path) as logbook:
    again = train_lib.train(
      NETWORK, c, directory=tmp_path / 'checkpoints', logbook=logbook
    )
  assert again.seconds == result.seconds > 0
  assert all(
    leaf.dtype == np.float32 for leaf in jax.tree.leaves(result.params)
  )


def test_long_trainings_have_a_step_of_their_own(tmp_path, monkeypatch):
  c, psnrs, compiled = config(num_steps=10, eval_every=5), [], []

  def compile_program(function, *args, dtype):
    compiled.append(dtype)
    return function.lower(*args).compile()

  monkeypatch.setattr(compiling, 'has_onednn', lambda dtype: True)
  monkeypatch.setattr(compiling, 'compile_program', compile_program)
  for many in (11, 10):
    monkeypatch.setattr(compiling, 'MANY_STEPS', many)
    with Logbook(tmp_path / f'{many}') as logbook:
      folder = tmp_path / f'{many}' / 'checkpoints'
      result = train_lib.train(NETWORK, c, directory=folder, logbook=logbook)
    psnrs.append(result.psnr)
  assert compiled == ['float32']
  assert psnrs[0] == pytest.approx(psnrs[1], rel=1e-4)


@pytest.mark.parametrize('num_steps', [1, 4])
def test_what_is_not_a_number_stops_before_it_is_saved(tmp_path, num_steps):
  # After one step the loss before it is sound, and the score is not.
  c = config(
    num_steps=num_steps, eval_every=1, lr=1e38, loss='mse', clip_norm=0.0
  )
  c.model.zero_init_last = False
  with (
    Logbook(tmp_path) as logbook,
    pytest.raises(train_lib.TrainingError, match='at step .*in a new workdir'),
  ):
    train_lib.train(NETWORK, c, directory=tmp_path / 'c', logbook=logbook)
  for record in read_records(tmp_path):
    assert np.isfinite(record['train/loss'])
    assert np.isfinite(record['validation/psnr'])


def test_pairs_that_are_equal_have_a_finite_score():
  network = spaces.space_of(NETWORK).network(NETWORK)
  score = train_lib.make_score(network)
  black = np.zeros((2, 16, 16, 3), np.float32)
  grey = black + np.float32([0, 0.5])[:, None, None, None]
  batch = {'blurred': black, 'sharp': grey}
  params = base.init_params(jax.random.key(0), network)
  params = jax.tree.map(jnp.zeros_like, params)
  expected = (metrics.MAX_PSNR - 20 * np.log10(128 / 255)) / 2
  assert score(params, batch) == pytest.approx(expected, abs=0.05)
