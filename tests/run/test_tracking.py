"""Trackers: metrics go there too, and nothing that a tracker does stops or delays a run. With the real wandb."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tyro
from wandb.proto import wandb_internal_pb2

from tests.helpers.launching import start, succeed, survivors, training_lines
from training import rft
from utils import ROOT
from utils.checkpoint import clear
from utils.run import tracking
from utils.run.errors import BadInput
from utils.run.logger import Logger
from utils.run.output_dir import read_jsonl
from utils.run.tracking import start_trackers


class Fake:
    """Notes what it gets; where `bad` says so it raises or hangs."""

    def __init__(self, bad=None, act=None):
        self.bad, self.act, self.seen = bad, act, []

    def __call__(self, run):
        return self.do("init", run.id)

    def log(self, metrics):
        self.do("log", metrics)

    def sample(self, sample):
        self.do("sample", sample)

    def finish(self):
        self.do("finish", None)

    def do(self, name, what):
        if name == self.bad:
            self.act()
        self.seen.append((name, what))
        return self


def fail():
    raise OSError("no\nnetwork")


@pytest.fixture
def tracked(monkeypatch, tmp_path):
    """tracked(fake) -> what a run of three steps printed; its metrics.jsonl must be whole."""

    def run(fake, pause=0.0):
        said = []
        monkeypatch.setitem(tracking.BACKENDS, "wandb", fake)
        monkeypatch.setattr(Logger, "print", lambda self, message: said.append(message))
        with Logger(tmp_path, {"tracker": ("wandb",)}, is_main=True, total_steps=3) as log:
            for step in (1, 2, 3):
                log.log_training(step, {"loss": step / 2})
                time.sleep(pause)
        assert [line["loss"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == [0.5, 1.0, 1.5]
        return [message for message in said if "diagnos" not in message and message.startswith("tracker")]

    return run


def test_a_tracker_gets_the_lines_of_the_metrics_file(tracked, tmp_path):
    fake = Fake()
    assert tracked(fake) == []
    known = json.loads((tmp_path / "tracker.json").read_text())
    assert [name for name, _ in fake.seen] == ["init", "log", "log", "log", "finish"]
    assert known == {"wandb": fake.seen[0][1]}
    assert [what["step"] for name, what in fake.seen if name == "log"] == [1, 2, 3]
    assert fake.seen[2][1] == read_jsonl(tmp_path / "metrics.jsonl")[1]


@pytest.mark.parametrize("call", ["init", "log", "finish"])
def test_a_tracker_that_raises_is_off_after_one_line(tracked, call):
    assert tracked(Fake(call, fail)) == ["tracker wandb is off, the run goes on: OSError: no network"]


@pytest.mark.parametrize("call", ["init", "log", "finish"])
def test_a_tracker_that_hangs_is_off_after_one_line(tracked, call, monkeypatch):
    monkeypatch.setattr(tracking, "PATIENCE", 0.3)
    begin = time.monotonic()
    [message] = tracked(Fake(call, lambda: time.sleep(5)), pause=0.0 if call == "finish" else 0.2)
    assert time.monotonic() - begin < 3
    reason = "it did not finish within 0.3 seconds" if call == "finish" else "it has not answered for 0.3 seconds"
    assert message == f"tracker wandb is off, the run goes on: {reason}"


def test_numbers_only_and_no_null(tracked, tmp_path):
    fake = Fake()
    tracked(fake)
    [tracker] = start_trackers(["wandb"], tmp_path, {}, resume_step=3, say=print)
    tracker.log({"step": 4, "loss": None, "eval/by_source": {"a": 1}, "reward": 1})
    tracker.close()
    assert fake.seen[-2] == ("log", {"step": 4, "reward": 1})
    assert fake.seen[-3] == ("init", fake.seen[0][1])  # the run that is resumed


def test_a_run_that_is_overwritten_forgets_its_tracker(tmp_path):
    first = tracking.run_ids(tmp_path, ["wandb"], is_resumed=False)
    both = tracking.run_ids(tmp_path, ["trackio", "wandb"], is_resumed=True)
    assert both["wandb"] == first["wandb"] != both["trackio"]
    assert tracking.run_ids(tmp_path, ["wandb"], is_resumed=True) == both
    assert tracking.run_ids(tmp_path, ["wandb"], is_resumed=False)["wandb"] != first["wandb"]
    (tmp_path / "tracker.json").write_text('{"tracker": "wandb", "id": "abc"}')  # an earlier version's
    assert tracking.run_ids(tmp_path, ["wandb"], is_resumed=True) == {"wandb": "abc"}
    (tmp_path / "tensorboard").mkdir()
    clear(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_several_at_once_and_one_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys):
    good, bad = Fake(), Fake("sample", fail)
    monkeypatch.setitem(tracking.BACKENDS, "wandb", bad)
    monkeypatch.setitem(tracking.BACKENDS, "trackio", good)
    with Logger(tmp_path, {"tracker": ("wandb", "trackio")}, is_main=True, total_steps=2) as log:
        log.log_training(1, {"loss": 0.5})
        log.log_sample(1, "p", "h", "r", 1.0, "correct", "training")
        log.log_training(2, {"loss": 0.5})
    assert [name for name, _ in good.seen] == ["init", "log", "sample", "log", "finish"]
    assert good.seen[2][1] == read_jsonl(tmp_path / "samples.jsonl")[0]
    assert capsys.readouterr().out.count("tracker wandb is off, the run goes on: OSError: no network") == 1


@pytest.mark.parametrize(("words", "names"), [
    ([], ("none",)), (["none"], ("none",)), (["wandb"], ("wandb",)),
    (["tensorboard", "wandb"], ("tensorboard", "wandb")),
])
def test_none_one_or_several_on_the_command_line(words, names):
    argv = ["--model", "m", "--data", "d", "--output_dir", "o", *["--tracker"][: len(words)], *words]
    args = tyro.cli(rft.Args, args=argv, config=(tyro.conf.FlagCreatePairsOff,), use_underscores=True)
    assert args.tracker == names
    assert tracking.wanted(args.tracker) == [name for name in names if name != "none"]


@pytest.mark.parametrize(("names", "rule"), [
    (("none", "wandb"), "none stands alone"), (("wandb", "wandb"), "must not name one twice"),
])
def test_bad_combinations(names, rule):
    with pytest.raises(BadInput, match=rule):
        tracking.check_trackers(names)


# ----- TensorBoard itself -----


def test_tensorboard_reads_the_metrics_file_and_samples(tmp_path):
    """By its own reader; of a run that was resumed at step 1 no other step 2 is shown."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for resume_step, steps in ((None, (1, 2, 3)), (1, (2, 3))):
        with Logger(tmp_path, {"tracker": ("tensorboard",), "lr": 0.1}, True, 3, resume_step) as log:
            for step in steps:
                log.log_training(step, {"loss": (step if resume_step is None else 10 * step) / 2})
                log.log_evaluation(step, {"eval/accuracy": 0.25, "eval/by_source": {"a": 1}})
            log.log_sample(3, "p < 1", "", "1\n\n2", 0.1, "wrong result", "evaluation")
    events = reader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(one.step, one.value) for one in events.Scalars("loss")] == [(1, 0.5), (2, 10.0), (3, 15.0)]
    assert [one.value for one in events.Scalars("eval/accuracy")] == [0.25] * 3
    numbers = {name for line in read_jsonl(tmp_path / "metrics.jsonl") for name, value in line.items()
               if isinstance(value, int | float)} - {"step"}
    assert set(events.Tags()["scalars"]) == numbers
    [sample] = events.Tensors("samples/evaluation/text_summary")[-1].tensor_proto.string_val
    assert b"<th>reward</th><td><pre>0.1</pre>" in sample and b"p &lt; 1" in sample and b"1&#10;&#10;2" in sample
    assert b'"lr": 0.1' in events.Tensors("args/text_summary")[0].tensor_proto.string_val[0]


