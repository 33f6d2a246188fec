#!/usr/bin/env bash
# What:     SFT, then RFT from its last checkpoint (also the reference), on Countdown with Qwen2.5-3B, the paper's
#           recipe (arXiv 2505.16984).
# Hardware: 4 GPUs with 80 GB (H100 in the paper), 100 GB of CPU memory, 350 GB of disk (7 checkpoints).
# Hours:    2.6 on H100, 7.2 on A100 (with our engine 3.3 and 8.3), 8.6 on A100 with 40 GB, 17.1 on
#           RTX 4090: estimated, never run (`--check` tells how).
# Memory:   MEMORY=40 or 24 before the call for smaller GPUs, MEMORY=auto for those here; what each takes is said below. With 24 GB
#           what the optimiser needs waits in CPU memory, 74 GB of it.
# Engine:   vLLM where it is installed with CUDA, else our own; both give back what they hold while the actor learns.
# Expect:   about .51 hint-free greedy accuracy on the 1,024 test problems at step 500 (read off the paper's figure;
#           one seed). Not run by us: no such machine was at hand.
# Data:     Countdown as our generator makes it; for the authors' rows give DATA=folder with their two parquet files.
#           MATH and Logic have longer prompts: DATA=math or DATA=kk_logic, and append --max_prompt_length 1024.
#           Five epochs: SFT_STEPS=5 * rows / 256, for kk_logic 88, for math about 109 (161 with its --split paper).
# How:      bash launch_scripts/sft_rft_qwen3b.sh      # append --check to see the plan, or any flag to change it
#           Appended flags go to both halves, --total_steps too. To go on with a run that was cut off, give the same call
#           again: a finished first half is not run again, and the half that was cut goes on from its latest checkpoint.
set -euo pipefail
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch_scripts/memory.sh
case "$MEMORY" in # GB of a GPU; at the end of a line what that half takes of one, as the plan estimates it
    80)
        sft_memory=(--max_tokens_per_micro_batch 10240 --kv_cache_gb 12 --engine_memory_fraction 0.25) # 72 GiB
        rft_memory=(--max_tokens_per_micro_batch 9216 --kv_cache_gb 10 --engine_memory_fraction 0.25) # 71 GiB
        ;;
    40)
        sft_memory=(--max_tokens_per_micro_batch 2048 --kv_cache_gb 12 --engine_memory_fraction 0.45) # 35 GiB
        rft_memory=(--gradient_checkpointing --max_tokens_per_micro_batch 16384 --kv_cache_gb 10 --engine_memory_fraction 0.45) # 37 GiB
        ;;
    24)
        sft_memory=(--gradient_checkpointing --offload --max_tokens_per_micro_batch 16384 --kv_cache_gb 8 --engine_memory_fraction 0.55) # 19 GiB
        rft_memory=(--gradient_checkpointing --offload --max_tokens_per_micro_batch 16384 --kv_cache_gb 10 --engine_memory_fraction 0.55) # 21 GiB
        ;;
esac
source launch_scripts/setup.sh auto
source launch_scripts/launcher.sh 4

model="${MODEL:-Qwen/Qwen2.5-3B}"
output_dir="${OUTPUT_DIR:-runs/sft_rft_qwen3b_seed${SEED:-0}}"
sft_steps="${SFT_STEPS:-200}"
is_check="" is_new="" before=""
for word in "$@"; do
    [[ "$before" != --total[_-]steps ]] || sft_steps="$word"
    case "$word" in
        --check) is_check=yes ;;
        --overwrite) is_new=yes ;;
        --total[_-]steps=*) sft_steps="${word#*=}" ;;
        --model | --model=* | --output[_-]dir | --output[_-]dir=*)
            echo "error: flag $word: each half has its own; give MODEL=... or OUTPUT_DIR=... before the call" >&2
            exit 2 ;;
    esac
    before="$word"
done
sft_model="$output_dir/sft/checkpoints/step_$sft_steps/hf"

train() { # algorithm flags...: one half, from where it was cut off
    local half="$output_dir/$1" start=()
    if [[ -z "$is_new" && -f "$half/checkpoints/latest" ]]; then
        start=(--resume)
    elif [[ -z "$is_new" && -f "$half/args.json" ]]; then
        start=(--overwrite) # cut off before its first checkpoint
    fi
    deepspeed --quiet "${launcher[@]}" "training/$1.py" \
        --data "${DATA:-countdown}" \
        --output_dir "$half" \
        --seed "${SEED:-0}" \
        "${@:2}" \
        ${start[@]+"${start[@]}"} # bash before 4.4 calls an empty array unbound
}

if [[ ! -f "$sft_model/config.json" || -n "$is_check$is_new" ]]; then
    train sft \
        --model "$model" \
        --total_steps "$sft_steps" \
        --prompts_per_step 256 \
        --mini_batch_prompts 256 \
        --max_prompt_length 256 \
        --max_response_length 1024 \
        --max_length 1024 \
        --lr 1e-5 \
        --warmup 0.1 \
        --beta1 0.9 \
        --beta2 0.95 \
        --weight_decay 0.01 \
        --max_grad_norm 1.0 \
        --eval_every 25 \
        --save_every 100 \
        --zero_stage 3 \
        --dtype bfloat16 \
        "${sft_memory[@]}" \
        --free_replica \
        --sleep_level 2 \
        --engine auto \
        "$@"
fi
# --check tells the plan of the second half before there is a first, with the model that both halves begin with.
[[ -n "$is_check" && ! -f "$sft_model/config.json" ]] || model="$sft_model"
train rft \
    --model "$model" \
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
    "${rft_memory[@]}" \
    --free_replica \
    --sleep_level 2 \
    --engine auto \
    "$@"
