#!/usr/bin/env bash
# What:     Adaptive UFT (a probability of slices per problem, our own proposal) on Countdown with Qwen2.5-3B.
# Recipe:   that of uft_qwen3b.sh, with hints that follow each problem's accuracy in the place of the cosine.
# Hardware: 4 GPUs with 80 GB, 100 GB of CPU memory, 250 GB of disk (5 checkpoints).
# Hours:    2.5 on H100, 6.9 on A100 (with our engine 3.2 and 8.0), 8.2 on A100 with 40 GB, 16.2 on
#           RTX 4090: estimated, never run (`--check` tells how).
# Memory:   MEMORY=40 or 24 before the call for smaller GPUs, MEMORY=auto for those here; what each takes is said below. With 24 GB
#           what the optimiser needs waits in CPU memory, 74 GB of it.
# Engine:   vLLM where it is installed with CUDA, else our own; both give back what they hold while the actor learns.
# Expect:   nothing is known yet; to be compared with uft_qwen3b.sh, adaback_qwen3b.sh and r3_qwen3b.sh.
#           Not run by us: no such machine was at hand.
# Data:     Countdown as our generator makes it; for the authors' rows give DATA=folder with their two parquet files.
#           MATH and Logic have longer prompts: DATA=math or DATA=kk_logic, and append --max_prompt_length 1024.
# How:      bash launch_scripts/uft_adaptive_qwen3b.sh   # append --check to see the plan, or any flag to change it
set -euo pipefail
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch_scripts/memory.sh
case "$MEMORY" in # GB of a GPU; at the end of a line what the run takes of one, as the plan estimates it
    80) memory=(--max_tokens_per_micro_batch 9216 --kv_cache_gb 10 --engine_memory_fraction 0.25) ;; # 71 GiB
    40) memory=(--gradient_checkpointing --max_tokens_per_micro_batch 16384 --kv_cache_gb 10 --engine_memory_fraction 0.45) ;; # 37 GiB
    24) memory=(--gradient_checkpointing --offload --max_tokens_per_micro_batch 16384 --kv_cache_gb 10 --engine_memory_fraction 0.55) ;; # 21 GiB
esac
source launch_scripts/setup.sh auto
source launch_scripts/launcher.sh 4

deepspeed --quiet "${launcher[@]}" training/uft_adaptive.py \
    --model "${MODEL:-Qwen/Qwen2.5-3B}" \
    --data "${DATA:-countdown}" \
    --output_dir "${OUTPUT_DIR:-runs/uft_adaptive_qwen3b_seed${SEED:-0}}" \
    --seed "${SEED:-0}" \
    --total_steps 500 \
    --hint_rate 0.5 \
    --target_accuracy 0.5 \
    --mean_rate 0.1 \
    --hint_slices_max 5 \
    --p_high 0.95 \
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
    "${memory[@]}" \
    --free_replica \
    --sleep_level 2 \
    --engine auto \
    "$@"
