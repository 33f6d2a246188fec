#!/usr/bin/env bash
# What:     UFT on Countdown with Qwen2.5-1.5B, the paper's recipe (arXiv 2505.16984).
# Hardware: 2 GPUs with 80 GB (H100 in the paper), 125 GB of disk (5 checkpoints).
# Expect:   no number for this model was read off the paper's figures. Not run by us: no such machine was at hand.
# Data:     Countdown as our generator makes it; for the authors' rows give DATA=folder with their two parquet files.
#           MATH and Logic have longer prompts: DATA=math or DATA=kk_logic, and append --max_prompt_length 1024.
# How:      bash launch_scripts/uft_qwen1.5b.sh        # append --check to see the plan, or any flag to change it
set -euo pipefail
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch_scripts/setup.sh auto
source launch_scripts/launcher.sh 2

deepspeed --quiet "${launcher[@]}" training/uft.py \
    --model "${MODEL:-Qwen/Qwen2.5-1.5B}" \
    --data "${DATA:-countdown}" \
    --output_dir "${OUTPUT_DIR:-runs/uft_qwen1.5b_seed${SEED:-0}}" \
    --seed "${SEED:-0}" \
    --total_steps 500 \
    --hint_steps 300 \
    --hint_slices_max 5 \
    --p_high 0.95 \
    --p_low 0.05 \
    --prompts_per_step 256 \
    --group_size 4 \
    --mini_batch_prompts 64 \
    --max_prompt_length 256 \
    --max_response_length 1024 \
    --temperature 1.0 \
    --clip_eps 0.2 \
    --kl_coef 0.001 \
    --entropy_coef 0.001 \
    --sft_coef 0.001 \
    --lr 1e-6 \
    --beta1 0.9 \
    --beta2 0.999 \
    --weight_decay 0.01 \
    --max_grad_norm 1.0 \
    --eval_every 25 \
    --save_every 100 \
    --zero_stage 3 \
    --dtype bfloat16 \
    --gradient_checkpointing \
    --max_tokens_per_micro_batch 16384 \
    --kv_cache_gb 24 \
    --engine torch \
    "$@"
