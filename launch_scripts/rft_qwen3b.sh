#!/usr/bin/env bash
# What:     RFT (GRPO with verifier rewards) on Countdown with Qwen2.5-3B, the paper's recipe (arXiv 2505.16984).
# Hardware: 4 GPUs with 80 GB (H100 in the paper), 100 GB of CPU memory, 250 GB of disk (5 checkpoints).
# Expect:   about .755 hint-free greedy accuracy on the 1,024 test problems at step 500 (read off the paper's figure;
#           one seed). Not run by us: no such machine was at hand.
# Data:     Countdown as our generator makes it; for the authors' rows give DATA=folder with their two parquet files.
#           MATH and Logic have longer prompts: DATA=math or DATA=kk_logic, and append --max_prompt_length 1024.
# How:      bash launch_scripts/rft_qwen3b.sh          # append --check to see the plan, or any flag to change it
set -euo pipefail
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch_scripts/setup.sh auto
source launch_scripts/launcher.sh 4

deepspeed --quiet "${launcher[@]}" training/rft.py \
    --model "${MODEL:-Qwen/Qwen2.5-3B}" \
    --data "${DATA:-countdown}" \
    --output_dir "${OUTPUT_DIR:-runs/rft_qwen3b_seed${SEED:-0}}" \
    --seed "${SEED:-0}" \
    --total_steps 500 \
    --prompts_per_step 256 \
    --group_size 4 \
    --mini_batch_prompts 64 \
    --max_prompt_length 256 \
    --max_response_length 1024 \
    --temperature 1.0 \
    --clip_eps 0.2 \
    --kl_coef 0.001 \
    --entropy_coef 0.001 \
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
