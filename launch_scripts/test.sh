#!/usr/bin/env bash
# What: the style check and every test, on the CPU, without network (installation apart). Without arguments, what compares
#       numbers runs twice more, as on other processors: with the instructions that those have, on one and on two threads.
# How:  bash launch_scripts/test.sh [arguments of pytest, e.g. -k packing, or -m "not slow": under two minutes]
set -euo pipefail
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch_scripts/setup.sh requirements-dev.txt
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # two tests at a time; runs that they start have two processes
ruff check .
python -c "from utils import cpu_kernels; cpu_kernels.are_there()" # compiled once, outside the limits of any test
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 12 --durations-min 20 "$@"
(($# == 0)) || exit 0

# Both at once, a process each. A thread that waits must sleep: spinning, two threads beside another process take ten
# times as long.
numerics=(python -m pytest --quiet -m "numerics and (not slow or golden)")
while read -r file; do numerics+=("$file"); done < <(grep -rl --include="test_*.py" numerics tests)
avx2=(OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2)
plain=(OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2
    MKL_CBWR=COMPATIBLE)
echo "[test] what compares numbers, with ${avx2[*]}, and at once with ${plain[*]}"
log="$(mktemp)"
env "${avx2[@]}" "${numerics[@]}" >"$log" 2>&1 &
trap 'kill $! 2>/dev/null || true; rm -f "$log"' EXIT
status=0
env "${plain[@]}" "${numerics[@]}" || status=$?
wait $! || status=$?
cat "$log"
exit "$status"
