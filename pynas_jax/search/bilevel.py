"""Gradient search of one stage: weights and alphas in turn.

Images are f32[B, H, W, 3] in [0, 1]. Source: PyNAS sections 2.3 and 3.2:
a warm-up of the weights, then weights by SGD with a cosine schedule on the
training pairs and alphas by Adam on the held-out ones, at most so many epochs,
with early stopping. Ours: alternation step by step, as ProxylessNAS and GDAS;
the score that stops is the PSNR of the derived network, and the best is kept;
and the estimator 'reinforce'. The gradient of a gate is that of scaling its
operator's output, which training has made zero: it cannot tell a good operator
from a superfluous one. The difference between two sampled networks on the same
batch can.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

from pynas_jax import compiling
from pynas_jax import interruption
from pynas_jax import losses
from pynas_jax import parallel
from pynas_jax import train as train_lib
from pynas_jax.checkpoint import Checkpoints
from pynas_jax.data import pipeline
from pynas_jax.data import sources
from pynas_jax.logbook import Logbook
from pynas_jax.logbook import progress
from pynas_jax.logbook import say
from pynas_jax.nn import gates as gates_lib
from pynas_jax.nn.gates import Gates
from pynas_jax.search import cost
from pynas_jax.search import refine
from pynas_jax.search.stopping import Stopping
from pynas_jax.spaces import base

SURE = 100.0  # Of alpha: all but certain.


@struct.dataclass
class SearchState:
  """All that a search step changes."""

  step: jax.Array  # i32[], weight steps done.
  params: Any
  alphas: jax.Array  # f[E, K].
  weight_opt: Any
  alpha_opt: Any


class StageResult(NamedTuple):
  """A searched stage: its draft, trained supernet weights, and record."""

  draft: base.Draft
  params: Any
  record: dict[str, Any]


def make_weight_tx(
  s: ml_collections.ConfigDict,
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
  """Returns what the weights learn by, from the settings `search`.

  Returns:
    A chain: the clip of all gradients, and an optimizer of each by itself.
  """
  schedule = optax.cosine_decay_schedule(
    s.weight_lr, s.num_steps, alpha=s.weight_lr_end / s.weight_lr
  )
  if s.optimizer == 'adam':
    tx = optax.adam(schedule)
  else:
    tx = optax.sgd(schedule, s.momentum or None)
    if s.weight_decay:
      tx = optax.chain(optax.add_decayed_weights(s.weight_decay), tx)
  return train_lib.make_clip(s.clip_norm), tx


def make_alpha_tx(s: ml_collections.ConfigDict):
  """Returns the optimizer of the alphas, from the settings `search`."""
  tx = optax.adam(s.alpha_lr)
  if s.alpha_decay:
    tx = optax.chain(optax.add_decayed_weights(s.alpha_decay), tx)
  return tx


def init_state(
  params: Any, alphas: jax.Array, s: ml_collections.ConfigDict
) -> SearchState:
  """Returns the state before the first step."""
  # Compiled whole: else each shape of a parameter is a program of its own.
  weight_opt = jax.jit(optax.chain(*make_weight_tx(s)).init)(params)
  alpha_opt = jax.jit(make_alpha_tx(s).init)(alphas)
  return SearchState(
    jnp.zeros((), jnp.int32), params, alphas, weight_opt, alpha_opt
  )


def temperature(step: jax.Array, s: ml_collections.ConfigDict) -> jax.Array:
  """Returns tau: linear from tau_start, held in the warm-up, to tau_end."""
  share = (step - s.warmup_steps) / max(s.num_steps - s.warmup_steps, 1)
  return s.tau_start + (s.tau_end - s.tau_start) * jnp.clip(share, 0, 1)


def make_loss(supernet: Any, loss: str) -> Callable[..., Any]:
  """Returns `loss(params, gates, batch) -> f[], statistics`."""

  def loss_fn(params: Any, gates: Gates, batch: Any):
    restored, statistics = base.apply_learning(
      supernet, params, batch['blurred'], gates
    )
    return losses.LOSSES[loss](restored, batch['sharp']), statistics

  return loss_fn


def update_sampled(
  tx: optax.GradientTransformation,
  grads: Any,
  opt: Any,
  params: Any,
  sampled: Any,
  *,
  factor: jax.Array | float = 1.0,
) -> tuple[Any, Any]:
  """Returns (params, opt) with what was sampled updated, all else as it was.

  An optimizer would move the others even with zero gradients. They are many
  times those of the path, so that to pass over them takes time, too.

  Args:
    tx: An optimizer of each leaf by itself.
    grads: Like the parameters.
    opt: State of the optimizer: subtrees like the parameters, such as moments,
      and what is for all leaves, such as the count of steps.
    params: A tree of parameters.
    sampled: bool[] per leaf of the parameters.
    factor: f[], of all gradients.
  """
  structure = jax.tree.structure(params)

  def is_like_params(tree):
    return jax.tree.structure(tree) == structure

  def map_moments(function, opt, *others):
    def visit(part, *parts):
      return function(part, *parts) if is_like_params(part) else part

    return jax.tree.map(visit, opt, *others, is_leaf=is_like_params)

  new = []
  leaves = map(jax.tree.leaves, (sampled, grads, params))
  for i, (is_sampled, grad, param) in enumerate(zip(*leaves, strict=True)):
    own = map_moments(lambda part, i=i: jax.tree.leaves(part)[i], opt)
    new.append(
      jax.lax.platform_dependent(
        is_sampled, factor, grad, own, param,
        cpu=functools.partial(_update_on_cpu, tx),
        default=functools.partial(_update_elsewhere, tx),
      )
    )  # fmt: skip
  new_params, new_opts = zip(*new, strict=True)
  # Of this only the count of steps is used; the compiler drops the rest.
  _, counted = tx.update(grads, opt, params)
  opt = map_moments(
    lambda _, *parts: structure.unflatten(parts), counted, *new_opts
  )
  return structure.unflatten(new_params), opt


def _update(tx, factor, grad, opt, param):
  updates, opt = tx.update(factor * grad, opt, param)
  return optax.apply_updates(param, updates), opt


def _update_on_cpu(tx, is_sampled, factor, grad, opt, param):
  """Returns (param, opt) of a leaf, updated if it was sampled."""
  return jax.lax.cond(
    is_sampled,
    lambda: _update(tx, factor, grad, opt, param),
    lambda: (param, opt),
  )


def _update_elsewhere(tx, is_sampled, factor, grad, opt, param):
  """The same without a branch, at which a GPU would wait for the host."""
  new = _update(tx, factor, grad, opt, param)
  choose = functools.partial(jnp.where, is_sampled)
  return jax.tree.map(choose, new, (param, opt))


def make_weight_step(
  space: base.Space,
  stage: str,
  supernet: Any,
  s: ml_collections.ConfigDict,
) -> Callable[..., Any]:
  """Returns `(state, batch, key) -> (state, metrics)` for `parallel`.

  One operator per edge is sampled, runs and learns. Weights and moments of the
  others stay as they are, bit for bit. With the estimator 'mixture' all run and
  learn.
  """
  _, tx = make_weight_tx(s)
  loss_fn = make_loss(supernet, s.loss)

  def weight_step(state: SearchState, batch: Any, key: jax.Array):
    key = jax.random.fold_in(jax.random.fold_in(key, state.step), 0)
    if s.estimator == 'mixture':
      gates = gates_lib.mixture(state.alphas)
    else:
      gates = gates_lib.one_path(key, state.alphas, tau=1.0)
    (value, statistics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      state.params, gates, batch
    )
    value, grads = parallel.mean((value, grads))
    clip_opt, opt = state.weight_opt
    factor = train_lib.clip_factor(grads, s.clip_norm)
    sampled = jax.tree.map(lambda _: True, state.params)
    if s.estimator != 'mixture':
      sampled = space.sampled(state.params, stage, gates)
    params, opt = update_sampled(
      tx, grads, opt, state.params, sampled, factor=factor
    )
    statistics = {
      name: jax.tree.map(jnp.where, sampled[name], new, state.params[name])
      for name, new in statistics.items()
    }
    state = state.replace(
      step=state.step + 1,
      params=params | statistics,
      weight_opt=(clip_opt, opt),
    )
    return state, {'loss': value}

  return weight_step


def make_alpha_step(
  supernet: Any,
  s: ml_collections.ConfigDict,
  cost_term: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Callable[..., Any]:
  """Returns `(state, batch, key) -> (state, metrics)` for `parallel`.

  Args:
    supernet: Of the stage.
    s: The settings `search`.
    cost_term: `(loss, alphas) -> loss` that adds what networks cost.
  """
  tx = make_alpha_tx(s)
  loss_fn = make_loss(supernet, s.loss)

  def sample(alphas: jax.Array, key: jax.Array, tau: jax.Array) -> Gates:
    if s.estimator == 'mixture':
      return gates_lib.mixture(alphas)
    if s.estimator == 'two_path':
      return gates_lib.two_path(key, alphas)
    return gates_lib.one_path(key, alphas, tau=tau)

  def alpha_step(state: SearchState, batch: Any, key: jax.Array):
    key = jax.random.fold_in(jax.random.fold_in(key, state.step), 1)
    tau = temperature(state.step, s)

    def objective(alphas):
      gates = sample(alphas, key, tau)
      loss, _ = loss_fn(state.params, gates, batch)
      return cost_term(loss, alphas) if cost_term else loss, gates

    def paired_objective(alphas):
      a, b = (sample(alphas, k, tau) for k in jax.random.split(key))
      losses_ = [loss_fn(state.params, gates, batch)[0] for gates in (a, b)]
      loss_a, loss_b = jax.lax.stop_gradient(parallel.mean(losses_))
      # The gradient of the expected loss; each is the other's baseline.
      odds = gates_lib.log_odds(alphas, a, b)
      surrogate = 0.5 * (loss_a - loss_b) * odds
      loss = 0.5 * (loss_a + loss_b)
      loss = cost_term(loss, alphas) if cost_term else loss
      return loss + surrogate - jax.lax.stop_gradient(surrogate), a

    if s.estimator == 'reinforce':
      objective = paired_objective
    value_and_grad = jax.value_and_grad(objective, has_aux=True)
    (value, gates), grads = value_and_grad(state.alphas)
    value, grads = parallel.mean((value, grads))
    updates, alpha_opt = tx.update(grads, state.alpha_opt, state.alphas)
    alphas = optax.apply_updates(state.alphas, updates)
    if s.estimator == 'two_path':
      alphas = gates_lib.rescale(state.alphas, alphas, gates.index)
    state = state.replace(alphas=alphas, alpha_opt=alpha_opt)
    return state, {'loss': value, 'tau': tau}

  return alpha_step


def entropy(alphas: jax.Array) -> float:
  """Returns the mean entropy of the edges' choices, in nats."""
  log_probs = jax.nn.log_softmax(alphas)
  return float(-(jnp.exp(log_probs) * log_probs).sum(axis=-1).mean())


