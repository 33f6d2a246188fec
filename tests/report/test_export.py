"""A checkpoint with its card: all that is said is in the run's files, and nothing is sent without being asked."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.models import byte_tokenizer, tiny_model
from utils import export
from utils.chat import ChatTemplate
from utils.report.runs import wilson_interval
from utils.run.errors import BadInput

ARGS = {"model": "Qwen/Qwen2.5-0.5B", "data": "countdown", "output_dir": "/home/me/runs/uft", "total_steps": 20,
        "lr": 1e-6, "max_response_length": 64, "bos": True, "resume": False, "note": "a | b"}
METRICS = [{"step": 0, "eval/accuracy": 0.25, "eval/n": 40, "eval/format": 1.0},
           {"step": 10, "eval/accuracy": 0.5, "eval/n": 40, "eval/format": 1.0}, {"step": 11, "loss": 1.0}]
SAMPLES = [{"step": 0, "kind": "evaluation", "prompt": "Make 5.\n<think> ", "hint": "", "response": "2 + 3"}]
ENVIRONMENT = {"date": "2026-01-02", "command": ["/somewhere/training/uft.py", "--lr", "1e-6"],
               "versions": {"torch": "2.13.0", "vllm": None}, "git": {"commit": "abc123", "dirty": True}}


@pytest.fixture
def run(tmp_path) -> Path:
    """A finished run with checkpoints at steps 10 and 12, of which the latter was not evaluated."""
    folder = tmp_path / "uft"
    folder.mkdir()
    for name, content in (("args", ARGS), ("environment", ENVIRONMENT)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    for name, lines in (("metrics", METRICS), ("samples", SAMPLES)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in (10, 12):
        checkpoint = folder / "checkpoints" / f"step_{step}"
        tiny_model().save_pretrained(checkpoint / "hf")
        byte_tokenizer().save_pretrained(checkpoint / "hf")
        (checkpoint / "state").mkdir()
        (checkpoint / "state" / "optimiser").write_text("large")
        files = {str(path.relative_to(checkpoint)): [path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()]
                 for path in checkpoint.rglob("*") if path.is_file()}
        manifest = {"step": step, "run": {"data": {"train": "f00d", "test": "cafe"}}, "files": files}
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    (folder / "checkpoints" / "latest").write_text("step_12\n")
    return folder


def card_of(folder: Path) -> tuple[dict, str]:
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def message_of(*arguments, **settings) -> str:
    with pytest.raises(BadInput) as error:
        export.export(export.Args(*map(str, arguments), **settings))
    return str(error.value)


def test_the_latest_or_a_named_checkpoint_loads_as_it_is(run, tmp_path):
    assert export.export(export.Args(str(run))) == run / "export_step_12"
    export.export(export.Args(str(run), step=10, output_dir=str(tmp_path / "home")))
    exported = {path.name for path in (tmp_path / "home").iterdir()}
    assert exported == {path.name for path in (run / "checkpoints/step_10/hf").iterdir()} | {"README.md"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "home")
    assert AutoTokenizer.from_pretrained(tmp_path / "home").eos_token_id is not None
    assert model.num_parameters() == tiny_model().num_parameters()


def test_the_card_says_where_the_model_is_from_and_what_it_can_do(run):
    front, text = card_of(export.export(export.Args(str(run), step=10)))
    assert front == {"base_model": "Qwen/Qwen2.5-0.5B", "library_name": "transformers",
                     "pipeline_tag": "text-generation", "tags": ["reasoning", "uft"]}  # no license: it is not known
    low, high = wilson_interval(20, 40)
    for fact in ("| base model | Qwen/Qwen2.5-0.5B |", "| method | uft |", "countdown; train f00d; test cafe",
                 "| steps | 10 of 20 |", "abc123, with changes", "| versions | torch 2.13.0 |", "| `lr` | `1e-06` |",
                 f"| this model (step 10) | 50.0% | {low:.1%} to {high:.1%} | 40 |", "| base model (step 0) | 25.0% |",
                 "\nPaper: https://arxiv.org/abs/2505.16984\n", "\nUFT: unified supervised",
                 "    Make 5.\n    <think> ", "max_new_tokens=64", r"a \| b"):
        assert fact in text, fact
    assert "/home/me" not in text and "resume" not in text  # no places of the machine


def test_an_evaluation_of_another_step_is_not_this_models(run):
    _, text = card_of(export.export(export.Args(str(run))))
    assert "| this model (step 12) | not evaluated at this step |" in text and "50.0%" not in text


def test_results_of_eval_enter_the_card(run, tmp_path):
    numbers = {"n": 8, "accuracy": 0.625, "accuracy_low": 0.3, "accuracy_high": 0.86, "format": 1.0,
               "response_tokens": 9.0, "reasons": {"correct": 5}}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"args": {"num_samples": 0},
                                "runs": [{"model": "m", "data": "d", "results": {"math500": numbers}}]}))
    _, text = card_of(export.export(export.Args(str(run), results=(str(path),))))
    assert "| math500 | 8 | 62.5% | 30.0% to 86.0% |" in text
    path.write_text("{}")
    assert message_of(run, tmp_path / "new", results=(str(path),)) == (
        f"flag --results {path}: is no results.json of eval.py (KeyError: 'runs')")


def test_the_hub_accepts_the_front_matter_of_a_base_that_is_a_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my/base").mkdir(parents=True)  # has the form of a name there
    (run / "args.json").write_text(json.dumps(ARGS | {"model": "my/base", "data": "own/sums:main"}))
    front, text = card_of(export.export(export.Args(str(run))))
    assert "base_model" not in front and front["datasets"] == ["own/sums"]
    assert "| base model | base |" in text
    assert ModelCard.load(run / "export_step_12" / "README.md").data.tags == ["reasoning", "uft"]


def test_a_beginning_of_sequence_token_is_in_the_lines_to_copy(run):
    path = run / "checkpoints/step_12/hf/tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "<s>"}))
    manifest = run / "checkpoints/step_12/manifest.json"
    entries = json.loads(manifest.read_text())
    entries["files"]["hf/tokenizer_config.json"] = [path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()]
    manifest.write_text(json.dumps(entries))
    for bos, words in ((True, "tokenizer('<s>' + prompt"), (False, "tokenizer('' + prompt")):
        (run / "args.json").write_text(json.dumps(ARGS | {"bos": bos}))
        folder = export.export(export.Args(str(run)))
        assert words in card_of(folder)[1]
        shutil.rmtree(folder)


def test_a_chat_template_of_the_run_is_in_the_lines_to_copy(run):
    """They give what utils/chat.py gives."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    (run / "args.json").write_text(json.dumps(ARGS | {"chat_template": "model", "system_prompt": "Think.",
                                                      "think": True}))
    _, text = card_of(export.export(export.Args(str(run))))
    [lines] = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "apply_chat_template" in block]
    found = {"tokenizer": tokenizer, "prompt": SAMPLES[0]["prompt"]}
    exec(lines, found)  # noqa: S102
    assert found["prompt"] == ChatTemplate(tokenizer, "model", "Think.", True).prompt(SAMPLES[0]["prompt"])
    assert found["prompt"] == "[system]Think.[user]Make 5.[assistant]<think> "
    shutil.rmtree(run / "export_step_12")
    (run / "samples.jsonl").write_text(json.dumps(SAMPLES[0] | {"prompt": "Make 5."}) + "\n")
    assert 'prompt += "<think> "' not in card_of(export.export(export.Args(str(run))))[1]


