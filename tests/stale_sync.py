"""training/rft.py with an engine that leaves out one sync, the third: the second rollout comes from old weights. Takes
the flags of the script.

    deepspeed --num_gpus 2 tests/stale_sync.py --engine vllm ...
"""

import sys
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from training import rft
from utils.checks import launch

build_engine = rft.build_engine


def build_forgetful_engine(*args, **flags):
    engine = build_engine(*args, **flags)
    sync, calls = engine.sync, count(1)
    engine.sync = lambda: None if next(calls) == 3 else sync()
    return engine


rft.build_engine = build_forgetful_engine
launch(rft.main, rft.Args)
