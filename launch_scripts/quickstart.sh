#!/usr/bin/env bash
# What:     UFT on Countdown with a tiny model, from nothing: environment, data, base model, training, curves.
# Hardware: two CPU cores and 4 GB of memory; a GPU is used where there is one.
# Expect:   see the closing table in README.md.
# How:      bash launch_scripts/quickstart.sh            # any flag of training/uft.py may follow, e.g. --seed 1
# A second call reuses environment, data and base model and trains anew. Everything lands in runs/quickstart (or $RUN).
set -euo pipefail
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch_scripts/setup.sh auto
run="${RUN:-runs/quickstart}"
started=$SECONDS
steps="${STEPS:-220}"

echo "[quickstart] 1. puzzles: seconds. 2. a tiny base model from random weights, which learns the format and some arithmetic: 1.5 min."
echo "[quickstart] 3. UFT, $steps steps: 4 min on two CPU cores. Watch the accuracy of the evaluations: about 28 % at step 0, then more."
if [[ ! -f "$run/data/test.parquet" ]]; then
    python -m utils.tasks.countdown --output_dir "$run/data" --train_problems 6000 --test_problems 1024 \
        --min_numbers 3 --max_numbers 3 --max_number 25 --min_target 10 --max_target 60 --operators "+-*" \
        --max_pattern_share 0.15
fi
if [[ ! -f "$run/base/config.json" ]]; then
    python training/tiny_base.py --data "$run/data" --output_dir "$run/base" --steps 2000 --solved_fraction 0.3 --eval_problems 0
fi

gpus="$(python -c 'import torch; print(torch.cuda.device_count())')"
[[ "$gpus" != 0 || -z "${CUDA_VISIBLE_DEVICES:-}" ]] || unset CUDA_VISIBLE_DEVICES # names GPUs that are not there
source launch_scripts/launcher.sh "$((gpus == 1 ? 1 : 2))"
deepspeed --quiet "${launcher[@]}" training/uft.py \
    --model "$run/base" \
    --data "$run/data" \
    --output_dir "$run/uft" \
    --overwrite \
    --total_steps "$steps" \
    --hint_steps $((steps / 2)) \
    --prompts_per_step 64 \
    --group_size 4 \
    --mini_batch_prompts 16 \
    --max_prompt_length 96 \
    --max_response_length 64 \
    --max_tokens_per_micro_batch 4096 \
    --lr 3e-4 \
    --sft_coef 1.0 \
    --old_logprobs engine \
    --eval_every 44 \
    --save_every 110 \
    --zero_stage 3 \
    "$@"
model="$run/uft/checkpoints/$(cat "$run/uft/checkpoints/latest" 2>/dev/null || echo "step_$steps")/hf" # --output_dir may be another
cat <<EOF

quickstart took $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s, installation apart. Three things to try next,
in $PWD after: source $VIRTUAL_ENV/bin/activate

One problem, four answers, and what the model was unsure of:
    python inference/generate.py --model $model --data $run/data --index 7 -n 4 --logprobs
How often one of 8 samples is right (mean@8, pass@8):
    deepspeed --quiet ${launcher[*]} training/eval.py --model $model --data $run/data --output_dir $run/eval --overwrite --num_samples 8
The same without the loss on hints, and both side by side:
    bash launch_scripts/quickstart.sh --sft_coef 0 --output_dir $run/no_sft_loss
    python -m utils.report $run/uft $run/no_sft_loss
EOF
