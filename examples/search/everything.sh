#!/usr/bin/env bash
# Every cell of the tables, as many at a time as there are cores, one thread each; then `table.py show OUT/results`.
# Usage: everything.sh OUT
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
export CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=1 here out
cell() {  # FOLDER run|compile ARGUMENT...
  mkdir -p "$out/$1" && cd "$out/$1" && python3 "$here/table.py" "${@:2}" --out "$out/results" >> log.txt 2>&1
}
export -f cell
models="tiny-llada tiny-dream"
{ # Where the layouts lose little, what they lose is measured on more text.
  for seed in 0 1 2; do for model in $models; do
    echo "cell weights-$model-$seed-high run weights $model --seed $seed --samples 192 --budget '4.25 bits'"
    echo "cell weights-$model-$seed-low run weights $model --seed $seed --budget '2.5 bits' --budget '3 bits'"
  done; done
  for seed in 0 1 2; do for model in $models; do
    echo "cell weights-$model-$seed run weights $model --seed $seed --budget '3.5 bits'"
    echo "cell mix-$model-$seed run mix $model --seed $seed --budget '5.5 bits'"
  done; done
} | xargs -P "$(nproc)" -d '\n' -n 1 bash -c
for model in $models; do
  echo "cell weights-$model-0-low compile weights $model --budget '2.5 bits'"
  echo "cell weights-$model-0 compile weights $model --budget '3.5 bits'"
  echo "cell mix-$model-0 compile mix $model --budget '5.5 bits'"
done | xargs -P "$(nproc)" -d '\n' -n 1 bash -c
