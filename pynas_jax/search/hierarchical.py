"""Hierarchical search: schemes around stages (PyNAS Algorithm 1).

A trial takes a scheme, searches its stages coarse to fine, each stacked on the
ones before, trains the whole briefly and scores it. The best trial wins.
"""

from __future__ import annotations

import json
from pathlib import Path
import time
from typing import Any, NamedTuple

import jax
import ml_collections

from pynas_jax import genotype as genotype_lib
from pynas_jax import train as train_lib
from pynas_jax.genotype import Genotype
from pynas_jax.logbook import Logbook
from pynas_jax.logbook import say
from pynas_jax.search import bilevel
from pynas_jax.search import schemes
from pynas_jax.spaces import make_space

TRIALS = 'trials.jsonl'


class SearchResult(NamedTuple):
  """What a search found.

  Attributes:
    genotype: The best architecture.
    params: Its weights after the brief training.
    psnr: Its validation PSNR, in dB.
    trials: A record per trial.
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
  directory: Path,
  logbook: Logbook,
  name: str,
) -> tuple[Genotype, train_lib.TrainResult, list[dict[str, Any]]]:
  """Searches one scheme, coarse to fine, and scores what it finds.

  Args:
    scheme: Patches per scale, finest first.
    config: Settings.
    directory: Of the checkpoints of all stages.
    logbook: Takes losses and scores.
    name: Of this trial in the logbook.

  Returns:
    The architecture, its brief training, and a record per stage.
  """
  space = make_space(config)
  draft, params, records = space.draft(scheme), {}, []
  key = jax.random.key(config.seed)
  for i, stage in enumerate(space.stages(draft)):
    draft, params, record = bilevel.search_stage(
      space, draft, stage, config, key=jax.random.fold_in(key, i),
      params=params, directory=directory / stage, logbook=logbook,
      name=f'{name}/{stage}',
    )  # fmt: skip
    records.append(record)
  genotype = space.genotype(draft)
  result = train_lib.train(
    genotype, config, directory=directory / 'score', logbook=logbook,
    stage=f'{name}/score', params=params, num_steps=config.search.score_steps,
  )  # fmt: skip
  return genotype, result, records


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
  """
  s = config.search
  allowed = [genotype_lib.parse_scheme(text) for text in s.schemes]
  path = workdir / TRIALS
  trials = read_trials(path)
  # Rewrite what was read, so that a torn line is gone before the next one.
  text = ''.join(json.dumps(trial) + '\n' for trial in trials)
  partial = path.with_suffix('.tmp')
  partial.write_text(text)
  partial.replace(path)

  while len(trials) < s.num_trials:
    tried = [genotype_lib.parse_scheme(trial['scheme']) for trial in trials]
    scheme = schemes.propose(config.seed, tried, allowed)
    if scheme is None:
      break
    number, text = len(trials), genotype_lib.format_scheme(scheme)
    say(f'trial {number + 1} of {s.num_trials}: scheme {text}')
    began = time.monotonic()
    genotype, result, stages = search_scheme(
      scheme, config, directory=workdir / 'search' / f'trial{number}',
      logbook=logbook, name=f'search/trial{number}',
    )  # fmt: skip
    trial = {
      'trial': number,
      'scheme': text,
      'psnr': result.psnr,
      'genotype': genotype.to_dict(),
      'stages': stages,
      'seconds': round(time.monotonic() - began, 3),
    }
    with path.open('a') as file:
      file.write(json.dumps(trial) + '\n')
    trials.append(trial)

  best = max(trials, key=lambda trial: trial['psnr'])
  genotype = genotype_lib.from_dict(best['genotype'])
  directory = workdir / 'search' / f'trial{best["trial"]}' / 'score'
  # Finished before: only reads its best checkpoint.
  result = train_lib.train(
    genotype, config, directory=directory, logbook=logbook,
    stage=f'search/trial{best["trial"]}/score', num_steps=s.score_steps,
  )  # fmt: skip
  seconds = sum(trial['seconds'] for trial in trials)
  return SearchResult(genotype, result.params, best['psnr'], trials, seconds)
