#!/usr/bin/env bash
# What: a virtual environment that holds what a requirements file names. Installs only when that file changed since the last call.
# How:  source launch_scripts/setup.sh auto                    # afterwards `python` and `deepspeed` are the environment's
#       source launch_scripts/setup.sh requirements-dev.txt    # the same with that file
#       bash launch_scripts/setup.sh auto                      # only makes and fills it
# auto is requirements.txt where there is an NVIDIA GPU, and requirements-cpu.txt where there is none.
# Which environment: $VENV if set, else the activated one ($VIRTUAL_ENV), else .venv here.
# Which Python makes a new one: $PYTHON if set, else the first of python3.11, 3.12, 3.13, python3 that is 3.11 or newer.

if [[ "${BASH_SOURCE[0]}" != "$0" ]]; then
    # Sourced: the work is a process of its own, so that an error cannot leave options set in, or close, the caller's shell.
    bash "${BASH_SOURCE[0]}" "$1" || return 1
    VIRTUAL_ENV="${VENV:-${VIRTUAL_ENV:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv}}"
    VIRTUAL_ENV="$(cd "$VIRTUAL_ENV" && pwd)"
    export VIRTUAL_ENV PATH="$VIRTUAL_ENV/bin:$PATH"
    export TOKENIZERS_PARALLELISM=false  # its threads and our worker processes would fight, with a warning each time
    return 0
fi

set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${VENV:-${VIRTUAL_ENV:-$root/.venv}}"
requirements="${1:-auto}"
[[ "$requirements" != auto ]] || requirements="$(nvidia-smi >/dev/null 2>&1 && echo requirements.txt || echo requirements-cpu.txt)"
[[ -f "$requirements" ]] || requirements="$root/$requirements"

say() { echo "[setup] $*"; }
fail() { echo "[setup] error: $*" >&2; exit 1; }
is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

[[ -f "$requirements" ]] || fail "requirements file '$requirements' not found; use: source launch_scripts/setup.sh requirements-cpu.txt"
command -v "${CXX:-c++}" >/dev/null || fail "no C++ compiler: '${CXX:-c++}' is not on PATH, and DeepSpeed compiles with it." \
    "Debian/Ubuntu: apt install g++; Fedora: dnf install gcc-c++; or set CXX to yours."

# The file itself and those it includes (-r other.txt) have a stamp each in the environment: the checksum of what was installed.
files=("$requirements")
for ((i = 0; i < ${#files[@]}; i++)); do # the list grows as it is read
    while read -r _ included; do files+=("$(dirname "$requirements")/$included"); done < <(grep '^-r ' "${files[i]}" || true)
done
stamp() { echo "$venv/.installed-$(basename "$1")"; }
is_installed() { [[ -f "$(stamp "$1")" && "$(<"$(stamp "$1")")" == "$(cksum <"$1")" ]]; }
stale=""
for file in "${files[@]}"; do is_installed "$file" || stale=yes; done
[[ -n "$stale" || ! -x "$venv/bin/python" ]] || exit 0

if [[ ! -x "$venv/bin/python" ]]; then
    python=""
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if is_new_enough "$candidate"; then python="$candidate"; break; fi
    done
    [[ -n "$python" ]] || fail "no Python 3.11 or newer found (tried: ${PYTHON:-python3.11 python3.12 python3.13 python3});" \
        "install one, or name yours: PYTHON=/path/to/python bash ..."
    say "making $venv with $("$python" --version) ($(command -v "$python"))"
    "$python" -m venv "$venv" || fail "'$python -m venv $venv' failed; Debian/Ubuntu: apt install python3-venv"
fi

is_new_enough "$venv/bin/python" || fail "$venv has $("$venv/bin/python" --version 2>&1), and 3.11 or newer is needed; name another folder with VENV=..."
headers="$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')"
[[ -f "$headers/Python.h" ]] || fail "$headers/Python.h is missing, and DeepSpeed compiles with it; Debian/Ubuntu: apt install python3-dev"
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null ||
    fail "$venv has no pip and cannot make one; Debian/Ubuntu: apt install python3-venv, then delete that folder"

say "installing $(basename "$requirements") into $venv (minutes the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
for file in "${files[@]}"; do cksum <"$file" >"$(stamp "$file")"; done
say "done"
