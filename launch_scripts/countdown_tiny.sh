#!/usr/bin/env bash
# What:     UFT, RFT and SFT on tiny Countdown, the quickstart's data and base model, equal steps, SEEDS (default "0 1 2").
# Hardware: two CPU cores.
# Expect:   the table in README.md, "UFT, RFT and SFT with a tiny model".
# How:      bash launch_scripts/quickstart.sh && bash launch_scripts/countdown_tiny.sh
# A run that is complete is not run again. PROCESSES (default 2) changes the time only: with PROCESSES=1 two calls with
# SEEDS and PORT of their own keep two cores busier than one call with two processes does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch_scripts/setup.sh requirements.txt
quickstart="${QUICKSTART:-runs/quickstart}"
run="${RUN:-runs/countdown_tiny}"
processes="${PROCESSES:-2}"

train() { # algorithm seed flags...
    local output_dir="$run/$1_seed$2"
    [[ ! -f "$output_dir/curves.png" ]] || return 0
    deepspeed --num_gpus "$processes" --master_port "${PORT:-29500}" "training/$1.py" \
        --model "$quickstart/base" \
        --data "$quickstart/data" \
        --output_dir "$output_dir" \
        --overwrite \
        --seed "$2" \
        --total_steps 200 \
        --prompts_per_step 64 \
        --mini_batch_prompts 16 \
        --max_prompt_length 96 \
        --max_response_length 64 \
        --max_tokens_per_micro_batch 4096 \
        --eval_every 20 \
        --save_every 200 \
        --zero_stage 3 \
        "${@:3}"
}

for seed in ${SEEDS:-0 1 2}; do
    train uft "$seed" --group_size 4 --lr 3e-4 --hint_steps 100 --sft_coef 1.0
    train rft "$seed" --group_size 4 --lr 3e-4
    train sft "$seed" --lr 1e-3 --max_length 160
done
python -m utils.report "$run"/*_seed*
