#!/usr/bin/env bash
# What:     On-policy self-distillation (a teacher who was shown the solution, arXiv 2601.18734) on Countdown with Qwen2.5-3B.
# Recipe:   that of rft_qwen3b.sh with one response a prompt; no KL: the teacher, the initial model, pulls back to itself.
# Hardware: 4 GPUs with 80 GB, 100 GB of CPU memory, 250 GB of disk (5 checkpoints).
# Hours:    1.1 on H100, 2.7 on A100 (with our engine 1.9 and 3.9), 3.0 on A100 with 40 GB, 6.4 on
#           RTX 4090: estimated, never run (`--check` tells how).
# Memory:   MEMORY=40 or 24 before the call for smaller GPUs, MEMORY=auto for those here; what each takes is said below. With 24 GB
#           what the optimiser needs waits in CPU memory, 74 GB of it.
# Engine:   vLLM where it is installed with CUDA, else our own; both give back what they hold while the actor learns.
# Expect:   no number of the paper for this model and data. Its models follow instructions; a base model may not know what a
#           solution before the problem is for, and teach nothing good: MODEL=Qwen/Qwen2.5-3B-Instruct --chat_template model.
#           Not run by us: no such machine was at hand.
# Data:     Countdown as our generator makes it; for the authors' rows give DATA=folder with their two parquet files.
#           MATH and Logic have longer prompts: DATA=math or DATA=kk_logic, and append --max_prompt_length 1024.
# How:      bash launch_scripts/self_distillation_qwen3b.sh   # append --check to see the plan, or any flag to change it
set -euo pipefail
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch_scripts/memory.sh
case "$MEMORY" in # GB of a GPU; at the end of a line what the run takes of one, as the plan estimates it
    80) memory=(--max_tokens_per_micro_batch 9216 --kv_cache_gb 3 --engine_memory_fraction 0.15) ;; # 71 GiB
    40) memory=(--max_tokens_per_micro_batch 2048 --kv_cache_gb 3 --engine_memory_fraction 0.3) ;; # 35 GiB
    24) memory=(--gradient_checkpointing --offload --max_tokens_per_micro_batch 16384 --kv_cache_gb 3 --engine_memory_fraction 0.5) ;; # 16 GiB
esac
source launch_scripts/setup.sh auto
source launch_scripts/launcher.sh 4

deepspeed --quiet "${launcher[@]}" training/self_distillation.py \
    --model "${MODEL:-Qwen/Qwen2.5-3B}" \
    --data "${DATA:-countdown}" \
    --output_dir "${OUTPUT_DIR:-runs/self_distillation_qwen3b_seed${SEED:-0}}" \
    --seed "${SEED:-0}" \
    --total_steps 500 \
    --prompts_per_step 256 \
    --group_size 1 \
    --mini_batch_prompts 64 \
    --max_prompt_length 256 \
    --max_response_length 1024 \
    --temperature 1.0 \
    --clip_eps 0.2 \
    --kl_coef 0 \
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
    "${memory[@]}" \
    --free_replica \
    --sleep_level 2 \
    --engine auto \
    "$@"
