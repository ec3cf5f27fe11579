#!/usr/bin/env bash
# All that is to be measured on a GPU, in parts of at most ten minutes.
#
#   experiments/gpu/run_all.sh [--dry-run] [PART...]
#
# PARTs are tests, frames, supernet_step, inference, train_step, scaling,
# operators and compile_time; all by default. Each writes OUT/PART.json (device,
# versions, commit and rows) and OUT/PART.log; a part that fails does not keep
# the others from running, but the exit status is 1. --dry-run turns every part
# at a tiny size on the CPU, to see that it runs.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python="${PYTHON:-python}"
export OUT="${OUT:-runs/gpu}"
# Two libraries share the device's memory, and peaks are to be seen.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
dry=
if [[ "${1:-}" == --dry-run ]]; then
  dry=yes
  export JAX_PLATFORMS=cpu JAX_DISABLE_MOST_OPTIMIZATIONS=1
  shift
fi
every=(tests frames supernet_step inference train_step scaling operators
  compile_time)
parts=("$@")
((${#parts[@]})) || parts=("${every[@]}")
mkdir -p "$OUT"

declare -A flags tiny
flags[frames]=''
tiny[frames]='--networks=found --height=32 --width=48 --runs=2 --peak-size=64
  --eager'
flags[supernet_step]='--runs=20'
tiny[supernet_step]='--sizes=tiny --steps=weight --variants=sampled,static
  --runs=1'
flags[inference]='--runtimes=xla,torch,torch.compile --runs=50'
tiny[inference]='--networks=found --runtimes=xla,torch --height=32 --width=48
  --runs=1'
flags[train_step]='--devices=1 --crop=256 --batch=8 --runs=20'
tiny[train_step]='--networks=found --devices=1 --crop=16 --batch=2 --runs=1'
flags[scaling]='--side=512 --runs=20'
tiny[scaling]='--side=32 --width=4 --runs=1'
flags[operators]='--side=512 --runs=50'
tiny[operators]='--side=16 --width=4 --runs=1'
flags[compile_time]=''
tiny[compile_time]='--tasks=restore --width=4'

failed=0
for part in "${parts[@]}"; do
  began=$SECONDS
  case "$part" in
    tests)
      command=("$python" -m pytest -q -m 'not slow' -p no:cacheprovider)
      [[ -n $dry ]] && command+=(tests/test_ops.py)
      ;;
    frames) command=("$python" -m experiments.gpu.frames) ;;
    *) command=("$python" -m "benchmarks.$part") ;;
  esac
  if [[ $part != tests ]]; then
    if [[ ! -v "flags[$part]" ]]; then
      echo "$part is no part; expected some of ${every[*]}" >&2
      exit 2
    fi
    if [[ -n $dry ]]; then options=${tiny[$part]}; else options=${flags[$part]}
    fi
    # shellcheck disable=SC2206  # Flags hold no spaces.
    command+=($options)
  fi
  log="$OUT/$part.log"
  timeout --signal=INT 590 "${command[@]}" >"$log" 2>&1
  status=$?
  if [[ $part == tests ]]; then
    "$python" - "$log" "$status" <<'PYTHON' >"$OUT/$part.json.tmp"
import json, sys
from benchmarks import measure
last = open(sys.argv[1]).read().strip().splitlines()[-1:]
print(json.dumps({'status': int(sys.argv[2]), 'result': ' '.join(last),
                  **measure.environment()}))
PYTHON
  elif ((status == 0)); then
    tail -n 1 "$log" >"$OUT/$part.json.tmp"
  fi
  if [[ -s "$OUT/$part.json.tmp" ]]; then
    mv "$OUT/$part.json.tmp" "$OUT/$part.json"
  fi
  ((status == 0)) || failed=1
  echo "$part: exit status $status after $((SECONDS - began)) s; see $log"
done
exit "$failed"
