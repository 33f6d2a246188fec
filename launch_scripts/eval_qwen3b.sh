#!/usr/bin/env bash
# What:     Hint-free greedy accuracy of a model on test sets.
# Hardware: 1 GPU with 80 GB; more of them (GPUS=4) are faster and change no number.
# Hours:    less than 0.1 with 40 GB or more: estimated, never run.
# Memory:   MEMORY=40 or 24 before the call for a smaller GPU, MEMORY=auto for that here; what it takes is said below.
# Engine:   vLLM where it is installed with CUDA, else our own.
# Expect:   none published for the base model; for the last checkpoint of uft_qwen3b.sh about .755 on Countdown (read
#           off the paper's figure; one seed). Not run by us: no such machine was at hand.
# Data:     Countdown as our generator makes it; MATH and Logic (DATA=math, DATA=kk_logic) need no other flag.
# How:      bash launch_scripts/eval_qwen3b.sh         # append --check to see the plan, or any flag to change it
#           MODEL=runs/uft_qwen3b_seed0/checkpoints/step_500/hf evaluates a checkpoint. MODEL and DATA may name several,
#           with spaces between: DATA="countdown math kk_logic".
set -euo pipefail
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch_scripts/memory.sh
case "$MEMORY" in # GB of a GPU; at the end of a line what an evaluation takes of it, as the plan estimates it
    80) memory=(--kv_cache_gb 48 --engine_memory_fraction 0.8) ;; # 66 GiB
    40) memory=(--kv_cache_gb 24 --engine_memory_fraction 0.8) ;; # 35 GiB
    24) memory=(--kv_cache_gb 10 --engine_memory_fraction 0.75) ;; # 20 GiB
esac
source launch_scripts/setup.sh auto
source launch_scripts/launcher.sh "${GPUS:-1}"

read -ra models <<<"${MODEL:-Qwen/Qwen2.5-3B}"
read -ra data <<<"${DATA:-countdown}"

deepspeed --quiet "${launcher[@]}" training/eval.py \
    --model "${models[@]}" \
    --data "${data[@]}" \
    --output_dir "${OUTPUT_DIR:-runs/eval_qwen3b}" \
    --seed "${SEED:-0}" \
    --max_prompt_length 1024 \
    --max_response_length 1024 \
    --dtype bfloat16 \
    "${memory[@]}" \
    "$@"
