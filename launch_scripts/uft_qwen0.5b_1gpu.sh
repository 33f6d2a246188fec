#!/usr/bin/env bash
# What:     UFT on Countdown with Qwen2.5-0.5B on one GPU, two responses per prompt (arXiv 2505.16984).
# Hardware: 1 GPU with 80 GB (H100 in the paper), 40 GB of disk (5 checkpoints).
# Hours:    0.8 on H100, 2.4 on A100 (with our engine 1.0 and 2.6), 2.4 on A100 with 40 GB, 5.1 on
#           RTX 4090: estimated, never run (`--check` tells how).
# Memory:   MEMORY=40 or 24 before the call for smaller GPUs, MEMORY=auto for those here; what each takes is said below.
# Engine:   vLLM where it is installed with CUDA, else our own; both give back what they hold while the actor learns.
# Expect:   about .505 with four responses per prompt (read off the paper's figure; one seed); none published for two.
#           Not run by us: no such machine was at hand.
# Data:     Countdown as our generator makes it; for the authors' rows give DATA=folder with their two parquet files.
#           MATH and Logic have longer prompts: DATA=math or DATA=kk_logic, and append --max_prompt_length 1024.
# How:      bash launch_scripts/uft_qwen0.5b_1gpu.sh   # append --check to see the plan, or any flag to change it
set -euo pipefail
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch_scripts/memory.sh
case "$MEMORY" in # GB of a GPU; at the end of a line what the run takes of one, as the plan estimates it
    80) memory=(--max_tokens_per_micro_batch 16384 --kv_cache_gb 7 --engine_memory_fraction 0.15) ;; # 45 GiB
    40) memory=(--max_tokens_per_micro_batch 11264 --kv_cache_gb 7 --engine_memory_fraction 0.3) ;; # 36 GiB
    24) memory=(--gradient_checkpointing --max_tokens_per_micro_batch 13312 --kv_cache_gb 4 --engine_memory_fraction 0.25) ;; # 21 GiB
esac
source launch_scripts/setup.sh auto
source launch_scripts/launcher.sh 1

deepspeed --quiet "${launcher[@]}" training/uft.py \
    --model "${MODEL:-Qwen/Qwen2.5-0.5B}" \
    --data "${DATA:-countdown}" \
    --output_dir "${OUTPUT_DIR:-runs/uft_qwen0.5b_1gpu_seed${SEED:-0}}" \
    --seed "${SEED:-0}" \
    --total_steps 500 \
    --hint_steps 300 \
    --hint_slices_max 5 \
    --p_high 0.95 \
    --p_low 0.05 \
    --prompts_per_step 256 \
    --group_size 2 \
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
    "${memory[@]}" \
    --free_replica \
    --sleep_level 2 \
    --engine auto \
    "$@"
