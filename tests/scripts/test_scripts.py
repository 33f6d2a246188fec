"""The house rules that a script or a shared file can break without any number changing."""

import ast
import io
import re
import subprocess
import tokenize
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
import tyro

from inference import generate
from training import (
    adaback,
    chord,
    dapo,
    ghpo,
    hpt,
    luffy,
    prefix_rft,
    r3,
    relift,
    rft,
    self_distillation,
    sft,
    srft,
    stage,
    tiny_base,
    uft,
    uft_adaptive,
)
from training import eval as eval_script
from utils import ROOT
from utils.run.errors import Range

SCRIPTS = {"rft": rft, "stage": stage, "r3": r3, "uft": uft, "luffy": luffy, "chord": chord, "hpt": hpt, "srft": srft,
           "adaback": adaback, "ghpo": ghpo, "prefix_rft": prefix_rft, "uft_adaptive": uft_adaptive, "sft": sft,
           "dapo": dapo, "relift": relift, "self_distillation": self_distillation, "eval": eval_script}
SHARED = sorted(path for folder in ("utils", "inference", "rewards") for path in (ROOT / folder).rglob("*.py"))
ALGORITHMS = {"uft", "rft", "sft", "r3", "grpo", "luffy", "chord", "hpt", "srft", "adaback", "ghpo", "prefix_rft",
              "adaptive", "uft_adaptive", "dapo", "relift", "self_distillation"}  # "stage" is also DeepSpeed's word
CHANGED_LINES = {  # lines of `diff training/A.py training/B.py` that start with < or >
    ("rft", "stage"): 33,
    ("rft", "r3"): 22,
    ("rft", "uft"): 35,
    ("rft", "luffy"): 33,
    ("rft", "chord"): 42,
    ("rft", "hpt"): 35,
    ("rft", "srft"): 69,
    ("rft", "adaback"): 41,
    ("rft", "ghpo"): 29,
    ("rft", "prefix_rft"): 53,
    ("rft", "dapo"): 36,
    ("rft", "relift"): 42,
    ("rft", "self_distillation"): 42,
    ("uft", "uft_adaptive"): 41,
}
LACKS_MUCH = {("rft", "srft"), ("rft", "prefix_rft")}  # what reads the engine's log-probabilities; srft: ratio and clip

DEMONSTRATED = ("luffy", "chord", "hpt", "srft", "relift")  # a demonstration stands beside the samples
HINTED = ("stage", "r3", "uft", "adaback", "ghpo", "prefix_rft", "uft_adaptive")  # some see a part of the solution
RL = ("rft", "dapo", "self_distillation", *HINTED, *DEMONSTRATED)
NO_KL = ("dapo", "self_distillation", "adaback", "ghpo", "prefix_rft", *DEMONSTRATED)  # as in the papers

# Defaults that differ on purpose: flag -> {script: default}. All others agree wherever two scripts have the flag.
OWN_DEFAULTS = {
    "total_steps": dict.fromkeys(RL, 500) | {"sft": 200},  # sft: 5 epochs of 10,240 in batches of 256
    "mini_batch_prompts": dict.fromkeys(RL, 64) | {"sft": 256},  # sft: one update per step
    "kl_coef": dict.fromkeys(RL, 0.001) | dict.fromkeys(NO_KL, 0.0),
    "group_size": dict.fromkeys(RL, 4) | {"self_distillation": 1},
    "advantage_std": dict.fromkeys(set(RL) - {"self_distillation"}, True) | dict.fromkeys(
        ("prefix_rft", "luffy", "hpt"), False),
    "sft_coef": dict.fromkeys(("stage", "uft", "uft_adaptive", "prefix_rft"), 0.001) | {"hpt": 1.0, "srft": 0.5},
    "entropy_coef": dict.fromkeys(RL, 0.001) | dict.fromkeys(("dapo", "adaback", "srft"), 0.0),
    "clip_eps_high": dict.fromkeys([name for name in RL if name != "srft"], 0.0) | {"dapo": 0.28},
    "hint_slices_max": dict.fromkeys(("stage", "r3", "uft", "uft_adaptive"), 5) | {"adaback": 0},  # 0: in tokens
    "lr": dict.fromkeys(RL, 1e-6) | {"sft": 1e-5},
    "beta2": dict.fromkeys(RL, 0.999) | {"sft": 0.95},
    "max_prompt_length": dict.fromkeys((*RL, "sft"), 256) | {"eval": 0},  # eval: those of the checkpoint's run
    "max_response_length": dict.fromkeys((*RL, "sft"), 1024) | {"eval": 0},
    "chat_template": dict.fromkeys((*RL, "sft"), "none") | {"eval": "run"},
    "engine_memory_fraction": dict.fromkeys((*RL, "sft"), 0.3) | {"eval": 0.8},  # eval: nothing else is on the GPU
}


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ----- the diff is the idea -----


@pytest.mark.parametrize(("first", "second"), CHANGED_LINES)
def test_diff_of_two_scripts_is_only_the_idea(first, second):
    command = ["diff", f"training/{first}.py", f"training/{second}.py"]
    drift = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    changed = sum(line.startswith(("<", ">")) for line in drift.splitlines())
    added = sum(line.startswith(">") for line in drift.splitlines())
    assert changed == CHANGED_LINES[first, second], f"{' '.join(command)}: {changed} changed lines\n{drift}"
    assert (added if (first, second) in LACKS_MUCH else changed) <= 42


