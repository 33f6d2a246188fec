#!/usr/bin/env bash
# What:     Every method with tiny models on three tasks (Countdown, the search tree at depth 6, sudoku), SEEDS of them
#           (default "0 1 2"), each tuned alike on problems of another seed (compare_tiny.py says over what), then two sweeps of
#           UFT's flags and four ways to learn from a prefix, and six methods on two smaller bases. Writes $RUN/comparison.png
#           and, in $RUN/tables.md, accuracies with intervals over seeds, pairwise differences, sampled and trained tokens;
#           $RUN/runs.csv has a line a run.
# Hardware: two CPU cores and 6 GB of memory, some twenty minutes for a task and seed, more with tuning; a GPU is used where
#           there is one (then JOBS=1; CUDA_VISIBLE_DEVICES=0,1,2,3 JOBS=4: a GPU for each).
# Expect:   the tables in launch_scripts/README.md, "All methods with tiny models".
# How:      bash launch_scripts/compare_tiny.sh
# Whenever it is stopped, the same command goes on: a run that is complete is not run again, one that was cut goes on from its
# last checkpoint. JOBS (default 2) runs go side by side, each one process with one thread. TASKS (default "countdown tree6
# sudoku") and STAGES (default "tune compare sweep models"; depths: the tree at 3, 4, 5, 6 and 8, an hour and a half more) select.
# STAGES=record makes the tables in a minute from the metrics of our own runs (compare_tiny_runs.jsonl); with "record compare"
# after it only what those lack is trained: a method that you have added to compare_tiny.py, say.
set -euo pipefail
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch_scripts/setup.sh auto
export RUN="${RUN:-runs/compare_tiny}" OMP_NUM_THREADS=1
unset BASH_ENV GREP_OPTIONS  # the shells that train start would read the first, which may put another deepspeed on PATH
read -ra seeds <<<"${SEEDS:-0 1 2}"
read -ra tasks <<<"${TASKS:-countdown tree6 sudoku}"
stages="${STAGES:-tune compare sweep models}"

make_data() { # task folder seed
    [[ ! -f "$2/test.parquet" ]] || return 0
    local train test
    case "$1" in # train and test problems of a tree, by its depth
        tree3) train=32 test=32 ;; tree4) train=128 test=128 ;; tree5) train=512 test=256 ;;
        tree6) train=3072 test=256 ;; tree8) train=8192 test=256 ;;
        countdown | sudoku) ;;
        *) echo "TASKS: $1 is not countdown, sudoku or tree6" >&2; return 2 ;;
    esac
    case "$1" in
        countdown) python -m utils.tasks.countdown --output_dir "$2" --seed "$3" --train_problems 6000 --test_problems 1024 \
            --min_numbers 3 --max_numbers 3 --max_number 25 --min_target 10 --max_target 60 --operators "+-*" \
            --max_pattern_share 0.15 ;;
        sudoku) python -m utils.tasks.sudoku --output_dir "$2" --seed "$3" --train_problems 320 --test_problems 512 \
            --min_blanks 5 --max_blanks 8 ;;
        tree?) python -m utils.tasks.tree --output_dir "$2" --seed "$3" --depth "${1#tree}" --branching 4 \
            --train_problems "$train" --test_problems "$test" ;;
    esac
}

countdown_base() { # folder flags...
    [[ -f "$1/config.json" ]] || python training/tiny_base.py --data "$RUN/countdown/data" --output_dir "$1" --steps 2500 \
        --solved_fraction 0.3 "${@:2}"
}

prepare() { # task
    local folder="$RUN/$1"
    make_data "$1" "$folder/data" 0
    [[ ! -f "$folder/base/config.json" ]] || return 0
    case "$1" in
        countdown) countdown_base "$folder/base" ;;
        sudoku) python training/tiny_base.py --task sudoku --data "$folder/data" --output_dir "$folder/base" --steps 2500 \
            --solved_fraction 0.05 ;;
        *) python training/tiny_base.py --task tree --data "$folder/data" --output_dir "$folder/base" --steps 1200 \
            --solved_fraction 0 --batch_size 32 --hidden_size 64 --intermediate_size 192 --num_layers 2 \
            --max_position_embeddings 256 ;;
    esac
}

complete() { [[ -f "$1/curves.png" || -f "$1/restored" ]]; } # folder

