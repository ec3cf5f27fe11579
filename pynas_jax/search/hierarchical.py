"""Hierarchical search: schemes around stages (PyNAS Algorithm 1).

A trial takes a scheme, searches its stages coarse to fine, each stacked on the
ones before, trains the whole briefly and scores it. Local trials, ours, change
one cell of the best network so far. The best trial within the limits wins, by
the objective. A trial that fails is recorded, and the search goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
import functools
import json
import math
from pathlib import Path
import time
from typing import Any, NamedTuple

import jax
import ml_collections

from pynas_jax import config as config_lib
from pynas_jax import genotype as genotype_lib
from pynas_jax import train as train_lib
from pynas_jax.checkpoint import Checkpoints
from pynas_jax.genotype import Genotype
from pynas_jax.logbook import Logbook
from pynas_jax.logbook import say
from pynas_jax.search import bilevel
from pynas_jax.search import cost
from pynas_jax.search import local
from pynas_jax.search import pareto
from pynas_jax.search import schemes
from pynas_jax.spaces import make_space

TRIALS = 'trials.jsonl'
SCORE = 'score'  # Folder of a trial's brief training.
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
    The architecture as `genotype`, its `psnr`, a record for each of the
    `stages`, and what it costs, as `cost.measure`.
  """
  genotype, params, records = search_stages(
    scheme, config, workdir=workdir, logbook=logbook, name=name
  )
  result = score(
    genotype, config, workdir=workdir, logbook=logbook, name=name,
    params=params,
  )  # fmt: skip
  return {
    'genotype': genotype,
    'psnr': result.psnr,
    'stages': records,
    **cost.measure(genotype, config),
  }


