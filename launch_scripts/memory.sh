#!/usr/bin/env bash
# What: MEMORY becomes the GB of the GPUs that a launch script is to fill: 80 (where nothing is said), 40 or 24.
# How:  source launch_scripts/memory.sh     # what its user may set: MEMORY=80, 40 or 24; or auto, by the smallest GPU here

MEMORY="${MEMORY:-80}"
if [[ "$MEMORY" == auto ]]; then
    smallest="$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null | LC_ALL=C sort -n | sed -n 1p || true)"
    if [[ ! "$smallest" =~ ^[0-9]+$ ]]; then # MiB
        echo "error: MEMORY=auto: nvidia-smi names no GPU; give MEMORY=80, 40 or 24" >&2
        return 1
    fi
    for MEMORY in 80 40 24 0; do # an L4, sold with 24 GB, has 22.5 GiB
        ((smallest < MEMORY * 1024 * 11 / 12)) || break
    done
    if ((MEMORY == 0)); then
        echo "error: MEMORY=auto: a GPU here has $smallest MiB, and with less than 24 GB this script's run does not fit" >&2
        return 1
    fi
fi
if [[ ! "$MEMORY" =~ ^(80|40|24)$ ]]; then
    echo "error: MEMORY=$MEMORY: must be 80, 40 or 24 (GB of a GPU), or auto" >&2
    return 1
fi
