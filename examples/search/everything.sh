#!/usr/bin/env bash
# Every cell of the table, side by side, one thread each; then `table.py show OUT/results`. Usage: everything.sh OUT
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
export CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=1
cell() {  # RECIPE MODEL SEED BUDGET...
  local folder="$out/$1-$2-$3-${4// /_}" budgets=()
  for budget in "${@:4}"; do budgets+=(--budget "$budget"); done
  mkdir -p "$folder"
  (cd "$folder" && python3 "$here/table.py" run "$1" "$2" --seed "$3" "${budgets[@]}" --out "$out/results" > log.txt 2>&1) &
}
for seed in 0 1 2; do
  for model in tiny-llada tiny-dream; do
    cell weights "$model" "$seed" "2.5 bits" "3.5 bits"
    cell weights "$model" "$seed" "3 bits" "4.25 bits"
    cell mix "$model" "$seed" "5.5 bits"
  done
done
wait