def search_stages(
  scheme: tuple[int, ...],
  config: ml_collections.ConfigDict,
  *,
  workdir: Path,
  logbook: Logbook,
  name: str,
) -> tuple[Genotype, Any, list[dict[str, Any]]]:
  """Searches the stages of a scheme; those that were, only read checkpoints.

  Args:
    scheme: Patches per scale, finest first.
    config: Settings.
    workdir: Takes the checkpoints of all stages, in a folder of this name.
    logbook: Takes losses and scores.
    name: Of this trial, such as 'search/trial0'.

  Returns:
    The architecture; the weights that its training begins with, None for
    random ones; and a record for each stage.
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
  # It begins as the training to come will: weights of a supernet favour schemes
  # of many stages, whose supernets were trained the longest.
  params = params if config.train.inherit else None
  return space.genotype(draft), params, records


def score(
  genotype: Genotype,
  config: ml_collections.ConfigDict,
  *,
  workdir: Path,
  logbook: Logbook,
  name: str,
  params: Any = None,
) -> train_lib.TrainResult:
  """Trains a network briefly; one that was, only reads its checkpoint."""
  name = f'{name}/{SCORE}'
  return train_lib.train(
    genotype, config, directory=workdir / name, logbook=logbook, stage=name,
    params=params, num_steps=config.search.score_steps,
  )  # fmt: skip


def score_neighbour(
  genotype: Genotype, config: ml_collections.ConfigDict, **run: Any
) -> dict[str, Any]:
  """Returns the `genotype`, its `psnr` and costs, as `search_scheme`.

  Args:
    genotype: The network.
    config: Settings.
    **run: `workdir`, `logbook` and `name`, as for `search_scheme`.

  Raises:
    TrainingError: If it is beyond the limits; then it is not trained.
  """
  costs = cost.measure(genotype, config)
  if beyond := cost.broken_limits(costs, config.search):
    raise train_lib.TrainingError(', '.join(beyond))
  psnr = score(genotype, config, **run).psnr
  return {'genotype': genotype, 'psnr': psnr, **costs}


def read_trials(path: Path) -> list[dict[str, Any]]:
  """Returns the trials finished so far; a torn last line is not one.

  Raises:
    SettingError: Names another line that is none.
  """
  trials = []
  lines = path.read_text().splitlines() if path.exists() else []
  for number, line in enumerate(lines, 1):
    try:
      trial = json.loads(line)
      schemes.Proposal.from_dict(trial)
    except (ValueError, TypeError, KeyError):
      if number == len(lines):
        break
      raise config_lib.SettingError(
        f'{path}, line {number}, is not the record of a trial; mend it, or use '
        'another workdir.'
      ) from None
    trials.append(trial)
  return trials


def run_trial(
  find: Callable[[], dict[str, Any]],
  config: ml_collections.ConfigDict,
  *,
  name: str,
) -> dict[str, Any]:
  """Returns what the record of a trial says of its outcome.

  Args:
    find: Returns the architecture as `genotype`, its `psnr` and costs, or goes
      on where it was stopped.
    config: Settings.
    name: Of the trial, such as 'search/trial0'.

  Returns:
    The architecture with its score and costs, or that it `failed`, and why.
  """
  try:
    found = find()
  except FAILURES as error:
    reason = str(error).strip().partition('\n')[0]
    say(f'{name} failed: {reason}')
    return {'failed': f'{type(error).__name__}: {reason}'}
  finally:
    # `pmap` keeps the programs of each step for as long as the process lives.
    jax.clear_caches()
  return found | {
    'beyond': cost.broken_limits(found, config.search),
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


def check_latency(
  proposals: Sequence[schemes.Proposal], config: ml_collections.ConfigDict
) -> None:
  """Checks that some network may keep the limit of time, before a search.

  Raises:
    SettingError: If all are too slow, even without cells.
  """
  limit = config.search.max_latency_ms
  if not limit:
    return
  networks = [cost.skeleton(p.scheme, p.apply(config)) for p in proposals]
  if None in networks:
    return  # The space has no network without cells.
  # Not always the fastest first, but often.
  networks.sort(key=lambda genotype: cost.count(genotype, config)['gmacs'])
  fastest = math.inf
  for genotype in networks:
    fastest = min(fastest, cost.measure(genotype, config)['latency_ms'])
    if fastest <= limit:
      return
  raise config_lib.SettingError(
    f'search.max_latency_ms is {limit}, but without cells the fastest of '
    f'{len(networks)} schemes takes {fastest:.4g} ms at benchmark.height and '
    'width. Raise the limit, or add smaller search.base_widths or '
    'search.schemes.'
  )


def next_proposal(
  trials: Sequence[dict[str, Any]],
  allowed: Sequence[schemes.Proposal],
  config: ml_collections.ConfigDict,
) -> schemes.Proposal | None:
  """Returns the scheme to search next, or None if it was the last."""
  tried = [schemes.Proposal.from_dict(t) for t in trials if not is_local(t)]
  if len(tried) >= config.search.num_trials:
    return None
  return schemes.propose(config.seed, tried, allowed)


def next_neighbour(
  trials: Sequence[dict[str, Any]], config: ml_collections.ConfigDict
) -> Genotype | None:
  """Returns the network to try beside the best, or None if that was all."""
  if sum(map(is_local, trials)) >= config.search.local_trials:
    return None
  known = [t for t in trials if 'genotype' in t]

  def networks(records: Iterable[dict[str, Any]]) -> list[Genotype]:
    return [genotype_lib.from_dict(t['genotype']) for t in records]

  return local.propose(
    config.seed,
    networks(known),
    networks(t for t in known if not is_local(t)),
    lambda: networks([choose(trials, config.search)])[0],
    config,
  )


def is_local(trial: dict[str, Any]) -> bool:
  """Tells whether a record is of a local trial, not of a proposed scheme."""
  return trial.get('local', False)


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

  while True:
    if 0 < s.max_hours < sum(t['seconds'] for t in trials) / 3600:
      say(f'stopped after {len(trials)} trials: search.max_hours is reached')
      break
    number = len(trials)
    name = f'search/trial{number}'
    title = f'trial {number + 1} of {s.num_trials + s.local_trials} at most'
    run = {'workdir': workdir, 'logbook': logbook, 'name': name}
    proposal = next_proposal(trials, allowed, config)
    if proposal is not None:
      say(f'{title}: scheme {proposal.describe()}')
      trial = {'trial': number, **proposal.to_dict()}
      find = functools.partial(
        search_scheme, proposal.scheme, proposal.apply(config), **run
      )
    else:
      neighbour = next_neighbour(trials, config)
      if neighbour is None:
        break
      say(f'{title}: {neighbour.describe()}')
      trial = {
        'trial': number,
        **schemes.Proposal.of(neighbour).to_dict(),
        'local': True,
        'genotype': neighbour.to_dict(),
      }
      find = functools.partial(score_neighbour, neighbour, config, **run)
    began = time.monotonic()
    trial |= run_trial(find, config, name=name)
    trial['seconds'] = round(time.monotonic() - began, 3)
    with path.open('a') as file:
      file.write(json.dumps(trial) + '\n')
    trials.append(trial)

  best = choose(trials, s)
  genotype = genotype_lib.from_dict(best['genotype'])
  name, params = f'search/trial{best["trial"]}', None
  run = {'workdir': workdir, 'logbook': logbook, 'name': name}
  with Checkpoints(workdir / name / SCORE) as checkpoints:
    is_whole = checkpoints.latest() == s.score_steps
  if config.train.inherit and not is_whole:
    # What it is to be trained again from. No trial is local then.
    proposal = schemes.Proposal.from_dict(best)
    _, params, _ = search_stages(
      proposal.scheme, proposal.apply(config), **run
    )
  result = score(genotype, config, params=params, **run)
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
      + '. Raise search.num_trials, or the limits in a new workdir.'
    )
  return pareto.choose(fit, s.objective, slack=s.psnr_slack)
