"""A checkpoint on its way home: the model of a run, with a card that says where it is from; to the hub only if asked.

    python -m utils.export RUN [--output_dir D] [--step N] [--push_to_hub owner/name]

The folder loads in transformers and vLLM as it is. --push_to_hub makes a private repository, by the token of `hf auth
login`; nothing else needs a network.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from utils.manifest import NAME, damage, has_part
from utils.report.card import Run, model_card
from utils.report.results import results_table
from utils.report.runs import HUB_NAME
from utils.run.cli import run_script
from utils.run.errors import BadInput, NotNegative, check_ranges, require


@dataclass
class Args:
    run: Annotated[str, tyro.conf.Positional]  # output folder of a training run
    output_dir: str = ""  # folder that is written; empty: export_step_N in the run's folder
    step: NotNegative[int] = 0  # which checkpoint; 0 is the latest
    results: tuple[str, ...] = ()  # results.json of evaluations of this checkpoint by eval.py, for the card
    push_to_hub: str = ""  # name on the Hugging Face hub (owner/name) that the folder is sent to; empty: nowhere


def find_checkpoint(folder: Path, step: int) -> Run:
    """The checkpoint; its model's files are those of the manifest. BadInput where it is not there or damaged."""
    checkpoints = folder / "checkpoints"
    require(folder.is_dir(), "RUN", folder, "no such folder")
    if not step:
        latest = checkpoints / "latest"
        require(latest.is_file(), "RUN", folder, f"has no checkpoint ({latest} is missing)")
        step = int(latest.read_text().strip().removeprefix("step_"))
    path = checkpoints / f"step_{step}"
    there = ", ".join(sorted((p.name for p in checkpoints.glob("step_*")), key=lambda name: int(name[5:]))) or "none"
    require(path.is_dir(), "--step", step, f"{folder} has no such checkpoint; there are: {there}")
    try:
        manifest = json.loads((path / NAME).read_text())
        has_model = has_part(path, "hf")
        fingerprints = manifest["run"]["data"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"RUN {folder}: {path / NAME} is missing or damaged ({error})") from error
    require(has_model, "RUN", folder, f"{path} has no model yet (hf/): its run was stopped while it saved. --resume of "
            f"the run writes it; there are: {there}")
    wrong = damage(path, with_hashes=True, part="hf/")
    require(wrong is None, "RUN", folder, f"{path}/{wrong}")
    return Run(folder, step, fingerprints)


def read_results(path: str) -> str:
    """The table of a results.json. BadInput where it is none."""
    try:
        report = json.loads(Path(path).read_text())
        return results_table(report["runs"], report["args"]["num_samples"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise BadInput(f"flag --results {path}: is no results.json of eval.py ({why})") from error


def export(args: Args) -> Path:
    """The folder, written whole or not at all. BadInput where something is missing, or it exists."""
    check_ranges(args)
    require(not args.push_to_hub or HUB_NAME.fullmatch(args.push_to_hub) is not None, "--push_to_hub", args.push_to_hub,
            "must be owner/name")
    run = find_checkpoint(Path(args.run), args.step)
    output = Path(args.output_dir or run.folder / f"export_step_{run.step}")
    require(not output.exists(), "--output_dir", output, "exists; give another, or remove it")
    card = model_card(run, args.push_to_hub or str(output), [read_results(path) for path in args.results])
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(run.checkpoint / "hf", partial)
        (partial / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
        partial.rename(output)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise BadInput(f"flag --output_dir {output}: cannot be written ({error})") from error
    return output


def push(folder: Path, name: str) -> str:
    """The address on the hub. BadInput where the hub refuses or is out of reach."""
    api = HfApi()
    try:
        api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=name)
    except (OSError, ValueError, HfHubHTTPError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"flag --push_to_hub {name}: {first_line}; the folder {folder} is whole") from error
    return f"https://huggingface.co/{name}"


def main(args: Args) -> None:
    folder = export(args)
    print(f"{folder}: the model and its card, README.md")
    if args.push_to_hub:
        print(f"sent to {push(folder, args.push_to_hub)} (private)")


if __name__ == "__main__":
    run_script(main, Args)