train() { # folder script flags...
    local output_dir="$1" script="$2" going log
    shift 2
    ! complete "$output_dir" || return 0
    going="$([[ -f "$output_dir/checkpoints/latest" ]] && echo --resume || echo --overwrite)"
    log="$output_dir.txt"
    mkdir -p "$(dirname "$log")"
    if [[ "${CUDA_VISIBLE_DEVICES:-}" == *,* ]]; then # one of them for each that runs at the same time
        IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
        export CUDA_VISIBLE_DEVICES="${gpus[SLOT % ${#gpus[@]}]}"
    fi
    [[ -z "${MASTER_PORT:-}" ]] || MASTER_PORT="$((MASTER_PORT + SLOT))"
    source launch_scripts/launcher.sh 1 || return 255
    deepspeed "${launcher[@]}" "training/$script.py" "$@" --output_dir "$output_dir" "$going" --save_every 80 --keep_last 1 \
        --max_tokens_per_micro_batch 4096 --zero_stage 0 --kv_cache_gb 1 \
        >"$log" 2>&1 || { echo "failed: see $log" >&2; return 255; }
    echo "${output_dir#"$RUN"/}: $(grep -o '"eval/accuracy": [0-9.]*' "$output_dir/metrics.jsonl" | tail -1)"
}
export -f complete train

run_stage() { # stage
    local part
    for part in 1 2; do # some begin with what others have made
        python launch_scripts/compare_tiny.py "$1" --run "$RUN" --part "$part" --tasks "${tasks[@]}" --seeds "${seeds[@]}" |
            xargs -r -P "${JOBS:-2}" --process-slot-var SLOT -L 1 bash -c 'train "$@"' train
    done
}

run_depths() { # steps to half the problems right, against the depth: the paper's theorem
    local depth method seed runs=()
    for depth in 3 4 5 6 8; do prepare "tree$depth"; done
    for seed in "${seeds[@]}"; do
        for depth in 3 4 5 6 8; do
            for method in rft r3 stage uft adaback; do
                local flags="--model $RUN/tree$depth/base --data $RUN/tree$depth/data --seed $seed --total_steps 160 --eval_every 5
                    --prompts_per_step 32 --group_size 8 --mini_batch_prompts 8 --max_prompt_length 48 --max_response_length 64
                    --lr 5e-4"
                case "$method" in uft | stage) flags+=" --hint_steps 120 --sft_coef 0.001" ;; esac
                echo "$RUN/tree$depth/depths/${method}_seed$seed" "$method" $flags
            done
        done
    done | xargs -r -P "${JOBS:-2}" --process-slot-var SLOT -L 1 bash -c 'train "$@"' train
    for run in "$RUN"/tree?/depths/*_seed*/; do ! complete "$run" || runs+=("${run%/}"); done
    ((${#runs[@]} < 1)) || python -m utils.report.depths "${runs[@]}" --figure "$RUN/depths.png" | tee "$RUN/depths.md"
}

folders() { # stage: its complete runs, a method after the other
    python launch_scripts/compare_tiny.py "$1" --run "$RUN" --part 0 --tasks "${tasks[@]}" --seeds "${seeds[@]}" |
        while read -r folder _; do ! complete "$folder" || echo "$folder"; done
}

report() { # tables of what there is
    local folder runs=() sweeps=() models=()
    while read -r folder; do runs+=("$folder"); done < <(folders compare)
    while read -r folder; do sweeps+=("$folder"); done < <(folders sweep)
    [[ " ${tasks[*]} " != *" countdown "* ]] || while read -r folder; do models+=("$folder"); done < <(folders models)
    ((${#runs[@]} > 1)) || return 0
    {
        python launch_scripts/compare_tiny.py tuned --run "$RUN" --tasks "${tasks[@]}"
        echo
        python -m utils.report "${runs[@]}" --figure "$RUN/comparison.png" --csv "$RUN/runs.csv" --over_seeds \
            --against rft sft_rft uft
        # Both lists have runs of the comparison too; there is nothing to tell before others are complete.
        [[ "${sweeps[*]:-}" != */uft_sft_coef_* ]] || { echo; python -m utils.report "${sweeps[@]}" --figure "$RUN/sweeps.png" \
            --csv "$RUN/sweeps.csv" --over_seeds --against uft prefix_rft; }
        [[ "${models[*]:-}" != */small/* ]] || { echo; python -m utils.report "${models[@]}" --mean_over model \
            --figure "$RUN/mean_over_models.png"; }
    } | tee "$RUN/tables.md"
}

for stage in $stages; do
    if [[ "$stage" == depths ]]; then run_depths; continue; fi
    if [[ "$stage" == record ]]; then
        python launch_scripts/compare_tiny_record.py restore --run "$RUN"
        for task in "${tasks[@]}"; do make_data "$task" "$RUN/$task/data" 0; done
        continue
    fi
    preparing=()
    for task in "${tasks[@]}"; do
        (prepare "$task"; make_data "$task" "$RUN/$task/tuning_data" 1) & preparing+=($!)
    done
    for one in "${preparing[@]}"; do wait "$one"; done
    if [[ "$stage" == models ]]; then
        countdown_base "$RUN/countdown/base_small" --hidden_size 64 --intermediate_size 192 --num_layers 3
        countdown_base "$RUN/countdown/base_middle" --hidden_size 96 --intermediate_size 288
    fi
    run_stage "$stage"
done
[[ "$stages" == tune || "$stages" == depths ]] || report
