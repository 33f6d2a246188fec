#!/usr/bin/env bash
# What: kills runs at random moments, resumes them, and compares their metrics with unbroken ones (tests/chaos/kill_resume.py).
# How:  bash tests/chaos/kill_resume.sh 26 [further flags of kill_resume.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source launch_scripts/setup.sh requirements-dev.txt
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
python -m tests.chaos.kill_resume --rounds "${1:-13}" "${@:2}"