def one_hot_alphas(choice: refine.Choice, like: jax.Array) -> jax.Array:
  """Returns alphas that are sure of a choice, f[E, K] as `like`."""
  return SURE * jax.nn.one_hot(jnp.asarray(choice), like.shape[1])


def make_held_out_objective(
  loss_fn: Callable[..., Any],
  params: Any,
  held_out: Any,
  alphas: jax.Array,
  cost_term: Callable[[jax.Array, jax.Array], jax.Array] | None,
) -> Callable[[refine.Choice], float]:
  """Returns `choice -> float`: what the alphas lower, of one path, exactly.

  Args:
    loss_fn: Of `make_loss`.
    params: Of the supernet.
    held_out: Pairs; all count, one at a time.
    alphas: f[E, K], for their shape.
    cost_term: `(loss, alphas) -> loss`, or None.
  """
  loss_of = jax.jit(lambda *args: loss_fn(*args)[0])
  images = [
    {name: pixels[i : i + 1] for name, pixels in held_out.items()}
    for i in range(len(held_out['sharp']))
  ]

  def objective(choice: refine.Choice) -> float:
    sure = one_hot_alphas(choice, alphas)
    gates = gates_lib.argmax(sure)
    losses_ = [loss_of(params, gates, image) for image in images]
    loss = sum(losses_) / len(losses_)
    return float(cost_term(loss, sure) if cost_term else loss)

  return objective


