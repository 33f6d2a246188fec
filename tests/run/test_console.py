"""What a run shows: on a terminal, elsewhere, and at each verbosity."""

import re
import sys

import pytest

from tests.run.test_logger import start
from utils.run import console
from utils.run.console import evaluation_table
from utils.run.logger import Logger
from utils.run.output_dir import read_jsonl

STEP = {"reward": 0.25, "accuracy": 0.125, "hint_share": 0.375, "tokens_per_second": 2345.6, "loss": 0.5,
        "seconds/update": 1.25, "seconds/mean_rank": 9.0, "entropy": 0.1, "kl_loss": float("nan")}
SHOWN = "loss 0.500, reward 0.250, accuracy 12.5%, hint 38%, 2,346 tokens/s"
FLAT = {"flat_groups": 0.95, "accuracy": 0.5, "format": 1.0}


@pytest.fixture
def terminal(monkeypatch):
    """Makes one of the streams that are captured in a test."""

    def make():
        for stream in (sys.stdout, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: True)
        monkeypatch.delenv("NO_COLOR", raising=False)

    return make


def logged(folder, verbosity="normal"):
    """A run of some steps, with a warning, an evaluation and a sample."""
    with Logger(folder, {"verbosity": verbosity}, is_main=True, total_steps=100) as log:
        log.note("a note")
        log.print("a warning")
        for step in range(1, 5):
            log.log_training(step, STEP | FLAT)
        log.log_evaluation(4, {"eval/accuracy": 0.28906, "eval/n": 512})
        log.log_sample(4, "ask\n", "hint\n", "answer\033[31m\r\u009b2J", 0.1, "wrong result", "evaluation")


def test_on_a_terminal_a_bar_moves(tmp_path, terminal, capsys):
    terminal()
    with start(tmp_path) as log:
        log.log_training(50, STEP)
    shown = capsys.readouterr()
    assert "50/100" in shown.err and SHOWN in shown.err and shown.out == ""


def test_time_left_is_reckoned_from_the_steps_of_this_process(tmp_path, terminal, monkeypatch, capsys):
    terminal()
    start(tmp_path).close()
    with start(tmp_path, resume_step=60) as log:
        assert (log.console.bar.initial, log.console.bar.n) == (60, 60)
        began = log.console.start
        monkeypatch.setattr(console.time, "monotonic", lambda: began + 6)
        assert log.console.place(63) == "step 63/100, 2.00 s a step, 0:01:14 left"


def test_elsewhere_there_are_lines_every_ten_seconds_and_no_bar(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with start(tmp_path) as log:
        for step in range(1, 31):
            now[0] += 1.0
            log.log_training(step, STEP)
    shown = capsys.readouterr()
    assert shown.err == ""
    assert [line.partition(",")[0] for line in shown.out.splitlines()] == ["step 1/100", "step 11/100", "step 21/100"]
    assert shown.out.splitlines()[1] == f"step 11/100, 1.00 s a step, 0:01:29 left: {SHOWN}"


def test_what_a_script_does_not_log_is_not_shown(tmp_path, capsys):
    with start(tmp_path) as log:
        log.log_training(1, {"loss": 0.5})
    assert capsys.readouterr().out.endswith("left: loss 0.500\n")


def kinds(text):
    """What the lines of a console are, in their order, each once."""
    known = {"a note": "note", "a warning": "warning", r"step \d+/100": "step", r"step \d+: 95%": "doctor",
             r"step 4: evaluation": "evaluation", r"--- step": "sample"}
    return list(dict.fromkeys(kind for line in text.splitlines() for start, kind in known.items()
                              if re.match(start, line)))


@pytest.mark.parametrize(("verbosity", "expected", "num_steps"), [
    ("quiet", ["warning", "doctor", "evaluation"], 0),
    ("normal", ["note", "warning", "step", "doctor", "evaluation", "sample"], 1),
    ("verbose", ["note", "warning", "step", "doctor", "evaluation", "sample"], 4),
])
def test_verbosity(tmp_path, capsys, verbosity, expected, num_steps):
    logged(tmp_path, verbosity=verbosity)
    shown = capsys.readouterr()
    assert kinds(shown.out) == expected and shown.err == ""
    assert len(re.findall(r"step \d+/100", shown.out)) == num_steps
    assert ("update 1.25 s" in shown.out) == ("kl nan" in shown.out) == (verbosity == "verbose")
    assert "mean_rank" not in shown.out
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 5 and len(read_jsonl(tmp_path / "samples.jsonl")) == 1


def test_quiet_has_no_bar_on_a_terminal_either(tmp_path, terminal, capsys):
    terminal()
    logged(tmp_path, verbosity="quiet")
    assert capsys.readouterr().err == ""


def test_samples_are_labelled_or_coloured_and_cannot_command_the_terminal(tmp_path, monkeypatch, capsys):
    logged(tmp_path)
    plain = capsys.readouterr().out
    assert plain.endswith(
        "--- step 4, evaluation sample: reward 0.1, wrong result\n"
        "[prompt] ask\n\n[hint] hint\n\n[response] answer\\x1b[31m\\r\\x9b2J\n---\n"
    )
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    logged(tmp_path)
    assert "\033[2mask\n\033[0m\033[33mhint\n\033[0m\033[32manswer\\x1b[31m" in capsys.readouterr().out


# ----- evaluations -----

EVALUATIONS = [{"step": step, "eval/accuracy": accuracy, "eval/format": 1.0, "eval/response_tokens": 40.01}
               for step, accuracy in ((0, 0.276), (44, 0.371), (88, 0.25), (132, 0.5), (176, 0.4), (220, 0.452))]


def test_the_table_has_the_first_evaluation_and_the_last_ones():
    assert evaluation_table(EVALUATIONS) == (
        "evaluation, step      accuracy  format  response tokens\n"
        "               0         27.6%  100.0%             40.0\n"
        "              88   -2.6  25.0%  100.0%             40.0\n"
        "             132  +22.4  50.0%  100.0%             40.0\n"
        "             176  +12.4  40.0%  100.0%             40.0\n"
        "             220  +17.6  45.2%  100.0%             40.0"
    )


def test_a_resumed_run_shows_those_before_too(tmp_path, terminal, capsys):
    terminal()
    with start(tmp_path) as log:
        for line in EVALUATIONS[:2]:
            log.log_evaluation(line["step"], {name: value for name, value in line.items() if name != "step"})
    with start(tmp_path, resume_step=44) as log:
        log.log_evaluation(88, {"eval/accuracy": 0.3, "eval/format": None})
    last = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split()[0] for line in last] == ["evaluation,", "0", "44", "88"]
    assert "format" not in last[0]  # not in all of them


def test_elsewhere_an_evaluation_is_one_line(tmp_path, capsys):
    with start(tmp_path) as log:
        log.log_evaluation(50, {"eval/accuracy": 0.28906, "eval/n": 512})
    assert capsys.readouterr().out == "step 50: evaluation: accuracy 0.2891, n 512\n"
