"""Gates: exact forward values, gradients by the formula, probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pynas_jax.nn import gates

ALPHAS = jnp.asarray([[0.0, 1.0, -1.0, 0.5], [2.0, 0.0, 0.0, 0.0]])


def sample_many(function, num_samples=20_000):
  keys = jax.random.split(jax.random.key(0), num_samples)
  return jax.jit(jax.vmap(function))(keys)


def test_one_path_samples_by_softmax_whatever_the_temperature():
  sampled = sample_many(lambda k: gates.one_path(k, ALPHAS, tau=0.3))
  counts = jax.nn.one_hot(sampled.index[:, :, 0], 4).mean(axis=0)
  np.testing.assert_allclose(counts, jax.nn.softmax(ALPHAS), atol=0.015)
  np.testing.assert_array_equal(sampled.weight, 1.0)  # Exactly.


@pytest.mark.parametrize('tau', [0.5, 5.0])
def test_one_path_gradient_is_that_of_the_relaxed_gate(tau):
  key = jax.random.key(3)
  gumbel = jax.random.gumbel(key, ALPHAS.shape)
  index = jnp.argmax(ALPHAS + gumbel, axis=-1)

  def relaxed(alphas):
    probs = jax.nn.softmax((alphas + gumbel) / tau)
    return probs[jnp.arange(2), index].sum()

  def gate(alphas):
    return gates.one_path(key, alphas, tau=tau).weight.sum()

  np.testing.assert_allclose(
    jax.grad(gate)(ALPHAS), jax.grad(relaxed)(ALPHAS), rtol=1e-5, atol=1e-7
  )


def test_two_path_runs_two_operators_of_which_one_is_active():
  sampled = sample_many(lambda k: gates.two_path(k, ALPHAS))
  index = np.asarray(sampled.index)
  assert (index[..., 0] != index[..., 1]).all()
  np.testing.assert_array_equal(sampled.weight[0], [[1, 0], [1, 0]])
  # Of a pair, the active one is drawn by the softmax of the two alphas.
  pair = (index[:, 0] == [1, 3]).all(axis=-1).sum()
  reverse = (index[:, 0] == [3, 1]).all(axis=-1).sum()
  expected = jax.nn.softmax(ALPHAS[0, jnp.asarray([1, 3])])[0]
  assert abs(pair / (pair + reverse) - expected) < 0.02


def test_two_path_gradient_touches_the_pair_and_sums_to_zero():
  key = jax.random.key(1)
  pair = gates.two_path(key, ALPHAS).index
  weight = jnp.asarray([[1.0, -2.0], [0.5, 3.0]])
  grad = jax.grad(lambda a: (gates.two_path(key, a).weight * weight).sum())(
    ALPHAS
  )
  touched = jax.nn.one_hot(pair, 4).sum(axis=1) > 0
  assert (grad[touched] != 0).all()
  assert (grad[~touched] == 0).all()
  np.testing.assert_allclose(grad.sum(axis=-1), 0, atol=1e-6)


def test_rescaling_keeps_the_probabilities_of_the_others():
  pair = jnp.asarray([[0, 2], [3, 1]])
  new = ALPHAS + jnp.asarray([[0.3, 0.1, -0.7, 0.2], [9.0, 0.4, 0.0, -0.4]])
  old_probs = jax.nn.softmax(ALPHAS)
  probs = jax.nn.softmax(gates.rescale(ALPHAS, new, pair))
  others = jax.nn.one_hot(pair, 4).sum(axis=1) == 0
  np.testing.assert_allclose(probs[others], old_probs[others], rtol=1e-5)
  # Between the two, the update counts in full.
  updated = jax.nn.softmax(jnp.take_along_axis(new, pair, axis=-1))
  both = jnp.take_along_axis(probs, pair, axis=-1)
  ratio = both / both.sum(axis=-1, keepdims=True)
  np.testing.assert_allclose(ratio, updated, rtol=1e-5)


def test_odds_have_no_rounding_errors_of_probabilities():
  alphas = jnp.asarray([[100.0, 1e-3, 2e-3]])
  odds = gates.log_odds(alphas, gates.fixed((1,)), gates.fixed((2,)))
  np.testing.assert_allclose(odds, -1e-3, rtol=1e-6)


@pytest.mark.parametrize('seed', range(5))
def test_gradients_of_odds_are_of_the_two_paths_alone(seed):
  """Exactly: Adam makes steps of what is not zero, however small."""
  rng = np.random.default_rng(seed)
  alphas = jnp.asarray(rng.normal(size=(8, 5)), jnp.float32)
  a, b = (tuple(rng.integers(5, size=8).tolist()) for _ in range(2))
  gradient = jax.jit(jax.grad(gates.log_odds))(
    alphas, gates.fixed(a), gates.fixed(b)
  )
  expected = np.eye(5)[list(a)] - np.eye(5)[list(b)]
  np.testing.assert_array_equal(gradient, expected)


def test_mixture_and_argmax_and_fixed():
  mixture = gates.mixture(ALPHAS)
  np.testing.assert_allclose(mixture.weight, jax.nn.softmax(ALPHAS))
  assert gates.argmax(ALPHAS).index.tolist() == [[1], [0]]
  assert gates.argmax(ALPHAS).weight.tolist() == [[1.0], [1.0]]
  assert gates.fixed((2, 0)).index.tolist() == [[2], [0]]