def test_rft_does_not_know_hints():
    assert "hint" not in (ROOT / "training" / "rft.py").read_text().lower()


@pytest.mark.parametrize("name", [*RL, "sft"])
def test_docstring_states_the_loss_that_the_code_has(name):
    """The formula of the docstring is the line of the code without `args.`."""
    lines = [line.strip() for line in (ROOT / "training" / f"{name}.py").read_text().splitlines()]
    formulas = [line for line in lines if line.startswith("loss = ")]
    assert len(formulas) == 2 and formulas[0] == formulas[1].replace("args.", "")


# ----- shared code -----


def names_in(source: str) -> set[str]:
    """Identifiers of the code, as words: `uft_loss` holds uft, `shifted` does not hold ift."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {word for token in tokens if token.type == tokenize.NAME for word in token.string.lower().split("_")}


@pytest.mark.parametrize("path", SHARED, ids=shown)
def test_shared_code_does_not_know_the_algorithms(path):
    """Neither as a name nor as a text that could steer it; prose and the names of metrics may mention them."""
    source = path.read_text()
    texts = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    assert (names_in(source) | texts) & ALGORITHMS == set()


def test_shared_code_takes_no_args_of_a_script():
    for path in SHARED:
        functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
        own = "class Args" in path.read_text()  # a module with a command line of its own
        taken = [node.name for node in functions if "args" in {argument.arg for argument in node.args.args}]
        assert own or path.name == "logger.py" or not taken, f"{shown(path)}: {taken}"


@pytest.mark.parametrize("path", [*SHARED, *sorted((ROOT / "training").glob("*.py"))], ids=shown)
def test_nothing_is_executed_or_unpickled(path):
    tree = ast.parse(path.read_text())
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert called & {"eval", "exec", "compile", "__import__"} == set()
    imported = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)
                for alias in ([ast.alias(node.module or "")] if isinstance(node, ast.ImportFrom) else node.names)}
    assert imported & {"pickle", "dill", "cloudpickle", "marshal", "shelve"} == set()


# ----- flags -----


def test_flags_of_the_same_name_have_the_same_default_and_type():
    defaults: dict[str, dict[str, object]] = {}
    types: dict[str, set] = {}
    for name, script in SCRIPTS.items():
        for field in fields(script.Args):
            defaults.setdefault(field.name, {})[name] = field.default
            types.setdefault(field.name, set()).add(str(get_type_hints(script.Args)[field.name]))  # without its range
    different = {flag: of for flag, of in defaults.items() if len(set(of.values())) > 1}
    assert different == OWN_DEFAULTS
    assert {flag for flag, kinds in types.items() if len(kinds) > 1} == {"model", "data"}  # eval: several
    assert types["model"] == types["data"] == {str(str), "tuple[str, ...]"}


@pytest.mark.parametrize("script", [*SCRIPTS.values(), generate, tiny_base], ids=lambda script: script.__name__)
def test_every_number_has_a_range(script):
    hints = get_type_hints(script.Args, include_extras=True)
    numbers = {name for name, plain in get_type_hints(script.Args).items() if plain in (int, float)}
    free = {name for name in numbers if not any(isinstance(m, Range) for m in getattr(hints[name], "__metadata__", ()))}
    assert free <= {"index"}  # of a problem; generate.py compares it with the data


def test_setup_is_short():
    """From `main` to the loop: what a reader has to pass before the algorithm begins."""
    for name in (*RL, "sft"):
        lines = (ROOT / "training" / f"{name}.py").read_text().splitlines()
        start = lines.index("def main(args: Args) -> None:")
        loop = next(number for number in range(start, len(lines)) if lines[number].startswith("    for num_done in "))
        assert loop - start - 1 <= 35, name


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_flag_is_explained(name, capsys):
    """tyro shows the comment beside a field."""
    with pytest.raises(SystemExit) as end:
        tyro.cli(SCRIPTS[name].Args, args=["--help"], config=(tyro.conf.FlagCreatePairsOff,), use_underscores=True)
    assert end.value.code == 0
    text = re.sub(r"\x1b\[[0-9;]*m|│", " ", capsys.readouterr().out)
    entries = {}
    for entry in re.split(r"\n\s*--(?:no_)?(?=[a-z])", text)[1:]:
        values = r"(?: [A-Z]+| \[?\{.*?\}(?: \[\.\.\.\]\])?| \[STR \[.*?\]\])?"
        flag, explained = re.fullmatch(rf"(\w+){values}\s+(.*)", entry, re.DOTALL).groups()
        entries[flag] = re.split(r"\((?:default|required)", explained)[0]
    for field in fields(SCRIPTS[name].Args):
        assert len(entries[field.name].strip()) > 4, field.name


# ----- launch scripts -----


def test_launch_scripts_are_valid_bash():
    scripts = sorted((ROOT / "launch_scripts").glob("*.sh"))
    assert scripts
    for script in scripts:
        result = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert script.read_text().startswith("#!/usr/bin/env bash\n"), shown(script)
