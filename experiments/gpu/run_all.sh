#!/usr/bin/env bash
# All that is to be measured on a GPU, in parts of at most ten minutes.
#
#   experiments/gpu/run_all.sh [--dry-run] [PART...]
#
# PARTs are frames_found, frames_dmphn, supernet_step, train_step, operators,
# gradients, tests, compile_time, scaling and inference; all by default. Each
# writes OUT/PART.json (device, versions, commit and rows), and what it says goes
# to OUT/log.txt; a part that fails does not keep the others from running, but
# the exit status is 1. All of them together end after LIMIT seconds, if it is
# set, and some 40 more in which the last one writes what it has.
# --dry-run turns every part at a tiny size on the CPU, to see that it runs.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python="${PYTHON:-python3}"
export OUT="${OUT:-runs/gpu}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# Two libraries share the device's memory, and peaks are to be seen.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
dry=
if [[ "${1:-}" == --dry-run ]]; then
  dry=yes
  export JAX_PLATFORMS=cpu JAX_DISABLE_MOST_OPTIMIZATIONS=1
  shift
else
  export JAX_PLATFORMS=cuda,cpu  # Else JAX goes on without a GPU it cannot use.
fi
every=(frames_found frames_dmphn supernet_step train_step operators gradients
  tests compile_time scaling inference)
parts=("$@")
((${#parts[@]})) || parts=("${every[@]}")

declare -A module flags tiny
module[frames_found]=experiments.gpu.frames
flags[frames_found]='--networks=found --ready-within=360'
tiny[frames_found]='--networks=found --height=32 --width=48 --runs=2
  --peak-size=64 --eager'
module[frames_dmphn]=experiments.gpu.frames
flags[frames_dmphn]='--networks=dmphn --ready-within=360'
tiny[frames_dmphn]='--networks=found --height=32 --width=48 --runs=2
  --peak-size=64'
flags[supernet_step]='--sizes=gpu --variants=sampled,remat,static,torch
  --runs=20'
tiny[supernet_step]='--sizes=tiny --steps=weight --variants=sampled,remat,static
  --runs=1'
flags[train_step]='--devices=1 --crop=256 --batch=8 --runs=20'
tiny[train_step]='--networks=found --devices=1 --crop=16 --batch=2 --runs=1'
flags[operators]='--side=1024 --width=64 --runs=30'
tiny[operators]='--side=16 --width=4 --runs=1'
flags[gradients]='--shapes=16x256x32,16x128x64,16x64x128 --runs=20'
tiny[gradients]='--shapes=1x8x2 --runs=1'
flags[compile_time]=''
tiny[compile_time]='--tasks=restore --width=4'
flags[scaling]='--side=512 --runs=20'
tiny[scaling]='--side=32 --width=4 --runs=1'
flags[inference]='--runtimes=xla,torch,torch.compile --runs=50'
tiny[inference]='--networks=found --runtimes=xla,torch --height=32 --width=48
  --runs=1'
# What computes on the device. In full float32 and the same each time, as the
# tests expect: of algorithms, the first that works is taken.
flags[tests]='cost dmphn gates hinas losses metrics mixed nafnet ops parallel
  patches peers remat search spaces train'
tiny[tests]='gates'

for part in "${parts[@]}"; do
  if [[ ! -v "flags[$part]" ]]; then
    echo "$part is no part; expected some of ${every[*]}" >&2
    exit 2
  fi
done
mkdir -p "$OUT"
log="$OUT/log.txt"

failed=0
for part in "${parts[@]}"; do
  began=$SECONDS
  seconds=540  # A kill and the JSON take some more.
  if [[ -n "${LIMIT:-}" ]] && ((LIMIT - SECONDS < seconds)); then
    seconds=$((LIMIT - SECONDS))
  fi
  if ((seconds < 1)); then
    echo "$part: not begun; LIMIT is $LIMIT s"
    failed=1
    continue
  fi
  settings=()
  options=${flags[$part]}
  [[ -n $dry ]] && options=${tiny[$part]}
  # shellcheck disable=SC2206  # Flags hold no spaces.
  command=("$python" -m "${module[$part]:-benchmarks.$part}" $options)
  if [[ $part == tests ]]; then
    settings=(JAX_DEFAULT_MATMUL_PRECISION=float32
      XLA_FLAGS=--xla_gpu_deterministic_ops=true)
    # One device serves all workers, and so does what one of them compiled.
    # shellcheck disable=SC2086
    command=(env "${settings[@]}" "JAX_COMPILATION_CACHE_DIR=$(mktemp -d)"
      JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
      "$python" -m pytest -q -m 'not slow' -p no:cacheprovider -p no:benchmark
      -n 8 --dist worksteal
      $(printf 'tests/test_%s.py ' $options))
  fi
  echo "== $part: ${command[*]}" >>"$log"
  # What is said at the end, such as by a library that ends, is no result.
  timeout --signal=INT --kill-after=30 "$seconds" "${command[@]}" \
    >"$OUT/$part.out" 2>>"$log"
  status=$?
  cat "$OUT/$part.out" >>"$log"
  # What was interrupted may have results all the same.
  if [[ $part == tests ]] || ((status == 0)) ||
    tail -n 1 "$OUT/$part.out" | grep -q '^{'; then
    env "${settings[@]}" \
      "$python" - "$OUT/$part" "$status" <<'PYTHON' 2>>"$log" || failed=1
import json, pathlib, sys
from benchmarks import measure

path, status = pathlib.Path(sys.argv[1]), int(sys.argv[2])
last = path.with_suffix('.out').read_text().strip().splitlines()[-1]
if path.name == 'tests':
  result = {'status': status, 'result': last, **measure.environment()}
else:
  result = json.loads(last)
path.with_suffix('.json').write_text(json.dumps(result) + '\n')
PYTHON
  fi
  rm -f "$OUT/$part.out"
  ((status == 0)) || failed=1
  echo "$part: exit status $status after $((SECONDS - began)) s; see $log"
done
exit "$failed"
