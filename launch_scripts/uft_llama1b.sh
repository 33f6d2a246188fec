#!/usr/bin/env bash
# What:     UFT on Countdown with Llama-3.2-1B, the paper's recipe (arXiv 2505.16984).
# Hardware: 2 GPUs with 80 GB (H100 in the paper), 100 GB of disk (5 checkpoints).
# Hours:    2.0 on H100, 5.5 on A100 (with our engine 2.4 and 6.1), 5.8 on A100 with 40 GB, 12.2 on
#           RTX 4090: estimated, never run (`--check` tells how).
# Memory:   MEMORY=40 or 24 before the call for smaller GPUs, MEMORY=auto for those here; what each takes is said below. With 24 GB
#           what the optimiser needs waits in CPU memory, 30 GB of it.
# Engine:   vLLM where it is installed with CUDA, else our own; both give back what they hold while the actor learns.
# Expect:   no number for this model was read off the paper's figures. Not run by us: no such machine was at hand.
#           Llama's beginning-of-sequence token comes before every prompt; the authors' code leaves it out (--no_bos).
# Data:     Countdown as our generator makes it; for the authors' rows give DATA=folder with their two parquet files.
#           MATH and Logic have longer prompts: DATA=math or DATA=kk_logic, and append --max_prompt_length 1024.
# How:      bash launch_scripts/uft_llama1b.sh         # append --check to see the plan, or any flag to change it
set -euo pipefail
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch_scripts/memory.sh
case "$MEMORY" in # GB of a GPU; at the end of a line what the run takes of one, as the plan estimates it
    80) memory=(--max_tokens_per_micro_batch 16384 --kv_cache_gb 17 --engine_memory_fraction 0.3) ;; # 55 GiB
    40) memory=(--max_tokens_per_micro_batch 7168 --kv_cache_gb 16 --engine_memory_fraction 0.35) ;; # 36 GiB
    24) memory=(--gradient_checkpointing --offload --max_tokens_per_micro_batch 16384 --kv_cache_gb 8 --engine_memory_fraction 0.6) ;; # 18 GiB
esac
source launch_scripts/setup.sh auto
source launch_scripts/launcher.sh 2

deepspeed --quiet "${launcher[@]}" training/uft.py \
    --model "${MODEL:-meta-llama/Llama-3.2-1B}" \
    --data "${DATA:-countdown}" \
    --output_dir "${OUTPUT_DIR:-runs/uft_llama1b_seed${SEED:-0}}" \
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
    "${memory[@]}" \
    --free_replica \
    --sleep_level 2 \
    --engine auto \
    "$@"
