"""The model card of a run's checkpoint: where the model is from, what it can do, how it is loaded."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from utils import ROOT
from utils.report.runs import (
    ACCURACY,
    data_name,
    evaluation_interval,
    is_on_hub,
    read_args,
    read_metrics,
    table,
)
from utils.run.output_dir import read_jsonl

ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")
NOT_TOLD = {  # of args.json: what says nothing of the model, or names places on the machine
    "model", "data", "test_data", "verifier", "output_dir", "resume", "resume_step", "allow_changes", "reshape",
    "overwrite", "check", "dump_batch", "tracker", "timeout_minutes", "keep_last", "keep_every", "background_save",
    "probe_memory", "verbosity", "profile_steps",
}


@dataclass(frozen=True)
class Run:
    """What the files of a run say about its checkpoint `step`."""

    folder: Path
    step: int
    fingerprints: Mapping[str, str]  # of the data, by split

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / f"step_{self.step}"

    @property
    def args(self) -> dict[str, Any]:
        return read_args(self.folder)

    @property
    def environment(self) -> dict[str, Any]:
        path = self.folder / "environment.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @property
    def method(self) -> str:
        """The script's name; empty where environment.json is missing."""
        return Path((self.environment.get("command") or [""])[0]).stem


def front_matter(run: Run) -> str:
    """YAML for the hub. A base model or data set that is a folder of this machine is left out, as is the license."""
    base, data = run.args.get("model", ""), run.args.get("data", "").partition(":")[0]
    return ModelCardData(
        base_model=base if is_on_hub(base) else None, datasets=[data] if is_on_hub(data) else None,
        library_name="transformers", pipeline_tag="text-generation",
        tags=[tag for tag in ("reasoning", run.method) if tag],
    ).to_yaml()


def accuracy_table(run: Run) -> str:
    """Markdown: the base, if the run began with its evaluation, and the checkpoint; with 95 % intervals."""
    lines = [line for line in read_metrics(run.folder) if ACCURACY in line and line["step"] in (0, run.step)]
    rows = []
    for line in lines:
        low, high = evaluation_interval(line)
        name = "this model" if line["step"] == run.step else "base model"
        rows.append([f"{name} (step {line['step']})", f"{line[ACCURACY]:.1%}", f"{low:.1%} to {high:.1%}",
                     str(line["eval/n"])])
    if not any(line["step"] == run.step for line in lines):
        rows.append([f"this model (step {run.step})", "not evaluated at this step", "", ""])
    return table(["greedy, without hints", "accuracy", "95 % interval", "problems"], rows)


def first_prompt(run: Run) -> str | None:
    """A prompt that training evaluated on."""
    path = run.folder / "samples.jsonl"
    lines = read_jsonl(path) if path.is_file() else []
    return next((line["prompt"] for line in lines if line.get("kind") == "evaluation"), None)


def start_token(run: Run) -> str:
    """The token that prompts begin with; empty for none."""
    path = run.checkpoint / "hf" / "tokenizer_config.json"
    token = json.loads(path.read_text(encoding="utf-8")).get("bos_token") if path.is_file() else None
    token = token.get("content") if isinstance(token, dict) else token
    return token if token and run.args.get("bos", True) and not has_chat(run) else ""


def has_chat(run: Run) -> bool:
    """Whether prompts were a user's turn in a chat template."""
    return run.args.get("chat_template", "none") != "none"


def chat_turn(run: Run) -> str:
    """How a prompt becomes what the model is given (utils/chat.py), as lines to copy."""
    system, think = run.args.get("system_prompt", ""), run.args.get("think", True)
    messages = [{"role": "system", "content": system}] if system else []
    begins = (first_prompt(run) or "").rstrip().endswith("<think>")
    more = '\nif not prompt.rstrip().endswith("<think>"):\n    prompt += "<think> "' if begins else ""
    return f"""Prompts were a user's turn in the chat template; a `<think>` at their end begins the assistant's:

```python
question = prompt.rstrip().removesuffix("<think>").rstrip()
prompt = tokenizer.apply_chat_template(
    {messages} + [{{"role": "user", "content": question}}], tokenize=False,
    add_generation_prompt=True{'' if think else ', enable_thinking=False'}){more}
```"""


def loading(run: Run, name: str) -> str:
    max_tokens, begin = run.args.get("max_response_length", 1024), start_token(run)
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name!r})
model = AutoModelForCausalLM.from_pretrained({name!r}, dtype="auto", device_map="auto")
ids = tokenizer({begin!r} + prompt, add_special_tokens=False, return_tensors="pt").to(model.device)
print(tokenizer.decode(model.generate(**ids, max_new_tokens={max_tokens}, do_sample=False)[0]))
```

```python
from vllm import LLM, SamplingParams

llm = LLM({name!r})
ids = llm.get_tokenizer()({begin!r} + prompt, add_special_tokens=False)["input_ids"]
greedy = SamplingParams(temperature=0, max_tokens={max_tokens})
print(llm.generate({{"prompt_token_ids": ids}}, greedy)[0].outputs[0].text)
```"""


def model_card(run: Run, name: str, evaluations: Sequence[str] = ()) -> str:
    """README.md. `name` is what the model is loaded by; `evaluations` are further tables, in Markdown."""
    args, environment = run.args, run.environment
    git, versions = environment.get("git", {}), environment.get("versions", {})
    base = args.get("model", "unknown")
    base = base if is_on_hub(base) else Path(base).name
    commit = f"{git['commit']}{', with changes' if git.get('dirty') else ''}" if git.get("commit") else "unknown"
    facts = {
        "base model": base,
        "method": run.method or "unknown",
        "data": data_name(run.folder) + "".join(f"; {split} {value}" for split, value in run.fingerprints.items()),
        "steps": f"{run.step} of {args.get('total_steps', 'unknown')}",
        "commit of the training code": commit,
        "versions": ", ".join(f"{package} {version}" for package, version in versions.items() if version) or "unknown",
        "date": environment.get("date", "unknown"),
    }
    about, paper = described(run.method)
    prompt = first_prompt(run)
    shown = [f"Prompts are like this one:\n\n{indented(prompt)}"] if prompt else []
    settings = [[f"`{key}`", f"`{json.dumps(value)}`"] for key, value in args.items() if key not in NOT_TOLD]
    return "\n\n".join([
        f"---\n{front_matter(run)}\n---",
        f"# {name.rsplit('/', 1)[-1]}",
        table(["", ""], [[key, value] for key, value in facts.items()]),
        "Fingerprints are those of the problems, as `--check` of the training script prints them.",
        *([about] if about else []), *([f"Paper: https://arxiv.org/abs/{paper}"] if paper else []),
        "## Accuracy", accuracy_table(run), *evaluations,
        "## Use", *shown, *([chat_turn(run)] if has_chat(run) else []), loading(run, name),
        "## Settings", table(["flag", "value"], settings),
    ]) + "\n"


def described(method: str) -> tuple[str, str]:
    """The first line of the script training/<method>.py, which says what it does, and the number on arXiv of the first
    paper that its text names; empty where there is none."""
    script = ROOT / "training" / f"{method}.py"
    text = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "") if script.is_file() else ""
    papers = ARXIV.findall(text)
    return text.split("\n")[0], papers[0] if papers else ""


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.split("\n"))
