"""Hierarchical search: schemes around stages (PyNAS Algorithm 1).

A trial takes a scheme, searches its stages coarse to fine, each stacked on the
ones before, trains the whole briefly and scores it. Plain designs, one operator
in all cells, may compete: a supernet tells apart operators by hundredths of a
decibel, and what it finds should be no worse than what needs no search (ours).
The best trial within the limits wins, by the objective. A trial that fails is
recorded, and the search goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
import json
from pathlib import Path
import time
from typing import Any, NamedTuple

import jax
import ml_collections

from pynas_jax import config as config_lib
from pynas_jax import genotype as genotype_lib
from pynas_jax import train as train_lib
from pynas_jax.genotype import Genotype
from pynas_jax.logbook import Logbook
from pynas_jax.logbook import say
from pynas_jax.search import bilevel
from pynas_jax.search import cost
from pynas_jax.search import pareto
from pynas_jax.search import schemes
from pynas_jax.spaces import make_space

TRIALS = 'trials.jsonl'
SEARCHED = 'searched'  # A design that is not plain.
# What may befall one architecture and not the next: a loss that is not a
# number, or memory that does not suffice.
FAILURES = (train_lib.TrainingError, jax.errors.JaxRuntimeError, MemoryError)


class SearchResult(NamedTuple):
  """What a search found.

  Attributes:
    genotype: The best architecture.
    params: Its weights after the brief training.
    psnr: Its validation PSNR, in dB.
    trials: A record per trial; one that failed has only the reason.
    seconds: Time of all trials; what a killed session spent on a trial that
      a later one finished is not counted.
  """

  genotype: Genotype
  params: Any
  psnr: float
  trials: list[dict[str, Any]]
  seconds: float


def search_scheme(
  scheme: tuple[int, ...],
  config: ml_collections.ConfigDict,
  *,
  workdir: Path,
  logbook: Logbook,
  name: str,
) -> dict[str, Any]:
  """Searches one scheme, coarse to fine, and scores what it finds.

  Args:
    scheme: Patches per scale, finest first.
    config: Settings.
    workdir: Takes the checkpoints of all stages, in a folder of this name.
    logbook: Takes losses and scores.
    name: Of this trial, such as 'search/trial0'.

  Returns:
    The best architecture as `genotype`, its `psnr`, what it is as `design`,
    SEARCHED or an operator, the scores of all `designs`, and a record for each
    of the `stages`.
  """
  space = make_space(config)
  draft, params, records = space.draft(scheme), {}, []
  key = jax.random.key(config.seed)
  for i, stage in enumerate(space.stages(draft)):
    draft, params, record = bilevel.search_stage(
      space, draft, stage, config, key=jax.random.fold_in(key, i),
      params=params, workdir=workdir, logbook=logbook, name=f'{name}/{stage}',
    )  # fmt: skip
    records.append(record)
  found = space.genotype(draft)
  genotypes = {SEARCHED: found} | {
    operator: space.filled(found, operator)
    for operator in config.search.plain_designs
  }
  fit = {
    design: genotype
    for design, genotype in genotypes.items()
    if not cost.counted_beyond(genotype, config)
  }
  # It begins as the training to come will: weights of a supernet favour schemes
  # of many stages, whose supernets were trained the longest.
  designs = {
    design: train_lib.train(
      genotype, config, directory=workdir / score_name(name, design),
      logbook=logbook, stage=score_name(name, design),
      params=params if config.train.inherit else None,
      num_steps=config.search.score_steps,
    ).psnr
    for design, genotype in (fit or {SEARCHED: found}).items()
  }  # fmt: skip
  best = max(designs, key=designs.__getitem__)
  return {
    'genotype': genotypes[best],
    'psnr': designs[best],
    'design': best,
    'designs': designs,
    'stages': records,
  }


def score_name(trial: str, design: str) -> str:
  """Returns the name of a brief training.

  >>> score_name('search/trial0', 'conv_3x3')
  'search/trial0/score_conv_3x3'
  """
  return f'{trial}/score' + (f'_{design}' if design != SEARCHED else '')


def read_trials(path: Path) -> list[dict[str, Any]]:
  """Returns the trials finished so far; a torn last line is not one."""
  trials = []
  lines = path.read_text().splitlines() if path.exists() else []
  for line in lines:
    try:
      trials.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return trials


def run_trial(
  proposal: schemes.Proposal,
  config: ml_collections.ConfigDict,
  *,
  workdir: Path,
  logbook: Logbook,
  name: str,
) -> dict[str, Any]:
  """Searches and scores one proposal, or goes on where it was stopped.

  Returns:
    What the record of the trial says of its outcome: the architecture with its
    score and costs, or that it `failed`, and why.
  """
  try:
    found = search_scheme(
      proposal.scheme, proposal.apply(config), workdir=workdir,
      logbook=logbook, name=name,
    )  # fmt: skip
    costs = cost.measure(found['genotype'], config)
  except FAILURES as error:
    reason = str(error).strip().partition('\n')[0]
    say(f'{name} failed: {reason}')
    return {'failed': f'{type(error).__name__}: {reason}'}
  return found | {
    **costs,
    'beyond': cost.broken_limits(costs, config.search),
    'genotype': found['genotype'].to_dict(),
  }


def within_limits(
  proposals: Sequence[schemes.Proposal], config: ml_collections.ConfigDict
) -> list[schemes.Proposal]:
  """Returns the proposals of which some network may keep the limits.

  Raises:
    SettingError: If there is none.
  """
  broken = {p: cost.broken_by_all(p.scheme, p.apply(config)) for p in proposals}
  allowed = [p for p in proposals if not broken[p]]
  if not allowed:
    first = proposals[0]
    raise config_lib.SettingError(
      f'no network of {len(proposals)} schemes can keep the limits, not even '
      f'without cells: of {first.describe()}, {", ".join(broken[first])}. '
      'Raise the limits, or add smaller search.base_widths or search.schemes.'
    )
  return allowed


def search(
  config: ml_collections.ConfigDict, *, workdir: Path, logbook: Logbook
) -> SearchResult:
  """Searches schemes and operators, or goes on where it was stopped.

  Args:
    config: Settings.
    workdir: Takes `trials.jsonl` and `search/` with checkpoints.
    logbook: Takes losses and scores.

  Returns:
    The best architecture and its weights.

  Raises:
    SettingError: If no network can keep the limits.
    TrainingError: If no trial ends with a network within the limits.
  """
  s = config.search
  allowed = within_limits(schemes.choices(config), config)
  path = workdir / TRIALS
  trials = read_trials(path)
  # Rewrite what was read, so that a torn line is gone before the next one.
  text = ''.join(json.dumps(trial) + '\n' for trial in trials)
  partial = path.with_suffix('.tmp')
  partial.write_text(text)
  partial.replace(path)

  while len(trials) < s.num_trials:
    if 0 < s.max_hours < sum(t['seconds'] for t in trials) / 3600:
      say(f'stopped after {len(trials)} trials: search.max_hours is reached')
      break
    tried = [schemes.Proposal.from_dict(trial) for trial in trials]
    proposal = schemes.propose(config.seed, tried, allowed)
    if proposal is None:
      break
    number = len(trials)
    say(f'trial {number + 1} of {s.num_trials}: scheme {proposal.describe()}')
    began = time.monotonic()
    outcome = run_trial(
      proposal, config, workdir=workdir, logbook=logbook,
      name=f'search/trial{number}',
    )  # fmt: skip
    trial = {
      'trial': number,
      **proposal.to_dict(),
      **outcome,
      'seconds': round(time.monotonic() - began, 3),
    }
    with path.open('a') as file:
      file.write(json.dumps(trial) + '\n')
    trials.append(trial)

  best = choose(trials, s)
  genotype = genotype_lib.from_dict(best['genotype'])
  # Trials of before there were plain designs do not say what they are.
  design = best.get('design', SEARCHED)
  name = score_name(f'search/trial{best["trial"]}', design)
  # Finished before: only reads its best checkpoint.
  result = train_lib.train(
    genotype, schemes.Proposal.from_dict(best).apply(config),
    directory=workdir / name, logbook=logbook, stage=name,
    num_steps=s.score_steps,
  )  # fmt: skip
  seconds = sum(trial['seconds'] for trial in trials)
  return SearchResult(genotype, result.params, best['psnr'], trials, seconds)


def choose(
  trials: Sequence[dict[str, Any]], s: ml_collections.ConfigDict
) -> dict[str, Any]:
  """Returns the trial that wins.

  Args:
    trials: Records of trials.
    s: The settings `search`.

  Raises:
    TrainingError: With the reason of every trial, if none can win.
  """
  fit = [t for t in trials if 'failed' not in t and not t['beyond']]
  if not fit:
    reasons = [
      f'{t["scheme"]}: {t.get("failed") or ", ".join(t["beyond"])}'
      for t in trials
    ]
    raise train_lib.TrainingError(
      f'no trial of {len(trials)} ended with a network within the limits: '
      + '; '.join(reasons)
      + '. Raise the limits or search.num_trials, in a new workdir.'
    )
  return pareto.choose(fit, s.objective, slack=s.psnr_slack)
