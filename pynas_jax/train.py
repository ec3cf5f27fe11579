"""Training of one architecture (PyNAS section 3.2).

Images are f32[B, H, W, 3] in [0, 1]; networks see them minus 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import functools
import math
from pathlib import Path
import time
from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import ml_collections
import optax
from optax import contrib

from pynas_jax import compiling
from pynas_jax import config as config_lib
from pynas_jax import interruption
from pynas_jax import losses
from pynas_jax import metrics
from pynas_jax import parallel
from pynas_jax.checkpoint import Checkpoints
from pynas_jax.data import pipeline
from pynas_jax.genotype import Genotype
from pynas_jax.logbook import Logbook
from pynas_jax.logbook import progress
from pynas_jax.spaces import base
from pynas_jax.spaces import space_of


class TrainingError(RuntimeError):
  """Training that cannot go on, for its numbers or for want of memory."""


@struct.dataclass
class TrainState:
  """All that a training step changes."""

  step: jax.Array  # i32[], steps done.
  params: Any
  opt_state: Any
  averaged: Any  # Exponential moving average of params; {} when off.


class TrainResult(NamedTuple):
  """A trained network: parameters of the best validation score, in dB."""

  params: Any
  psnr: float
  steps: int
  seconds: float  # Of all sessions, up to their last checkpoints.


def make_schedule(
  t: ml_collections.ConfigDict, num_steps: int
) -> optax.Schedule:
  """Returns the learning rate by step, from the settings `train`."""
  if t.schedule == 'cosine':
    return optax.cosine_decay_schedule(t.lr, num_steps)
  if t.schedule == 'step':
    return optax.exponential_decay(
      t.lr, t.decay_every, t.decay_rate, staircase=True
    )
  if t.schedule == 'poly':
    return optax.polynomial_schedule(t.lr, 0.0, 0.9, num_steps)
  return optax.constant_schedule(t.lr)


def make_tx(
  t: ml_collections.ConfigDict, num_steps: int
) -> optax.GradientTransformation:
  """Returns the optimizer of the settings `train`."""
  schedule = make_schedule(t, num_steps)
  make = {
    'adam': optax.adam,
    'sgd': functools.partial(optax.sgd, momentum=0.9),
    'muon': muon,
  }
  return clipped(make[t.optimizer](schedule), t.clip_norm)


def muon(schedule: optax.Schedule) -> optax.GradientTransformation:
  """Returns Muon for convolutions, Adam for all else.

  A kernel [h, w, in, out] is the matrix of h * w * in rows that its patches
  are multiplied by; its updates are made orthogonal. They are as large as
  those of Adam, so that learning rates carry over. Depthwise kernels have one
  input and are left to Adam.

  Args:
    schedule: The learning rate by step.

  Returns:
    The optimizer.

  Source: Jordan et al., Muon, 2024; size of updates: Liu et al.,
    arXiv:2502.16982, section 2.2.
  """

  def matrices(params: Any) -> Any:
    matrix = contrib.MuonDimensionNumbers((0, 1, 2), 3)
    return jax.tree.map(
      lambda p: matrix if p.ndim == 4 and p.shape[2] > 1 else None, params
    )

  return contrib.muon(
    schedule,
    muon_weight_dimension_numbers=matrices,
    consistent_rms=0.2,  # As the updates of Adam, by measurement of Liu et al.
  )


def make_clip(clip_norm: float) -> optax.GradientTransformation:
  """Returns a clip of the norm of all gradients; 0 is off."""
  return optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()


def clip_factor(grads: Any, clip_norm: float) -> jax.Array | float:
  """Returns what `make_clip(clip_norm)` multiplies all gradients by, f[].

  Args:
    grads: A tree of gradients.
    clip_norm: The most that their norm may be; 0 is no limit.
  """
  if not clip_norm:
    return 1.0
  return jnp.minimum(1.0, clip_norm / optax.tree.norm(grads))


def clipped(
  tx: optax.GradientTransformation, clip_norm: float
) -> optax.GradientTransformation:
  """Returns the optimizer behind `make_clip(clip_norm)`."""
  return optax.chain(make_clip(clip_norm), tx)


def init_state(
  params: Any, tx: optax.GradientTransformation, *, ema_decay: float
) -> TrainState:
  """Returns the state before the first step."""

  @jax.jit  # Else each shape of a parameter is a program of its own.
  def init(params):
    averaged = jax.tree.map(jnp.copy, params) if ema_decay else {}
    return tx.init(params), averaged

  return TrainState(jnp.zeros((), jnp.int32), params, *init(params))


def make_train_step(
  network: Any, tx: optax.GradientTransformation, *, loss: str, ema_decay: float
) -> Callable[..., Any]:
  """Returns `(state, batch, key) -> (state, metrics)` for `parallel`."""

  def train_step(state: TrainState, batch: Any, key: jax.Array):
    del key  # Nothing is random here.

    def loss_fn(params):
      restored, statistics = base.apply_learning(
        network, params, batch['blurred']
      )
      return losses.LOSSES[loss](restored, batch['sharp']), statistics

    (value, statistics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      state.params
    )
    value, grads = parallel.mean((value, grads))
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates) | statistics
    averaged = state.averaged
    if ema_decay:
      averaged = optax.incremental_update(params, averaged, 1 - ema_decay)
    state = TrainState(state.step + 1, params, opt_state, averaged)
    return state, {'loss': value, 'grad_norm': optax.tree.norm(grads)}

  return train_step


def make_score(network: Any) -> Callable[..., float]:
  """Returns `score(params, batch, *gates) -> PSNR in dB`, rounded to 8 bits.

  It is a mean over images, in which equal ones have `metrics.MAX_PSNR`.
  """

  @jax.jit
  def score_image(params, blurred, sharp, *args):
    restored = base.apply(network, params, blurred[None], *args)
    return metrics.psnr(metrics.quantize(restored), sharp[None])[0]

  def score(params, batch, *args):
    pairs = zip(batch['blurred'], batch['sharp'], strict=True)
    values = [
      metrics.capped(float(score_image(params, b, s, *args))) for b, s in pairs
    ]
    return sum(values) / len(values)

  return score


def check_finite(
  value: float, *, what: str, step: int, figure: str = 'loss'
) -> None:
  """Raises TrainingError if a loss or score is not a number."""
  if not math.isfinite(value):
    raise TrainingError(
      f'{what}: the {figure} is {value} at step {step}. What was saved before '
      'is kept; lower the learning rate or set clip_norm, in a new workdir.'
    )


@contextlib.contextmanager
def explaining_memory(
  config: ml_collections.ConfigDict, *, what: str, batch_size: str
) -> Iterator[None]:
  """Names the settings to change if memory does not suffice within.

  Args:
    config: Settings; reads `model.remat`.
    what: Is done.
    batch_size: Name of the setting.

  Raises:
    TrainingError: In the place of what JAX or NumPy raises then.
  """
  try:
    yield
  except (jax.errors.JaxRuntimeError, MemoryError) as error:
    reason = str(error).strip().partition('\n')[0].rstrip('.')
    is_jax = isinstance(error, jax.errors.JaxRuntimeError)
    if is_jax and not reason.startswith('RESOURCE_EXHAUSTED'):
      raise
    remat = '' if config.model.remat else 'set model.remat=True, or '
    raise TrainingError(
      f'{what}: memory does not suffice ({reason}). What was saved before is '
      f'kept; {remat}lower {batch_size} or data.crop, in a new workdir.'
    ) from error


def train(
  genotype: Genotype,
  config: ml_collections.ConfigDict,
  *,
  directory: Path,
  logbook: Logbook,
  stage: str = 'train',
  params: Any = None,
  num_steps: int | None = None,
) -> TrainResult:
  """Trains a network, or goes on where the same call was stopped.

  Args:
    genotype: The architecture.
    config: Settings; reads `seed`, `model`, `data` and `train`.
    directory: Of the checkpoints.
    logbook: Takes losses and scores.
    stage: Name of this training in the logbook.
    params: Parameters to start from, all or some; the others are drawn.
    num_steps: Steps, instead of the setting `train.num_steps`.

  Returns:
    The parameters that scored best on the validation split.

  Raises:
    TrainingError: If the loss is not a number, or memory does not suffice.
  """
  t = config.train
  num_steps = num_steps or t.num_steps
  network = space_of(genotype).network(
    genotype, zero_init_last=config.model.zero_init_last,
    dtype=jnp.dtype(t.dtype), remat=config.model.remat,
  )  # fmt: skip
  key = jax.random.key(config.seed)
  fresh = base.init_params(key, network)
  tx = make_tx(t, num_steps)
  state = init_state(base.inherit(fresh, params), tx, ema_decay=t.ema_decay)
  step_fn = parallel.make_parallel(
    make_train_step(network, tx, loss=t.loss, ema_decay=t.ema_decay),
    compile_program=compiling.of_steps(num_steps, t.dtype),
  )
  score = make_score(network)
  batches = pipeline.make_train_iterator(
    config, split='train', batch_size=t.batch_size, crop=config.data.crop,
    seed=config.seed,
  )  # fmt: skip
  held_out = pipeline.validation_batch(config)

  with Checkpoints(directory, keep_best_metric='psnr') as checkpoints:
    start, seconds = checkpoints.latest() or 0, 0.0
    if start:
      arrays, meta = checkpoints.restore(start, {'state': state})
      seconds = meta.get('seconds', 0.0)
      state = arrays['state']
      batches.set_state(meta['data'])
    logbook.rewind(stage, start)
    with (
      interruption.deferred() as interrupted,
      progress(num_steps, stage, start=start) as bar,
      explaining_memory(config, what=stage, batch_size='train.batch_size'),
    ):
      loss, launched = None, parallel.Launched(start)
      began = time.monotonic() - seconds
      for step in range(start + 1, num_steps + 1):
        state, figures = step_fn(state, batches.take(loss), key)
        loss = figures['loss']
        launched.add(step, loss)
        is_scored = step % t.eval_every == 0 or step == num_steps
        stop = interrupted()
        if not (is_scored or stop):
          bar.update(launched.done)
          continue
        value = float(loss)
        check_finite(value, what=stage, step=step)
        best = state.averaged if t.ema_decay else state.params
        # Without a score, a step that a stop has saved is never the best.
        scores = {'psnr': score(best, held_out)} if is_scored else {}
        if is_scored:
          check_finite(scores['psnr'], what=stage, step=step, figure='PSNR')
        bar.update(step, loss=value, **scores)
        if is_scored:
          logbook.write(
            stage, step, {
              'train/loss': value,
              'train/grad_norm': float(figures['grad_norm']),
              'validation/psnr': scores['psnr'],
              'data/wait_fraction': batches.wait_fraction(),
            },
          )  # fmt: skip
        seconds = time.monotonic() - began
        checkpoints.save(
          step,
          arrays={'state': state, 'params': best},
          meta={
            'seconds': seconds,
            'genotype': genotype.to_dict(),
            'task': config_lib.describe_task(config),
            'data': batches.get_state(),
            **scores,
          },
          metrics=scores,
        )
        if stop:
          break
    best_step = checkpoints.best()
    arrays, meta = checkpoints.restore(best_step, {'params': fresh})
    return TrainResult(arrays['params'], meta['psnr'], num_steps, seconds)
