"""training/rft.py, or without --group_size training/sft.py, with an engine that leaves out one sync, the third: what is
sampled then comes from old weights. Takes the flags of the script.

    deepspeed --num_gpus 2 tests/workers/stale_sync.py --engine vllm ...
"""

import sys
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from training import rft, sft
from utils.run.cli import run_script

script = rft if "--group_size" in sys.argv else sft
build_engine = script.build_engine


def build_forgetful_engine(*args, **flags):
    engine = build_engine(*args, **flags)
    sync, calls = engine.sync, count(1)
    engine.sync = lambda: None if next(calls) == 3 else sync()
    return engine


script.build_engine = build_forgetful_engine
run_script(script.main, script.Args)
