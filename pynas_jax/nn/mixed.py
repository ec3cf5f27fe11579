"""One sampled operator per edge, in compiled code.

Feature maps are [B, H, W, C]. Only the sampled operator runs, forward and
backward, and it leaves no residuals of the others. Source: PyNAS Eq. 8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from pynas_jax.nn import ops
from pynas_jax.nn.gates import Gates


def make_switch(
  branches: Sequence[Callable[[Any, jax.Array], jax.Array]],
  activated: Sequence[bool],
) -> Callable[[jax.Array, jax.Array, Sequence[Any], jax.Array], jax.Array]:
  """Returns `switch(index, weight, params, x)`: x plus one gated branch.

  That is `x + weight * f(params[index], x)`, with f the branch, or ReLU of it;
  no other branch runs. A plain `lax.switch` keeps the residuals of every
  branch. Here the backward pass is one switch that differentiates the sampled
  branch afresh from `x`; a convolution needs no more than `x` for that, so
  nothing is computed twice. Of ReLU one byte a value is kept, where it let
  through: less than a static network keeps.

  Args:
    branches: Functions of (their own parameters, x) with the type of x.
    activated: Of each branch, whether it is followed by ReLU.

  Returns:
    A differentiable function of a scalar i32, a scalar f32, parameters per
    branch, and x.
  """
  every = range(len(branches))

  def run(i):
    def branch(weight, params, x):
      y = branches[i](params[i], x)
      is_open = y > 0 if activated[i] else jnp.ones(y.shape, bool)
      y = jnp.where(is_open, y, 0)
      return x + weight.astype(x.dtype) * y, is_open, y

    return branch

  def run_backward(i):
    def backward(weight, params, x, is_open, grad):
      y_grad = jnp.where(is_open, weight.astype(x.dtype) * grad, 0)
      _, vjp = jax.vjp(lambda params, x: branches[i](params[i], x), params, x)
      # Zeros for the parameters of the other branches.
      params_grad, x_grad = vjp(y_grad)
      return params_grad, x_grad + grad

    return backward

  def forward(index, weight, params, x):
    output, is_open, y = jax.lax.switch(
      index, [run(i) for i in every], weight, params, x
    )
    return output, (index, weight, params, x, is_open, y)

  @jax.custom_vjp
  def switch(index, weight, params, x):
    return forward(index, weight, params, x)[0]

  def backward(saved, grad):
    index, weight, params, x, is_open, y = saved
    params_grad, x_grad = jax.lax.switch(
      index, [run_backward(i) for i in every], weight, params, x, is_open, grad
    )
    # Where the gate is not learnt, this is not computed, nor is y kept.
    weight_grad = (grad * y).sum(dtype=weight.dtype)
    return None, weight_grad, params_grad, x_grad

  switch.defvjp(forward, backward)
  return switch


def _make_op(operator: str, *, features: int, **options: Any) -> nn.Module:
  return ops.OPS[operator](features, **options)


class Cell(nn.Module):
  """x + op(x): the cell of a derived network (PyNAS keeps one per layer).

  Attributes:
    operator: Key of `ops.OPS`.
    dtype: Of the arithmetic.
  """

  operator: str
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = _make_op(
      self.operator, features=x.shape[-1], dtype=self.dtype, name=self.operator
    )(x)
    return x + (y if self.operator in ops.NOT_ACTIVATED else nn.relu(y))


class MixedCell(nn.Module):
  """x + a gated sum of candidate operators: one searchable edge.

  Submodules carry the candidate's name, so a derived `Cell` inherits a trained
  operator by looking up its key. Only op(x) is gated, not x.

  Attributes:
    candidates: Keys of `ops.OPS`, in the order of the alphas.
    dtype: Of the arithmetic.
  """

  candidates: Sequence[str]
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, gates: Gates) -> jax.Array:
    """Applies the gates of this edge: index i32[P], weight f[P]."""
    chex.assert_rank([x, *gates], [4, 1, 1])
    options = {'features': x.shape[-1], 'dtype': self.dtype}
    if self.is_initializing():
      for name in self.candidates:
        _make_op(name, name=name, **options)(x)
      return x
    variables: Mapping[str, Any] = self.variables.get('params', {})
    params = tuple(variables.get(name, {}) for name in self.candidates)
    operators = [
      _make_op(name, parent=None, **options) for name in self.candidates
    ]
    branches = [
      lambda p, x, op=op: op.apply({'params': p}, x) for op in operators
    ]
    activated = [name not in ops.NOT_ACTIVATED for name in self.candidates]

    if len(gates.index) == len(self.candidates):  # All run: the mixture.
      weights = jnp.zeros_like(gates.weight).at[gates.index].set(gates.weight)
      outputs = [
        nn.relu(y) if relu else y
        for y, relu in zip(
          (f(p, x) for f, p in zip(branches, params, strict=True)),
          activated, strict=True,
        )
      ]  # fmt: skip
      return x + sum(
        w.astype(x.dtype) * y for w, y in zip(weights, outputs, strict=True)
      )

    switch = make_switch(branches, activated)
    paths = [
      switch(index, weight, params, x)
      for index, weight in zip(gates.index, gates.weight, strict=True)
    ]
    return paths[0] + sum(path - x for path in paths[1:])
