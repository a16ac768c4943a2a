#!/usr/bin/env bash
# All that has to be measured on a GPU, in at most 12 minutes on one of 80 GB or more:
#   bench/gpu.sh OUT            # OUT/gpu.json has everything; a second start resumes
#   bench/gpu.sh --dry OUT      # tiny sizes on the CPU: does every line run?
# Needs the installed package alone: pip install 'regionroute[nf4,fp8,xformers]'. A stage that fails or
# takes longer than its limit is noted in the result, and the others run.
set -uo pipefail
dry=
if [ "${1:-}" = --dry ]; then
  dry=1
  shift
fi
out=$(realpath -m "${1:?usage: bench/gpu.sh [--dry] OUT}")
mkdir -p "$out"
cd "$(dirname "$0")/.." || exit 2

# stage NAME SECONDS SCRIPT ARGUMENT…: the result of bench/SCRIPT.py, unless it is there
stage() {
  local name=$1 limit=$2 script=$3 began=$SECONDS code
  shift 3
  if [ -s "$out/$name.json" ]; then
    echo "== $name: finished before"
    return
  fi
  echo "== $name: bench/$script.py $*"
  timeout "$limit" python "bench/$script.py" "$@" --result "$out/$name.part" 2>&1 | tee "$out/$name.log"
  code=${PIPESTATUS[0]}
  echo "$code $((SECONDS - began))" >"$out/$name.status"
  if [ -s "$out/$name.part" ]; then
    mv "$out/$name.part" "$out/$name.json"
  fi
}

if [ -n "$dry" ]; then
  stage kernels 600 gpu_kernels --dry
  stage attention 600 attention --shapes nano --rounds 2
  stage step 600 train_kontext --dry --sizes 512 --rounds 2
  stage nf4 600 train_kontext --dry --weights nf4 --sizes 512 --rounds 2
  stage fp8 600 train_kontext --dry --weights fp8 --sizes 512 --rounds 2
  stage sparse 600 region_sparse --dry --rounds 1
else
  stage kernels 60 gpu_kernels
  stage attention 80 attention --shapes flux --rounds 10
  stage step 220 train_kontext --weights bf16 --sizes 512 1024 --rounds 8
  stage nf4 110 train_kontext --weights nf4 --sizes 1024 --rounds 4
  stage fp8 110 train_kontext --weights fp8 --sizes 1024 --rounds 4
  stage sparse 120 region_sparse --device cuda --dtype bfloat16 --rounds 3
fi
python bench/gpu_result.py "$out"