# ----- trackio itself -----


def test_trackio_keeps_metrics_and_samples_here(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    script = (
        "from utils.run.logger import Logger\n"
        f"folder = {str(tmp_path / 'project' / 'run')!r}\n"
        "for resume_step, steps in ((None, (1, 2)), (2, (3,))):\n"
        "    with Logger(folder, {'tracker': ('trackio',)}, True, 3, resume_step) as log:\n"
        "        for step in steps:\n"
        "            log.log_training(step, {'loss': step / 2})\n"
        "        log.log_sample(step, 'p', 'h', 'r', 1.0, 'correct', 'training')\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True, timeout=100)
    [path] = (tmp_path / "trackio").glob("project*.db")
    with sqlite3.connect(path) as database:
        rows = [(step, json.loads(text)) for step, text in
                database.execute("select step, metrics from metrics order by step, id")]
        [name] = {name for [name] in database.execute("select run_name from metrics")}
    assert name == f"run-{json.loads((tmp_path / 'project' / 'run' / 'tracker.json').read_text())['trackio']}"
    assert [(step, row["loss"]) for step, row in rows if "loss" in row] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert [step for step, row in rows if "samples/training" in row] == [2, 3]


# ----- wandb itself -----


def records(path: Path):
    """Of a .wandb file: blocks of 32 KiB; records of checksum, length and kind (1 whole, 2 to 4 first to last part)."""
    content, position, whole = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if 2**15 - position % 2**15 < 7:
            position += 2**15 - position % 2**15
            continue
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


@pytest.mark.slow
def test_wandb_without_a_network_has_one_run_that_a_resumed_one_goes_on_with(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    output_dir = tmp_path / "project" / "run"
    for resume_step, steps in ((None, (1, 2, 3)), (1, (2, 3))):
        with Logger(output_dir, {"tracker": ("wandb",), "lr": 0.1}, True, 3, resume_step) as log:
            for step in steps:
                log.log_training(step, {"loss": step / 2})
            log.log_sample(3, "p", "h", "r", 1.0, "correct", "training")
        time.sleep(1.1)  # wandb names its folders by the second
    logged = []
    for path in sorted((output_dir / "wandb").glob("offline-run-*/*.wandb")):
        found = list(records(path))
        [run] = [record.run for record in found if record.HasField("run")]
        assert (run.project, run.display_name) == ("project", "run")
        assert run.run_id == json.loads((output_dir / "tracker.json").read_text())["wandb"]
        rows = [{item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                for record in found if record.HasField("history")]
        logged.append([(row["step"], row["loss"]) for row in rows if "loss" in row])
        [table] = (path.parent / "files" / "media" / "table" / "samples").glob("training_*.table.json")
        assert json.loads(table.read_text())["data"] == [[3, "p", "h", "r", 1, "correct"]]
    assert logged == [[(1, 0.5), (2, 1.0), (3, 1.5)], [(2, 1.0), (3, 1.5)]]


@pytest.mark.slow
def test_a_run_does_not_wait_for_a_server_that_is_not_there(tmp_path, base_model, countdown_data):
    """It does for PATIENCE seconds, at its end."""
    begin = time.monotonic()
    result = start("training/sft.py", {
        "model": base_model, "data": countdown_data, "output_dir": tmp_path / "run", "total_steps": 2,
        "eval_problems": 2, "prompts_per_step": 4, "mini_batch_prompts": 4, "max_prompt_length": 64,
        "max_response_length": 16, "max_length": 128, "max_tokens_per_micro_batch": 256, "zero_stage": 0,
        "tracker": "wandb",
    }, WANDB_API_KEY="a" * 40, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_MODE="online")
    assert succeed(result).stdout.count("tracker wandb is off, the run goes on: ") == 1
    assert [line["step"] for line in training_lines(tmp_path / "run")] == [1, 2] and survivors(result) == []
    finished = os.stat(tmp_path / "run" / "metrics.jsonl").st_mtime
    assert time.time() - finished < tracking.PATIENCE + 10 and time.monotonic() - begin < 120
