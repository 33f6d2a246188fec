#!/usr/bin/env bash
# What: the words of `deepspeed` that say where a launch script runs, as the array `launcher`.
# How:  source launch_scripts/launcher.sh 4; deepspeed --quiet "${launcher[@]}" training/uft.py ...
#       The number is that of the GPUs the script is meant for. What its user may set:
#       CUDA_VISIBLE_DEVICES=4,5,6,7   the GPUs, at most as many as the script is meant for (by itself `deepspeed --num_gpus`
#                                      takes the machine's first ones); empty: on the CPU
#       MASTER_PORT=29600              where the processes meet; left out: on one machine a free port, else 29500
#       LAUNCH="--hostfile hosts"      these words instead: --num_gpus, --include, --num_nodes, --master_addr, ...

launcher=()
[[ -z "${MASTER_PORT:-}" ]] || launcher=(--master_port "$MASTER_PORT")
if [[ "${LAUNCH:-}" == *[![:space:]]* ]]; then
    read -ra launch_words <<<"$LAUNCH"
    launcher+=("${launch_words[@]}")
elif [[ "${DS_ACCELERATOR:-}" == cpu ]]; then # as setup.sh says of a PyTorch for CPUs
    launcher+=(--num_gpus "$1")
elif [[ "${CUDA_VISIBLE_DEVICES:-}" =~ ^[0-9]+(,[0-9]+)*$ ]]; then
    IFS=, read -ra visible <<<"$CUDA_VISIBLE_DEVICES"
    launcher+=(--include "localhost:$(IFS=,; echo "${visible[*]:0:$1}")")
elif [[ -n "${CUDA_VISIBLE_DEVICES:-}" && "$CUDA_VISIBLE_DEVICES" != -1 ]]; then
    echo "error: CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES: DeepSpeed's launcher knows GPUs by number, as 0,1" >&2
    return 2
else
    launcher+=(--num_gpus "$1")
    # The launcher shows GPUs 0, 1, .. to its processes where none should be visible; they know the wish by this.
    [[ -z "${CUDA_VISIBLE_DEVICES+set}" ]] || export DS_ACCELERATOR=cpu
fi
