"""What a network costs, as a term of the alphas' loss and as a limit.

The expected cost of a stage is sum over edges and candidates of probability
times cost, which has a gradient. Source: ProxylessNAS, section 3.2 and Eq. 3,
and the two forms of its code.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections

from pynas_jax import latency
from pynas_jax.genotype import Genotype
from pynas_jax.nn.layers import Layer
from pynas_jax.spaces import base
from pynas_jax.spaces import make_space
from pynas_jax.spaces import space_of

TABLE = 'latency.json'  # In the workdir of a search.


def edge_costs(
  space: base.Space,
  draft: base.Draft,
  stage: str,
  config: ml_collections.ConfigDict,
  *,
  workdir: Path,
) -> tuple[jax.Array, float]:
  """Returns what every choice of a stage costs.

  Args:
    space: The search space.
    draft: The architecture so far.
    stage: One of `space.stages(draft)`.
    config: Settings; reads `search.cost` and the frame of `benchmark`.
    workdir: Takes the table of latencies.

  Returns:
    f32[E, K] by edge and candidate, and the cost of what the stage has anyway:
    microseconds, or 1e6 multiply-adds.
  """
  b = config.benchmark
  edges, fixed = space.edge_layers(
    draft, stage, height=b.height, width=b.width
  )
  if config.search.cost == 'latency':
    table = latency.LatencyTable(
      workdir / TABLE, height=b.height, width=b.width
    )
    table.measure([*fixed, *(x for e in edges for k in e for x in k)])
    cost = lambda layers: 1e3 * table.ms(layers)  # noqa: E731
  else:
    cost = _mega_macs
  matrix = [[cost(layers) for layers in edge] for edge in edges]
  return jnp.asarray(matrix, jnp.float32), cost(fixed)


def _mega_macs(layers: list[Layer]) -> float:
  return sum(layer.count()[1] for layer in layers) / 1e6


def expected_cost(
  alphas: jax.Array, costs: jax.Array, fixed: float
) -> jax.Array:
  """Returns the mean cost of networks drawn by softmax(alpha).

  Args:
    alphas: f[E, K].
    costs: f[E, K].
    fixed: Cost of what no choice changes.

  >>> float(expected_cost(jnp.zeros((1, 2)), jnp.array([[1.0, 3.0]]), 5.0))
  7.0
  """
  return (jax.nn.softmax(alphas) * costs).sum() + fixed


def make_cost_term(
  costs: jax.Array, fixed: float, s: ml_collections.ConfigDict
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Returns `(loss, alphas) -> loss` with the expected cost in it.

  The reference is the cost with all candidates as likely. `add` adds
  weight * (cost - reference) / reference. `mul` multiplies the error by
  (log cost / log reference) ** weight; for the loss 'psnr', which is the error
  in decibels, that is a sum again.

  Args:
    costs: f[E, K] of `edge_costs`.
    fixed: Likewise.
    s: The settings `search`.
  """
  reference = expected_cost(jnp.zeros_like(costs), costs, fixed)

  def add(loss, alphas):
    cost = expected_cost(alphas, costs, fixed)
    return loss + s.cost_weight * (cost - reference) / reference

  def mul(loss, alphas):
    cost = expected_cost(alphas, costs, fixed)
    # Costs of less than a unit would turn the sign of the logarithm.
    ratio = jnp.log1p(cost) / jnp.log1p(reference)
    if s.loss == 'psnr':
      return loss + 10 * s.cost_weight * jnp.log10(ratio)
    return loss * ratio**s.cost_weight

  return add if s.cost_form == 'add' else mul


def count(
  genotype: Genotype, config: ml_collections.ConfigDict
) -> dict[str, float]:
  """Returns `params` and `gmacs` of a network on one frame."""
  size = {'height': config.benchmark.height, 'width': config.benchmark.width}
  params, macs = space_of(genotype).count(genotype, **size)
  return {'params': params, 'gmacs': macs / 1e9}


def measure(
  genotype: Genotype, config: ml_collections.ConfigDict
) -> dict[str, float]:
  """Returns `params`, `gmacs` and `latency_ms` of a network on one frame.

  Args:
    genotype: The network.
    config: Settings; reads the frame of `benchmark`.
  """
  size = {'height': config.benchmark.height, 'width': config.benchmark.width}
  latency_ms = latency.measure_network_ms(genotype, **size)
  return {**count(genotype, config), 'latency_ms': round(latency_ms, 3)}


def broken_limits(
  costs: dict[str, float], s: ml_collections.ConfigDict
) -> list[str]:
  """Returns a text for each limit that a network does not keep.

  Args:
    costs: Of `measure`, or some of them.
    s: The settings `search`; a limit of 0 is none.
  """
  limits = {
    'latency_ms': s.max_latency_ms, 'params': s.max_params,
    'gmacs': s.max_gmacs,
  }  # fmt: skip
  return [
    f'{name} is {costs[name]:g}, above search.max_{name} {limit:g}'
    for name, limit in limits.items()
    if 0 < limit < costs.get(name, 0)
  ]


def counted_beyond(
  genotype: Genotype, config: ml_collections.ConfigDict
) -> list[str]:
  """Returns a text for each limit that a network breaks, but for its time."""
  return broken_limits(count(genotype, config), config.search)


def skeleton(
  scheme: tuple[int, ...], config: ml_collections.ConfigDict
) -> Genotype | None:
  """Returns the network of a scheme without cells; None if the space has none.

  Args:
    scheme: Patches per scale, finest first.
    config: Settings.
  """
  space = make_space(config)
  if not hasattr(space, 'filled'):
    return None
  draft = space.draft(scheme)
  for stage in space.stages(draft):
    alphas = space.init_alphas(jax.random.key(0), draft, stage)
    draft = space.derive(draft, stage, alphas)
  return space.filled(space.genotype(draft), 'zero')


def broken_by_all(
  scheme: tuple[int, ...], config: ml_collections.ConfigDict
) -> list[str]:
  """Returns a text for each limit that even a scheme without cells breaks.

  Args:
    scheme: Patches per scale, finest first.
    config: Settings; latency is not looked at, as it must be measured.
  """
  if not (config.search.max_params or config.search.max_gmacs):
    return []
  smallest = skeleton(scheme, config)
  return counted_beyond(smallest, config) if smallest else []
