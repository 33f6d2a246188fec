#!/usr/bin/env bash
# What:     The paper's comparison with tiny models: SFT, RFT, SFT-RFT, R3, stage and UFT, SEEDS of them (default "0 1 2"), on
#           Countdown and on the search tree at depths 4 and 6; RFT, R3, stage and UFT on the tree at depths 3, 5 and 8 too.
#           Writes $RUN/comparison.png (accuracy and hints over the steps, a panel a task), $RUN/depths.png (steps to 50 %
#           against depth) and the tables to $RUN/tables.md.
# Hardware: two CPU cores and 6 GB of memory, about 100 minutes; a GPU is used where there is one (then
#           JOBS=1; CUDA_VISIBLE_DEVICES=0,1,2,3 JOBS=4: a GPU for each).
# Expect:   the tables in README.md, "All methods with tiny models".
# How:      bash launch_scripts/compare_tiny.sh
# A run that is complete is not run again, one that was cut goes on from its last checkpoint. JOBS (default 2) runs go side by
# side, each one process with one thread. TASKS (default "countdown tree4 tree6 tree3 tree5 tree8") selects.
set -euo pipefail
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch_scripts/setup.sh auto
export RUN="${RUN:-runs/compare_tiny}" OMP_NUM_THREADS=1
unset BASH_ENV GREP_OPTIONS  # the shells that train start would read the first, which may put another deepspeed on PATH
seeds="${SEEDS:-0 1 2}"
tasks="${TASKS:-countdown tree4 tree6 tree3 tree5 tree8}"

prepare() { # task
    local folder="$RUN/$1" depth="${1#tree}" train test
    if [[ "$1" == countdown && ! -f "$folder/data/test.parquet" ]]; then
        python -m utils.tasks.countdown --output_dir "$folder/data" --train_problems 6000 --test_problems 1024 \
            --min_numbers 3 --max_numbers 3 --max_number 25 --min_target 10 --max_target 60 --operators "+-*" \
            --max_pattern_share 0.15
    elif [[ ! -f "$folder/data/test.parquet" ]]; then
        case "$depth" in # train and test problems
            3) train=32 test=32 ;; 4) train=128 test=128 ;; 5) train=512 test=256 ;;
            6) train=3072 test=256 ;; 8) train=8192 test=256 ;;
            *) echo "TASKS: $1 is not countdown or tree3, tree4, tree5, tree6, tree8" >&2; return 2 ;;
        esac
        python -m utils.tasks.tree --output_dir "$folder/data" --depth "$depth" --branching 4 \
            --train_problems "$train" --test_problems "$test"
    fi
    [[ ! -f "$folder/base/config.json" ]] || return 0
    if [[ "$1" == countdown ]]; then
        python training/tiny_base.py --data "$folder/data" --output_dir "$folder/base" --steps 2500 --solved_fraction 0.3
    else
        python training/tiny_base.py --task tree --data "$folder/data" --output_dir "$folder/base" --steps 1200 \
            --solved_fraction 0 --batch_size 32 --hidden_size 64 --intermediate_size 192 --num_layers 2 \
            --max_position_embeddings 256
    fi
}

train() { # task method seed; the method is the script's name, or sft_rft: rft from the checkpoint of sft
    local folder="$RUN/$1" output_dir="$RUN/$1/$2_seed$3" script="${2#sft_}" steps model going
    steps="$([[ "$1" == countdown ]] && echo 200 || echo 160)"
    model="$([[ "$2" == sft_rft ]] && echo "$folder/sft_seed$3/checkpoints/step_$steps/hf" || echo "$folder/base")"
    [[ ! -f "$output_dir/curves.png" ]] || return 0
    going="$([[ -f "$output_dir/checkpoints/latest" ]] && echo --resume || echo --overwrite)"
    local flags=(--model "$model" --data "$folder/data" --output_dir "$output_dir" "$going" --seed "$3"
        --total_steps "$steps" --save_every 100 --max_tokens_per_micro_batch 4096 --zero_stage 0 --kv_cache_gb 1)
    if [[ "$1" == countdown ]]; then
        flags+=(--prompts_per_step 64 --max_prompt_length 96 --max_response_length 64 --eval_every 20)
        case "$script" in
            sft) flags+=(--mini_batch_prompts 64 --lr 1e-3 --max_length 160) ;;
            *) flags+=(--mini_batch_prompts 16 --group_size 4 --lr 3e-4) ;;
        esac
        case "$script" in uft | stage) flags+=(--hint_steps 100 --sft_coef 1.0) ;; esac
    else
        flags+=(--prompts_per_step 32 --max_prompt_length 48 --max_response_length 64 --eval_every 5)
        case "$script" in
            sft) flags+=(--mini_batch_prompts 32 --lr 1e-3 --max_length 96) ;;
            *) flags+=(--mini_batch_prompts 8 --group_size 8 --lr 5e-4) ;;
        esac
        case "$script" in uft | stage) flags+=(--hint_steps 120 --sft_coef 0.001) ;; esac
    fi
    mkdir -p "$RUN/$1/logs"
    if [[ "${CUDA_VISIBLE_DEVICES:-}" == *,* ]]; then # one of them for each that runs at the same time
        IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
        export CUDA_VISIBLE_DEVICES="${gpus[SLOT % ${#gpus[@]}]}"
    fi
    [[ -z "${MASTER_PORT:-}" ]] || MASTER_PORT="$((MASTER_PORT + SLOT))"
    source launch_scripts/launcher.sh 1 || return 255
    deepspeed "${launcher[@]}" "training/$script.py" "${flags[@]}" \
        >"$RUN/$1/logs/$2_seed$3.txt" 2>&1 || { echo "failed: see $RUN/$1/logs/$2_seed$3.txt" >&2; return 255; }
    echo "$1 $2 seed $3: $(grep -o '"eval/accuracy": [0-9.]*' "$output_dir/metrics.jsonl" | tail -1)"
}
export -f train

for task in $tasks; do prepare "$task"; done
for methods in "sft" "uft rft r3 stage sft_rft"; do # sft_rft waits for sft
    for seed in $seeds; do
        for task in $tasks; do
            for method in $methods; do
                [[ "$method" == *sft* && "$task" == tree[358] ]] || echo "$task $method $seed"
            done
        done
    done | xargs -r -P "${JOBS:-2}" --process-slot-var SLOT -L 1 bash -c 'train "$@"' train
done

runs=() trees=() # methods in one order for both figures, so that each keeps its colour
for method in sft rft sft_rft r3 stage uft; do
    for task in countdown tree4 tree6 tree3 tree5 tree8; do
        for seed in $seeds; do
            run="$RUN/$task/${method}_seed$seed"
            [[ -f "$run/curves.png" ]] || continue
            [[ "$task" == tree[358] ]] || runs+=("$run")
            [[ "$task" == countdown ]] || trees+=("$run")
        done
    done
done
: >"$RUN/tables.md"
((${#runs[@]} < 2)) || python -m utils.report "${runs[@]}" --figure "$RUN/comparison.png" | tee -a "$RUN/tables.md"
((${#trees[@]} < 1)) || python -m utils.report.depths "${trees[@]}" --figure "$RUN/depths.png" | tee -a "$RUN/tables.md"
