"""One sampled operator per edge: what runs, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pynas_jax.nn import gates
from pynas_jax.nn import mixed
from pynas_jax.nn import ops

CANDIDATES = tuple(ops.OPS)
X = jnp.asarray(
  np.random.default_rng(0).standard_normal((2, 8, 8, 4)), jnp.float32
)


def edge(index, weight):
  return gates.Gates(jnp.asarray(index), jnp.asarray(weight, jnp.float32))


@pytest.fixture(scope='module')
def supernet():
  """A searchable cell and its parameters, biases not at zero."""
  cell = mixed.MixedCell(CANDIDATES)
  params = cell.init(jax.random.key(0), X, edge([0], [1.0]))['params']
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  leaves = [
    0.3 * jax.random.normal(k, v.shape)
    for k, v in zip(keys, leaves, strict=True)
  ]
  return cell, structure.unflatten(leaves)


def loss(output):
  return (output * jnp.cos(X)).sum()


@pytest.mark.parametrize('name', CANDIDATES)
def test_sampled_operator_equals_the_plain_cell(supernet, name):
  cell, params = supernet
  index = CANDIDATES.index(name)
  plain = mixed.Cell(name)
  own = {name: params[name]} if name in params else {}

  @jax.jit
  def sampled_loss(params, x, index):
    return loss(cell.apply({'params': params}, x, edge(index[None], [1.0])))

  def plain_loss(own, x):
    return loss(plain.apply({'params': own}, x))

  value, grads = jax.value_and_grad(sampled_loss, (0, 1))(
    params, X, jnp.asarray(index)
  )
  expected, (own_grads, x_grad) = jax.value_and_grad(plain_loss, (0, 1))(own, X)
  np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(grads[1], x_grad, rtol=1e-4, atol=1e-5)
  for other, leaves in grads[0].items():
    if other == name:
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        leaves, own_grads[name],
      )  # fmt: skip
    else:
      assert not any(leaf.any() for leaf in jax.tree.leaves(leaves))


def test_gate_gradient_is_the_product_with_the_sampled_output(supernet):
  cell, params = supernet
  index = CANDIDATES.index('conv_5x5')

  def gated(weight):
    return loss(
      cell.apply({'params': params}, X, edge([index], weight[None]))
    )

  output = cell.apply({'params': params}, X, edge([index], [1.0])) - X
  np.testing.assert_allclose(
    jax.grad(gated)(jnp.asarray(1.0)), loss(output), rtol=1e-5
  )


def test_mixture_is_the_weighted_sum_of_all(supernet):
  cell, params = supernet
  weights = jax.nn.softmax(jnp.arange(len(CANDIDATES), dtype=jnp.float32))
  every = range(len(CANDIDATES))
  outputs = [
    cell.apply({'params': params}, X, edge([i], [1.0])) - X for i in every
  ]
  expected = X + sum(w * y for w, y in zip(weights, outputs, strict=True))
  mixture = cell.apply({'params': params}, X, edge(list(every), weights))
  np.testing.assert_allclose(mixture, expected, rtol=1e-5, atol=1e-5)


def test_inactive_operator_of_a_pair_only_moves_its_gate(supernet):
  cell, params = supernet

  def pair_loss(params, weight):
    return loss(cell.apply({'params': params}, X, edge([1, 2], weight)))

  weight = jnp.asarray([1.0, 0.0])
  grads, gate_grad = jax.grad(pair_loss, (0, 1))(params, weight)
  inactive = jax.tree.leaves(grads[CANDIDATES[2]])
  assert not any(leaf.any() for leaf in inactive)
  assert (gate_grad != 0).all()


def test_only_the_sampled_branch_is_kept_for_the_backward_pass(supernet):
  """No residuals of other branches: what is saved is x, once per path."""
  cell, params = supernet

  def apply(params, x):
    return cell.apply({'params': params}, x, edge([1], [1.0]))

  _, vjp = jax.vjp(apply, params, X)
  saved = sum(
    leaf.size for leaf in jax.tree.leaves(vjp) if getattr(leaf, 'ndim', 0) == 4
    and leaf.shape[:3] == X.shape[:3]
  )  # fmt: skip
  # x for the convolution, its output's sign for ReLU, and the gated output.
  assert saved <= 4 * X.size
