"""Architecture parameters (alphas) to gates: which operators run on each edge.

Alphas are f[E, K]: E edges, K candidate operators. A `Gates` names the P
operators that run on each edge and their weights in the sum; it is all that a
supernet sees of the alphas. Source: PyNAS Eqs. 6 to 8; ProxylessNAS; GDAS.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class Gates(NamedTuple):
  """Operators that run on each edge.

  Attributes:
    index: i32[E, P], candidates that run.
    weight: f[E, P], their weights; gradients reach the alphas through it.
  """

  index: jax.Array
  weight: jax.Array


def _straight_through(probs: jax.Array, chosen: jax.Array) -> jax.Array:
  """1 at `chosen` and 0 elsewhere, exactly, with the gradient of `probs`."""
  hard = jax.nn.one_hot(chosen, probs.shape[-1], dtype=probs.dtype)
  return hard + (probs - jax.lax.stop_gradient(probs))


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
  return jnp.take_along_axis(x, index, axis=-1)


def one_path(key: jax.Array, alphas: jax.Array, *, tau: jax.Array) -> Gates:
  """Samples one operator per edge, operator i with probability softmax(alpha).

  The forward gate is exactly one-hot (Eq. 7, by Gumbel-max); its gradient is
  that of softmax((alpha + Gumbel) / tau) (straight-through, as GDAS).

  Args:
    key: PRNG key.
    alphas: f[E, K].
    tau: Temperature of the gradient, > 0.

  Returns:
    Gates with P = 1.
  """
  chex.assert_rank(alphas, 2)
  noisy = alphas + jax.random.gumbel(key, alphas.shape, alphas.dtype)
  chosen = jnp.argmax(noisy, axis=-1)
  gate = _straight_through(jax.nn.softmax(noisy / tau), chosen)
  return Gates(chosen[:, None], _take(gate, chosen[:, None]))


def two_path(key: jax.Array, alphas: jax.Array) -> Gates:
  """Samples two operators per edge, of which the first is active.

  The pair is drawn without replacement from softmax(alpha), the active one
  from the softmax of the two alphas. The other runs with weight 0, so that its
  gate gets a gradient. Follow the alphas' update with `rescale`.

  Ours: the gradient is kept when the active operator is `zero`, where the
  ProxylessNAS code skips it.

  Args:
    key: PRNG key.
    alphas: f[E, K], K >= 2.

  Returns:
    Gates with P = 2: weights are (1, 0).
  """
  chex.assert_rank(alphas, 2)
  pair_key, active_key = jax.random.split(key)
  noisy = alphas + jax.random.gumbel(pair_key, alphas.shape, alphas.dtype)
  pair = jax.lax.top_k(noisy, 2)[1]
  pair_alphas = _take(alphas, pair)
  active = jax.random.categorical(active_key, pair_alphas)
  pair = jnp.where(active[:, None] == 0, pair, pair[:, ::-1])
  probs = jax.nn.softmax(_take(alphas, pair))
  return Gates(pair, _straight_through(probs, jnp.zeros_like(active)))


def rescale(old: jax.Array, new: jax.Array, pair: jax.Array) -> jax.Array:
  """Shifts two updated alphas so that the others keep their probabilities.

  Args:
    old: f[E, K], before the update.
    new: f[E, K], after it.
    pair: i32[E, 2], the sampled candidates.

  Returns:
    f[E, K]. Source: ProxylessNAS, `rescale_updated_arch_param`.
  """
  chex.assert_equal_shape([old, new])
  log_mass = jax.nn.logsumexp(_take(new, pair), axis=-1, keepdims=True)
  old_mass = jax.nn.logsumexp(_take(old, pair), axis=-1, keepdims=True)
  sampled = jax.nn.one_hot(pair, old.shape[-1]).sum(axis=1) > 0
  return jnp.where(sampled, new - (log_mass - old_mass), old)


def log_odds(alphas: jax.Array, a: Gates, b: Gates) -> jax.Array:
  """Returns how much likelier one path is drawn than another, as a logarithm.

  Their softmax cancels. Computed all the same, it leaves rounding errors in the
  gradient, in some programs, and Adam takes them for a direction.

  >>> float(log_odds(jnp.array([[1.0, 0.0, 0.5]]), fixed((0,)), fixed((1,))))
  1.0

  Args:
    alphas: f[E, K].
    a: Of one path, P = 1.
    b: Likewise.

  Returns:
    f[].
  """
  chex.assert_rank(alphas, 2)
  return (_take(alphas, a.index) - _take(alphas, b.index)).sum()


def mixture(alphas: jax.Array) -> Gates:
  """Weights all operators by softmax(alpha) (Eq. 6), for comparison.

  Args:
    alphas: f[E, K].

  Returns:
    Gates with P = K.
  """
  chex.assert_rank(alphas, 2)
  index = jnp.broadcast_to(jnp.arange(alphas.shape[1]), alphas.shape)
  return Gates(index, jax.nn.softmax(alphas))


def argmax(alphas: jax.Array) -> Gates:
  """Selects the likeliest operator of each edge: the derived network.

  Args:
    alphas: f[E, K].

  Returns:
    Gates with P = 1.
  """
  chex.assert_rank(alphas, 2)
  index = jnp.argmax(alphas, axis=-1)[:, None]
  return Gates(index, jnp.ones(index.shape, alphas.dtype))


def fixed(index: tuple[int, ...]) -> Gates:
  """Selects the given operator of each edge.

  Args:
    index: Candidate per edge.

  Returns:
    Gates with P = 1.
  """
  index = jnp.asarray(index, jnp.int32)[:, None]
  return Gates(index, jnp.ones(index.shape))
