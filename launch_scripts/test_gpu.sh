#!/usr/bin/env bash
# What:     the checks of what only a GPU shows (tests/gpu/), on one GPU in eight minutes, without network: random weights in
#           the shapes of real models. A table of figures and their bounds; figures and machine in runs/gpu_checks.json.
# Hardware: 1 GPU with 80 GB, bfloat16 and driver 580 or newer; a second one for three more checks. Without a GPU what can is
#           run small, on the CPU, and the exit status is 0.
# How:      bash launch_scripts/test_gpu.sh                       # installs what setup.sh installs, vLLM with it
#           bash launch_scripts/test_gpu.sh decode update         # these checks; --list says what there is
#           NO_INSTALL=1 PYTHON=python3 bash launch_scripts/test_gpu.sh    # with the Python at hand, as it is
set -euo pipefail
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -n "${NO_INSTALL:-}" ]]; then
    export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
else
    source launch_scripts/setup.sh auto
    source launch_scripts/setup.sh requirements-dev.txt # pytest
    PYTHON=python
fi
"${PYTHON:-python3}" -m tests.gpu "$@"