def search_stage(
  space: base.Space,
  draft: base.Draft,
  stage: str,
  config: ml_collections.ConfigDict,
  *,
  key: jax.Array,
  params: Any,
  workdir: Path,
  logbook: Logbook,
  name: str,
) -> StageResult:
  """Searches one stage, or goes on where the same call was stopped.

  Args:
    space: The search space.
    draft: The architecture so far.
    stage: One of `space.stages(draft)`.
    config: Settings; reads `seed`, `model`, `data` and `search`.
    key: PRNG key of this stage.
    params: Weights of the scales searched before, to train on; {} for none.
    workdir: Takes the checkpoints, in a folder of this name, and the times of
      layers.
    logbook: Takes losses and scores.
    name: Of this stage, such as 'search/trial0/scale1'.

  Returns:
    The best draft and its supernet's weights.

  Raises:
    train.TrainingError: If the loss is not a number, or memory does not
      suffice.
  """
  s = config.search
  m = config.model
  options = {'zero_init_last': m.zero_init_last, 'remat': m.remat}
  supernet = space.supernet(draft, stage, **options)
  init_key, alpha_key, step_key = jax.random.split(key, 3)
  alphas = space.init_alphas(alpha_key, draft, stage)
  fresh = base.init_params(init_key, supernet, space.decode(alphas))
  state = init_state(base.inherit(fresh, params), alphas, s)
  compile_program = compiling.of_steps(s.num_steps)
  weight_step = parallel.make_parallel(
    make_weight_step(space, stage, supernet, s),
    compile_program=compile_program,
  )
  cost_term = None
  if s.cost != 'none':
    costs = cost.edge_costs(space, draft, stage, config, workdir=workdir)
    cost_term = cost.make_cost_term(*costs, s)
  alpha_step = parallel.make_parallel(
    make_alpha_step(supernet, s, cost_term), compile_program=compile_program
  )
  score = train_lib.make_score(supernet)
  weight_batches, alpha_batches = (
    pipeline.make_train_iterator(
      config, split=split, batch_size=s.batch_size, crop=config.data.crop,
      seed=config.seed,
    )
    for split in sources.search_splits(config.data)
  )  # fmt: skip
  held_out = pipeline.validation_batch(config)
  stopping = Stopping(s.patience, s.collapse_fraction)

  with Checkpoints(workdir / name, keep_best_metric='rank') as checkpoints:
    start = checkpoints.latest() or 0
    if start:
      arrays, meta = checkpoints.restore(start, {'state': state})
      state = arrays['state']
      weight_batches.set_state(meta['weight_data'])
      alpha_batches.set_state(meta['alpha_data'])
      stopping = Stopping(**meta['stopping'])
    logbook.rewind(name, start)
    end = start if stopping.reason else s.num_steps

    def save(step: int, scores: dict[str, float], **meta: float) -> None:
      checkpoints.save(
        step,
        arrays={'state': state},
        meta={
          'weight_data': weight_batches.get_state(),
          'alpha_data': alpha_batches.get_state(),
          'stopping': dataclasses.asdict(stopping),
          **meta,
        },
        metrics=scores,
      )

    with (
      interruption.deferred() as interrupted,
      progress(s.num_steps, name, start=start) as bar,
      train_lib.explaining_memory(
        config, what=name, batch_size='search.batch_size'
      ),
    ):
      running, launched = None, parallel.Launched(start)
      for step in range(start + 1, end + 1):
        batch = weight_batches.take(running)
        state, figures = weight_step(state, batch, step_key)
        running = figures['loss']
        since = step - s.warmup_steps
        alpha_figures = None
        if since > 0 and since % s.alpha_every == 0:
          state, alpha_figures = alpha_step(
            state, alpha_batches.take(running), step_key
          )
          running = alpha_figures['loss']
        launched.add(step, running)
        is_scored = step % s.eval_every == 0 or step == s.num_steps
        stop = interrupted()
        if not (is_scored or stop):
          bar.update(launched.done)
          continue

        loss = float(figures['loss'])
        train_lib.check_finite(loss, what=name, step=step)
        if not is_scored:
          save(step, {})  # Without a score, it is never the best.
          break
        gates = space.decode(state.alphas)
        if s.score == 'supernet':
          gates = gates_lib.mixture(state.alphas)
        psnr = score(state.params, held_out, gates)
        train_lib.check_finite(psnr, what=name, step=step, figure='PSNR')
        derived = space.derive(draft, stage, state.alphas)
        cells = space.chosen(derived, stage)
        best = stopping.best
        if since > 0 and step >= s.first_score:
          stopping = stopping.update(psnr, cells)
        # Without a best one, a network of the warm-up is better than a
        # collapsed one.
        rank = -1.0 if stopping.is_collapsed(cells) else 0.0
        if stopping.best != best:
          rank = psnr
        bar.update(step, loss=loss, psnr=psnr)
        record = {
          'train/loss': loss,
          'validation/psnr': psnr,
          'alphas/entropy': entropy(state.alphas),
          'alphas/tau': float(temperature(state.step, s)),
          'data/wait_fraction': weight_batches.wait_fraction()
          + alpha_batches.wait_fraction(),
        }
        if alpha_figures is not None:
          objective = float(alpha_figures['loss'])
          train_lib.check_finite(objective, what=f'{name}, alphas', step=step)
          record['alphas/objective'] = objective
        logbook.write(name, step, record)
        save(step, {'rank': rank}, psnr=psnr)
        if stop:
          break
        if stopping.reason:
          say(f'{name}: stopped at step {step}: {stopping.reason}')
          break

    last, best_step = checkpoints.latest(), checkpoints.best()
    arrays, meta = checkpoints.restore(best_step, {'state': state})
  state = arrays['state']
  alphas, psnr = state.alphas, meta['psnr']
  if s.refine_passes:
    value = make_held_out_objective(
      make_loss(supernet, s.loss), state.params, held_out, alphas, cost_term
    )

    def objective(choice: refine.Choice) -> float:
      sure = one_hot_alphas(choice, state.alphas)
      cells = space.chosen(space.derive(draft, stage, sure), stage)
      return math.inf if stopping.is_collapsed(cells) else value(choice)

    found = tuple(gates_lib.argmax(alphas).index[:, 0].tolist())
    choice, _ = refine.refine(
      found, alphas.shape[1], objective, passes=s.refine_passes
    )
    alphas = one_hot_alphas(choice, alphas)
    if choice != found:
      psnr = score(state.params, held_out, gates_lib.argmax(alphas))
  derived = space.derive(draft, stage, alphas)
  record = {
    'stage': stage,
    'choice': space.decode(alphas).index[:, 0].tolist(),
    'psnr': psnr,
    'best_step': best_step,
    'steps': last,
    'stopped': stopping.reason,
    'alphas': jnp.asarray(state.alphas).tolist(),
  }
  return StageResult(derived, state.params, record)
