"""What no run waits for at its start, though libraries would load it."""

import subprocess
import sys

from tests.helpers.launching import ROOT, succeed

SLOW = {"pandas", "datasets", "torch._inductor.compile_fx"}
START = """
import sys
from deepspeed.runtime import compiler
from training import rft
from utils.data import load_problems
from utils.run import processes

before = compiler.compile
processes.join()
load_problems(sys.argv[1], "train")
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam  # as DeepSpeed does when it takes an optimiser
assert compiler.compile is before
print(" ".join(sys.modules))
"""


def test_a_start_loads_neither_pandas_nor_pytorchs_compiler(countdown_data):
    command = [sys.executable, "-c", START, str(countdown_data)]
    done = succeed(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100))
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "deepspeed.runtime.zero.muon.muon_optimizer" in loaded
    assert not SLOW & loaded
