#!/usr/bin/env bash
# What: the style check and every test, on the CPU, without network (installation apart). Without arguments, what compares
#       numbers runs twice more, as on other processors: with the instructions that those have, on one and on two threads.
# How:  bash launch_scripts/test.sh [arguments of pytest, e.g. -k packing, or -m "not slow": a minute and a half]
set -euo pipefail
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch_scripts/setup.sh requirements-dev.txt
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # two tests at a time; runs that they start have two processes
ruff check .
python -m pytest -n 2 --dist loadfile "$@"
(($# == 0)) || exit 0

numerics() {
    echo "[test] what compares numbers, with ${*:2}"
    env "${@:2}" python -m pytest --quiet -n "$1" --dist loadfile -m "numerics and (not slow or golden)"
}
numerics 2 OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
numerics 0 OMP_NUM_THREADS=2 ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=COMPATIBLE
