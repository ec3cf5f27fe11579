#!/usr/bin/env bash
# One slice of the comparison of search and chance at real widths, on a GPU.
#
#   PAIRS=pairs PHOTOS=bsds500 OUT=runs/gpu_search experiments/gpu/search.sh
#
# Ends after at most SLICE seconds (570); run it again until it prints
# 'finished': it goes on from its checkpoints. PAIRS is what make_pairs wrote,
# PHOTOS the folder of BSDS500 with train, val and test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# Else JAX goes on without a GPU it cannot use.
export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda,cpu}"

status=0
timeout --signal=INT "${SLICE:-570}" "${PYTHON:-python3}" \
  -m experiments.random_vs_search.run --pairs="${PAIRS:?folder of pairs}" \
  --photos="${PHOTOS:?folder of BSDS500}" --out="${OUT:-runs/gpu_search}" \
  --width=32 --unshuffle=1 --crop=256 --steps="${STEPS:-20000}" --seeds="${SEEDS:-3}" || status=$?
if [[ $status == 0 ]]; then
  echo finished
elif [[ $status == 124 ]]; then
  echo 'not finished: run it again'
else
  exit "$status"
fi
