"""One device and four: the same gradients and the same states."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pynas_jax import api
from pynas_jax import compiling
from pynas_jax import config as config_lib
from pynas_jax import genotype as genotype_lib
from pynas_jax import parallel
from pynas_jax import spaces
from pynas_jax import train as train_lib
from pynas_jax.nn import gates
from pynas_jax.search import bilevel
from pynas_jax.spaces import base

KEY = jax.random.key(0)


def config():
  c = config_lib.shrink(config_lib.base())
  # From zero-initialised layers some gradients are exactly 0.
  c.model.zero_init_last = False
  c.search.warmup_steps = 1
  return c


def batches(num_batches=3, batch_size=4):
  rng = np.random.default_rng(0)
  for _ in range(num_batches):
    sharp = rng.random((batch_size, 24, 24, 3), np.float32)
    noise = rng.normal(0, 0.1, sharp.shape).astype(np.float32)
    yield {'blurred': sharp + noise, 'sharp': sharp}


def run(step, state, num_devices, **options):
  """Three steps on the same global batches; the state is copied first."""
  devices = jax.local_devices()[:num_devices]
  step = parallel.make_parallel(step, devices=devices, **options)
  state = jax.tree.map(jnp.copy, state)
  for batch in batches():
    state, metrics = step(state, batch, KEY)
  return jax.device_get((state, metrics))


def assert_close(a, b, **tolerance):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, **tolerance)


@pytest.mark.usefixtures('four_devices')
def test_gradients_do_not_depend_on_the_number_of_devices():
  """Gradients, not losses: Adam would hide a factor."""
  space = spaces.make_space(config())
  draft = space.draft((1, 2))
  supernet = space.supernet(draft, 'scale2')
  one_hot = gates.fixed((0, 1, 2, 3))
  params = base.init_params(KEY, supernet, one_hot)
  loss_fn = bilevel.make_loss(supernet, 'mse')

  def gradient_step(state, batch, key):
    del key
    grads, _ = jax.grad(loss_fn, has_aux=True)(params, one_hot, batch)
    return parallel.mean(grads), {}

  one, four = (run(gradient_step, params, n)[0] for n in (1, 4))
  (batch,) = list(batches())[-1:]
  expected, _ = jax.jit(jax.grad(loss_fn, has_aux=True))(
    params, one_hot, batch
  )
  assert_close(one, expected, rtol=1e-4, atol=1e-6)
  assert_close(four, one, rtol=1e-4, atol=1e-5)
  assert float(optax.tree.norm(expected)) > 1e-2


@pytest.mark.usefixtures('four_devices')
@pytest.mark.parametrize('num_devices', [1, 4])
def test_steps_of_long_runs_are_compiled_once_and_do_the_same(
  num_devices, monkeypatch
):
  # Compilers that know no such options do without.
  monkeypatch.setattr(compiling, 'has_onednn', lambda dtype: True)
  c = config()
  space = spaces.make_space(c)
  draft = space.draft((1,))
  supernet = space.supernet(draft, 'scale1')
  alphas = space.init_alphas(KEY, draft, 'scale1')
  params = base.init_params(KEY, supernet, gates.argmax(alphas))
  step = bilevel.make_weight_step(space, 'scale1', supernet, c.search)
  state = bilevel.init_state(params, alphas, c.search)
  compiled = []

  def compile_program(*args):
    compiled.append(compiling.of_steps(10**6)(*args))
    return compiled[-1]

  long = run(step, state, num_devices, compile_program=compile_program)
  assert len(compiled) == 1
  assert_close(long, run(step, state, num_devices), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures('four_devices')
@pytest.mark.parametrize(
  ('estimator', 'scheme'),
  [('one_path', (1, 2)), ('two_path', (1,)), ('reinforce', (1,))],
)
def test_search_states_do_not_depend_on_the_number_of_devices(
  estimator, scheme
):
  c = config()
  c.search.estimator = estimator
  space = spaces.make_space(c)
  draft = space.draft(scheme)
  stage = space.stages(draft)[0]
  supernet = space.supernet(draft, stage)
  alphas = space.init_alphas(KEY, draft, stage)
  params = base.init_params(KEY, supernet, gates.argmax(alphas))
  weight_step = bilevel.make_weight_step(space, stage, supernet, c.search)
  alpha_step = bilevel.make_alpha_step(supernet, c.search)

  def both(state, batch, key):
    state, metrics = weight_step(state, batch, key)
    return alpha_step(state, batch, key)[0], metrics

  state = bilevel.init_state(params, alphas, c.search)
  one, four = (run(both, state, n)[0] for n in (1, 4))
  assert one.step == 3
  assert (one.alphas != alphas).any()
  assert_close(one, four, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures('four_devices')
def test_train_states_do_not_depend_on_the_number_of_devices():
  c = config()
  space = spaces.make_space(c)
  draft = space.draft((1, 2))
  for stage in space.stages(draft):
    draft = space.derive(draft, stage, space.init_alphas(KEY, draft, stage))
  network = space.network(space.genotype(draft))
  params = base.init_params(KEY, network)
  tx = train_lib.clipped(optax.adam(1e-3), 1.0)
  step = train_lib.make_train_step(network, tx, loss='psnr', ema_decay=0.9)
  state = train_lib.init_state(params, tx, ema_decay=0.9)
  one, four = (run(step, state, n)[0] for n in (1, 4))
  assert one.step == 3
  assert_close(one, four, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures('four_devices')
def test_batches_that_cannot_be_shared_name_the_setting(tmp_path):
  genotype = genotype_lib.reference('dmphn-1-2')
  with pytest.raises(ValueError, match='train.batch_size.*of 6.*multiple of'):
    api.train(genotype, workdir=tmp_path, train={'batch_size': 6})


def test_devices_that_are_not_there_are_told(root):
  code = 'from pynas_jax import parallel; parallel.check_devices()'
  done = subprocess.run(
    [sys.executable, '-c', code], text=True, capture_output=True, cwd=root,
    env=os.environ | {'JAX_PLATFORMS': 'rocm'},
  )  # fmt: skip
  last = done.stderr.splitlines()[-1]
  assert "DeviceError: JAX_PLATFORMS is 'rocm', and JAX finds no" in last


@pytest.mark.usefixtures('four_devices')
@pytest.mark.parametrize('count', [1, 4])
def test_one_device_averages_nothing(count):
  mapped = jax.pmap(
    parallel.mean, axis_name=parallel.AXIS, devices=jax.local_devices()[:count]
  )
  lowered = mapped.lower(jnp.ones((count, 3))).as_text()
  assert ('all_reduce' in lowered) == (count > 1)


def test_a_step_is_compiled_once_and_takes_nothing_from_its_caller(caplog):
  def add(state, batch, key):
    del key
    return state + parallel.mean(batch.mean()), {'loss': state.sum()}

  step = parallel.make_parallel(add)
  first, batch, key = jnp.ones((3, 5)), np.ones((8, 2)), jax.random.key(0)
  with jax.log_compiles(), caplog.at_level('WARNING'):
    state, _ = step(first, batch, key)
    assert 'XLA compilation' in caplog.text
    caplog.clear()
    for _ in range(3):
      state, _ = step(state, batch, key)
    assert 'XLA compilation' not in caplog.text
  np.testing.assert_array_equal(first, np.ones((3, 5)))
  np.testing.assert_array_equal(state, np.full((3, 5), 5.0))


class Result:
  """Stands for an array that a device is still to fill."""

  def __init__(self):
    self.ready = False

  def is_ready(self):
    return self.ready

  def block_until_ready(self):
    self.ready = True
    return self


def test_what_is_done_is_told_and_little_is_launched_ahead():
  launched, results = parallel.Launched(10), []
  for step in range(11, 11 + parallel.LEAD):
    results.append(Result())
    launched.add(step, results[-1])
    assert launched.done == 10
  results[0].ready = results[1].ready = True
  results.append(Result())
  launched.add(11 + parallel.LEAD, results[-1])
  assert launched.done == 12
  for step in range(12 + parallel.LEAD, 14 + parallel.LEAD):
    launched.add(step, Result())
  assert launched.done == 13 and results[2].ready and not results[3].ready
  launched.add(100, jnp.zeros(()))
  assert launched.done == 14


def test_a_step_s_figures_can_be_waited_for_after_the_next_step():
  """Results of steps are kept while later steps are given their states."""
  step = parallel.make_parallel(lambda state, batch, key: (
    state + parallel.mean(batch.mean()), {'loss': parallel.mean(batch.mean())}
  ))  # fmt: skip
  state, launched = jnp.zeros(()), parallel.Launched(0)
  for i in range(10):
    state, figures = step(state, np.ones((4, 2), np.float32), KEY)
    launched.add(i, figures['loss'])
  assert launched.done >= 9 - parallel.LEAD and state == 10


@pytest.mark.usefixtures('four_devices')
def test_the_device_is_the_one_that_was_chosen():
  first, second = jax.local_devices()[:2]
  assert parallel.device() == first
  with jax.default_device(second):
    assert parallel.device() == second


@pytest.mark.parametrize(
  ('text', 'name', 'features'),
  [
    ('processor\t: 0\nmodel name\t: Chip 7\nflags\t\t: sse avx2\n\n',
     'Chip 7', 'sse avx2'),
    ('processor\t: 0\nFeatures\t: fp asimd\n', None, 'fp asimd'),
    (None, None, ''),
  ],
)  # fmt: skip
def test_a_processor_has_a_name_and_tells_what_it_can(
  text, name, features, tmp_path, monkeypatch
):
  path = tmp_path / 'cpuinfo'
  if text:
    path.write_text(text)
  monkeypatch.setattr(parallel, '_CPUINFO', path)
  found = parallel.processor.__wrapped__()  # Not what is kept.
  assert found[1] == features and found[0]
  assert name in (None, found[0])


def test_a_device_s_name_tells_processors_apart(monkeypatch):
  for features, told in (
    ('sse avx2', 'cpu: Chip, avx2, '),
    ('avx2 avx512f', 'cpu: Chip, avx512f, '),
    ('', 'cpu: Chip, '),
  ):
    monkeypatch.setattr(parallel, 'processor', lambda: ('Chip', features))  # noqa: B023
    assert parallel.device_name().startswith(told)
    assert parallel.device_name().endswith(' cores')