def test_what_is_not_there_or_damaged_is_refused(run, tmp_path):
    assert message_of(tmp_path / "none") == f"flag RUN {tmp_path / 'none'}: no such folder"
    assert message_of(tmp_path) == (f"flag RUN {tmp_path}: has no checkpoint "
                                    f"({tmp_path / 'checkpoints' / 'latest'} is missing)")
    assert message_of(run, step=11) == f"flag --step 11: {run} has no such checkpoint; there are: step_10, step_12"
    assert message_of(run, step=-1).startswith("flag --step -1: must not be negative")
    assert message_of(run, tmp_path).endswith("exists; give another, or remove it")
    assert message_of(run, push_to_hub="no name") == "flag --push_to_hub no name: must be owner/name"
    manifest = run / "checkpoints/step_12/manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"hf/', '"state/'))
    assert "step_12 has no model yet (hf/): its run was stopped while it saved. --resume" in message_of(run)
    manifest.write_text(text)
    weights = run / "checkpoints/step_12/hf/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert message_of(run).endswith("model.safetensors is not what was written (its hash differs)")
    (run / "checkpoints/step_12/manifest.json").write_text("{")
    assert "manifest.json is missing or damaged" in message_of(run)
    assert sorted(path.name for path in run.iterdir() if "export" in path.name) == []


def test_it_is_sent_only_if_asked_and_a_hub_out_of_reach_is_told(run, monkeypatch, capsys):
    sent = []

    class Stand(HfApi):
        def create_repo(self, name, **settings):
            sent.append((name, settings["private"]))

        def upload_folder(self, *, folder_path, repo_id, **_):
            sent.append((repo_id, [path.name for path in Path(folder_path).glob("*.md")]))

    with monkeypatch.context() as patch:
        patch.setattr(export, "HfApi", Stand)
        export.main(export.Args(str(run), step=10))
        assert sent == []
        export.main(export.Args(str(run), push_to_hub="me/model"))
        assert sent == [("me/model", True), ("me/model", ["README.md"])]
    assert "from_pretrained('me/model')" in (run / "export_step_12" / "README.md").read_text()
    capsys.readouterr()
    with pytest.raises(BadInput, match="flag --push_to_hub me/model: .*; the folder .* is whole"):
        export.push(run / "export_step_12", "me/model")  # HF_HUB_OFFLINE
