#!/usr/bin/env bash
# What:     uft_qwen3b.sh on two machines, by the deepspeed launcher and ssh. The recipe and its numbers are that script's: what a
#           run computes does not depend on the number of processes.
# Hardware: 2 machines of 4 GPUs with 80 GB. Checkout and environment lie at the same path on both, and the output folder on a disk
#           that both share; ssh from the first to both needs no password.
# Hours:    `--check` estimates them for 8 GPUs of one machine; the network between two is not in it. Never run: no such machines.
#           Two processes as two machines on loopback are tested (tests/run/test_two_nodes.py).
# How:      HOSTS=hosts bash launch_scripts/uft_qwen3b_2nodes.sh    # append --check or any flag, as for uft_qwen3b.sh
#           `hosts` has a line for each machine: its name and `slots=4`. MASTER_PORT=29600 where 29500 is taken.
#           NCCL_SOCKET_IFNAME, NCCL_IB_HCA, ... go along (the launcher hands on what begins with NCCL), others by ~/.deepspeed_env.
# Goes on:  append --resume: on the same number of processes, cut into machines as you like.
set -euo pipefail
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."
hosts="${HOSTS:-hosts}"
if [[ ! -f "$hosts" ]]; then
    echo "error: HOSTS=$hosts: no such file; it names the machines, a line each: NAME slots=4" >&2
    exit 2
fi
export LAUNCH="${LAUNCH:---hostfile $hosts --num_nodes 2 --num_gpus 4}"
export OUTPUT_DIR="${OUTPUT_DIR:-runs/uft_qwen3b_2nodes_seed${SEED:-0}}"
exec bash launch_scripts/uft_qwen3b.sh "$@"
