#!/usr/bin/env bash
# What: the style check and every test, on the CPU, without network (installation apart).
# How:  bash launch_scripts/test.sh [arguments of pytest, e.g. -k packing]
set -euo pipefail
CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch_scripts/setup.sh requirements-dev.txt
ruff check .
python -m pytest "$@"
