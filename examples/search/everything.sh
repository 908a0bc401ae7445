#!/usr/bin/env bash
# Every cell of the tables, as many at a time as there are cores, one thread each; then `table.py show OUT/results`.
# Usage: everything.sh OUT
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
jobs=$(getconf _NPROCESSORS_ONLN)
export CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=1 here out
table() {  # FOLDER run|compile ARGUMENT...
  mkdir -p "$out/$1" && cd "$out/$1" && python3 "$here/table.py" "${@:2}" --out "$out/results"
}
weights() {  # SEED MODEL; where layouts lose little, the loss is measured on more text
  local samples=64
  [ "$2" = tiny-llada ] && samples=192
  table "weights-$2-$1" run weights "$2" --seed "$1" --samples "$samples" --budget "4.25 bits"
  table "weights-$2-$1" run weights "$2" --seed "$1" --budget "3 bits" --budget "3.5 bits" --budget "2.5 bits"
}
mix() {  # SEED MODEL
  table "mix-$2-$1" run mix "$2" --seed "$1" --budget "5.5 bits"
}
artifacts() {  # RECIPE MODEL BUDGET
  table "$1-$2-0" compile "$1" "$2" --budget "$3"
}
export -f table weights mix artifacts
printf '%s\n' {"weights ","mix "}{0,1,2}{" tiny-llada"," tiny-dream"} | xargs -P "$jobs" -d '\n' -n 1 bash -c
printf '%s\n' {"weights tiny-llada","weights tiny-dream"}{" '2.5 bits'"," '3.5 bits'"} "mix "{tiny-llada,tiny-dream}" '5.5 bits'" |
  sed 's/^/artifacts /' | xargs -P "$jobs" -d '\n' -n 1 bash -c
