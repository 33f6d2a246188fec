"""The command line of the UFT authors' release: prints the `deepspeed ...` command it stands for here, and runs it.

    python launch_scripts/run.py --model Qwen/Qwen2.5-1.5B --data countdown                # UFT on one GPU
    python launch_scripts/run.py --model Qwen/Qwen2.5-1.5B --data countdown --eval
    python launch_scripts/run.py --algo uft --n_gpu 2 --visible-devices 0,1 --T 500 --T_hint 300 --data countdown \\
        --model Qwen/Qwen2.5-0.5B --tp_size 1 --idx 0 --sft_loss_coef 0.001 --n_rollouts 4

The first line says what is run, as a comment: what --dry_run prints is a shell script. --eval evaluates what the same
call without it trains: the run's latest checkpoint, or --model where it has none. Flags of the training script may
follow after `--`, such as `-- --check` or `-- --resume`; they overrule the recipe. The exit status is the training's.
Everything runs from the repository root, which relative paths refer to. MASTER_PORT and LAUNCH are as in launcher.sh.
"""

from __future__ import annotations  # an old `python` gets as far as to call the environment's

import argparse
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {"sft": "sft", "rft": "rft", "stage": "stage", "r3": "r3", "uft": "uft", "rft_cosine": "uft"}
ORGANISATIONS = {"Qwen": "Qwen", "Llama": "meta-llama"}  # how a model's name begins -> whose it is on the hub
DATA = {"logic": "kk_logic"}  # a shorter name -> theirs, which is ours
# Rows that a task is trained on. MATH: levels 3 to 5 of its train part, as --data math makes them by default.
TRAIN_ROWS = {"countdown": 10_240, "kk_logic": 4_500, "math": 5_586}
BENCHMARKS = ("gsm8k", "aime24", "amc", "math500", "minerva", "olympiad_bench")
OTHERS = ("countdown", "math", *BENCHMARKS)  # what is in their file of that name
EVALUATED_ONLY = ("others", *BENCHMARKS)
SFT_EPOCHS, BATCH = 5, 256


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the words after `--`. Wrong flags end the process with status 2."""
    end = words.index("--") if "--" in words else len(words)
    own, further = words[:end], words[end + 1 :]
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", default="uft", choices=[*SCRIPTS, "sft_rft"],
                        help="rft_cosine: uft with --sft_loss_coef 0; sft_rft: sft, then rft from its checkpoint (uft)")
    parser.add_argument("--model", default="Qwen/Qwen2.5-1.5B",
                        help="local folder or Hugging Face name; Qwen... and Llama-... do without their organisation "
                        "(Qwen/Qwen2.5-1.5B)")
    parser.add_argument("--data", default="countdown",
                        help="countdown, math, kk_logic (or logic), or a folder with two parquet files; with --eval "
                        f"also {', '.join(BENCHMARKS)}, and others: {', '.join(OTHERS)} (countdown)")
    parser.add_argument("--n_gpu", type=int, help="processes, one per GPU (as many as --visible-devices names, else 1)")
    parser.add_argument("--visible-devices", default="",
                        help="GPUs to use, e.g. 0,1 (the first of $CUDA_VISIBLE_DEVICES, or of all)")
    parser.add_argument("--T", type=int, default=500, help=f"training steps, but sft takes {SFT_EPOCHS} epochs (500)")
    parser.add_argument("--T_hint", type=int, default=300, help="stage, uft: steps over which hints get shorter (300)")
    parser.add_argument("--sft_loss_coef", type=float, default=0.001, help="stage, uft: weight of sft_loss (0.001)")
    parser.add_argument("--n_rollouts", "--n_rollout", type=int, default=4, help="responses per prompt (4)")
    parser.add_argument("--tp_size", type=int, default=1, help="GPUs that share an engine; more than 1 takes vLLM (1)")
    parser.add_argument("--idx", type=int, default=0, help="number of the run: its seed, and part of its folder (0)")
    parser.add_argument("--eval", action="store_true", help="evaluate instead of training")
    parser.add_argument("--dry_run", action="store_true", help="only print the command")
    parser.add_argument("--verbose", action="store_true", help="let DeepSpeed's launcher say all that it does")
    args = parser.parse_args(own)
    choose_devices(args, parser)
    if args.tp_size < 1 or args.n_gpu % args.tp_size:
        parser.error(f"flag --tp_size {args.tp_size}: must divide --n_gpu {args.n_gpu}")
    if args.algo == "sft_rft" and not args.eval:
        for name in ("model", "output_dir"):
            if overruled(further, name) is not None:
                parser.error(f"flag --{name} {overruled(further, name)}: sft_rft has two of them, one for each half; "
                             "--model before the -- is the first half's, --idx is part of the folders")
    args.model = full_name(args.model)
    args.data = DATA.get(args.data, args.data)
    if args.data in EVALUATED_ONLY and not args.eval:
        parser.error(f"flag --data {args.data}: is for --eval only, there is nothing to train on")
    if args.data not in (*TRAIN_ROWS, *EVALUATED_ONLY) and not (ROOT / args.data / "test.parquet").is_file():
        parser.error(f"flag --data {args.data}: must be countdown, math, kk_logic (or logic), or a folder with "
                     f"test.parquet; with --eval also others, {', '.join(BENCHMARKS)}")
    return args, further


def choose_devices(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Settles --n_gpu and --visible-devices, the one from the other, and what the launcher gets. By --num_gpus it takes
    the machine's first GPUs, whatever CUDA_VISIBLE_DEVICES says: so that stands for --visible-devices."""
    instead, exported = os.environ.get("LAUNCH", "").split(), os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not (args.visible_devices or instead) and exported[:4] in ("GPU-", "MIG-"):
        parser.error(f"CUDA_VISIBLE_DEVICES={exported}: DeepSpeed knows GPUs by number; give --visible-devices 0,1,..")
    if args.visible_devices and not re.fullmatch(r"\d+(,\d+)*", args.visible_devices):
        parser.error(f"flag --visible-devices {args.visible_devices}: must be numbers of GPUs, as 0,1")
    named = args.visible_devices.split(",") if args.visible_devices else []
    args.n_gpu = args.n_gpu if args.n_gpu is not None else len(named) or 1
    if args.n_gpu < 1:
        parser.error(f"flag --n_gpu {args.n_gpu}: must be at least 1")
    if named and len(set(named)) != args.n_gpu:
        parser.error(f"flag --visible-devices {args.visible_devices}: must name --n_gpu {args.n_gpu} devices")
    if not (named or instead) and re.fullmatch(r"\d+(,\d+)*", exported):
        args.visible_devices = ",".join(exported.split(",")[: args.n_gpu])
        if len(args.visible_devices.split(",")) < args.n_gpu:
            parser.error(f"flag --n_gpu {args.n_gpu}: CUDA_VISIBLE_DEVICES={exported} names fewer")
    these, port = args.visible_devices, os.environ.get("MASTER_PORT")
    devices = ["--include", f"localhost:{these}"] if these else ["--num_gpus", str(args.n_gpu)]
    args.launcher = [*(["--master_port", port] if port else []), *(instead or devices)]
    args.where = " ".join(instead) or f"{args.n_gpu} GPU{'s' * (args.n_gpu > 1)}" + f" ({these})" * bool(these)


def full_name(model: str) -> str:
    """The model's name with its organisation, where that is known and no local folder has the name."""
    organisation = next((ours for start, ours in ORGANISATIONS.items() if model.startswith(start)), None)
    is_bare = organisation is not None and "/" not in model and not (ROOT / model).is_dir()
    return f"{organisation}/{model}" if is_bare else model


def output_dir(args: argparse.Namespace) -> str:
    """Where the run goes; a checkpoint of a run, RUN/checkpoints/step_N/hf, is called RUN_step_N in it."""
    model = Path(args.model)
    is_checkpoint = model.name == "hf" and model.parent.name.startswith("step_") and len(model.parts) > 3
    name = f"{model.parts[-4]}_{model.parent.name}" if is_checkpoint else model.name
    return f"runs/{args.algo}_{name}_{Path(args.data).name}_{args.idx}"


def overruled(further: list[str], name: str) -> str | None:
    """The value that the last --name among the words for the training script has; None where there is none."""
    values = [(equals and value) or (further[i + 1] if not equals and i + 1 < len(further) else "")
              for i, word in enumerate(further) for flag, equals, value in [word.partition("=")]
              if flag.startswith("--") and flag[2:].replace("-", "_") == name]
    return values[-1] if values else None


def sft_steps(data: str, further: list[str]) -> int:
    """Steps of SFT: five epochs, rounded, if the words for the training script do not say another number."""
    value = overruled(further, "total_steps")
    if value is not None and value.isdigit():
        return int(value)
    rows = TRAIN_ROWS.get(data)
    if rows is None:
        import pyarrow.parquet  # only here: the others start without it

        rows = pyarrow.parquet.read_metadata(ROOT / data / "train.parquet").num_rows
    return max(1, round(SFT_EPOCHS * rows / BATCH))


def command(script: str, args: argparse.Namespace, model: str, folder: str, flags: dict[str, object]) -> list[str]:
    data = OTHERS if args.data == "others" else (args.data,)
    flags = {"model": model, "data": data, "output_dir": folder, "seed": args.idx,
             "max_prompt_length": 256 if args.data == "countdown" else 1024, "max_response_length": 1024,
             "kv_cache_gb": 24} | flags | ({"engine": "vllm", "tp_size": args.tp_size} if args.tp_size > 1 else {})
    words = ["deepspeed", *([] if args.verbose else ["--quiet"]), *args.launcher, f"training/{script}.py"]
    for name, value in flags.items():
        words += [f"--{name}", *(value if isinstance(value, tuple) else (str(value),))]
    return words


def training(algo: str, args: argparse.Namespace, model: str, folder: str, further: list[str]) -> list[str]:
    """The command that trains `model` by `algo`, with the recipe where it depends on the command line."""
    flags: dict[str, object] = {"total_steps": sft_steps(args.data, [])} if algo == "sft" else {
        "total_steps": args.T, "group_size": args.n_rollouts}
    if algo in ("stage", "uft", "rft_cosine"):
        flags |= {"hint_steps": args.T_hint, "sft_coef": 0 if algo == "rft_cosine" else args.sft_loss_coef}
    return [*command(SCRIPTS[algo], args, model, folder, flags), "--gradient_checkpointing", *further]


def latest(folder: str) -> Path | None:
    """The newest checkpoint of the run in `folder`, for transformers, relative to the repository root."""
    name = Path(folder) / "checkpoints" / "latest"
    return name.parent / (ROOT / name).read_text().strip() / "hf" if (ROOT / name).is_file() else None


def evaluation(args: argparse.Namespace, further: list[str]) -> tuple[str, list[str]]:
    """What is evaluated, for people, and the command that does it."""
    folder = output_dir(args)
    runs = [f"{folder}/rft", f"{folder}/sft"] if args.algo == "sft_rft" else [folder]
    checkpoint = next((found for found in map(latest, runs) if found), None)
    where = f"{folder}_eval_{checkpoint.parent.name if checkpoint else 'base'}"
    lengths = {"max_prompt_length": 0, "max_response_length": 0} if checkpoint else {}  # 0: as the run was trained with
    what = checkpoint or args.model + f" (there is no checkpoint in {folder})" * (args.data not in EVALUATED_ONLY)
    return (f"evaluation of {what} on {args.data}: {args.where}, greedy, no hints, into {where}",
            [*command("eval", args, str(checkpoint or args.model), where, lengths), *further])


def both_halves(args: argparse.Namespace, further: list[str]) -> list[list[str]]:
    """sft and then rft from its last checkpoint, each from where it was cut off; a finished first half is left out.
    With --check both, the second with --model where its own does not exist yet."""
    folder, is_check, is_new = output_dir(args), "--check" in further, "--overwrite" in further

    def half(algo: str, model: str) -> list[str]:
        run = ROOT / folder / algo
        start = ["--resume"] if latest(f"{folder}/{algo}") else ["--overwrite"] if (run / "args.json").is_file() else []
        return [*training(algo, args, model, f"{folder}/{algo}", further), *([] if is_new else start)]

    model = f"{folder}/sft/checkpoints/step_{sft_steps(args.data, further)}/hf"
    is_finished = (ROOT / model / "config.json").is_file()
    first = [half("sft", args.model)] if is_check or is_new or not is_finished else []
    return [*first, half("rft", args.model if is_check and not is_finished else model)]


def chosen(args: argparse.Namespace, further: list[str]) -> str:
    """What is trained, for people: all that the command line leaves open, and what follows the -- as it is."""
    sft = f"{sft_steps(args.data, [])} steps of {BATCH} solutions ({SFT_EPOCHS} epochs)"
    rft = f"{args.T} steps of {BATCH} prompts x {args.n_rollouts} responses"
    steps = {"sft": sft, "sft_rft": f"{sft}, then {rft}"}.get(args.algo, rft)
    hints = f", hints until step {args.T_hint}" if args.algo in ("stage", "uft", "rft_cosine") else ""
    return (f"{args.algo} on {args.data} with {args.model}: {args.where}, {steps}{hints}, seed {args.idx}, "
            f"into {output_dir(args)}" + f"; but as these flags say: {shlex.join(further)}" * bool(further))


def environment(args: argparse.Namespace) -> dict[str, str]:
    """This process's, with this Python's `deepspeed` first on PATH. It is told to compute on the CPU where no GPU shall
    be visible (it shows some all the same), and where there is none for a CPU build, of which each process would warn.
    """
    own = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    has_none = importlib.metadata.version("torch").endswith("+cpu") and not shutil.which("nvidia-smi")
    if has_none and not args.verbose or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        own["DS_ACCELERATOR"] = os.environ.get("DS_ACCELERATOR", "cpu")
    return os.environ | own


def main(words: list[str]) -> int:
    """The exit status of the first command that fails, or 0."""
    args, further = parse(words)
    if args.eval:
        what, *commands = evaluation(args, further)
    elif args.algo == "sft_rft":
        what, commands = chosen(args, further), both_halves(args, further)
    else:
        what, commands = chosen(args, further), [training(args.algo, args, args.model, output_dir(args), further)]
    print(f"# {what}")
    for words in commands:
        print(shlex.join(words), flush=True)
        if not args.dry_run and importlib.util.find_spec("deepspeed") is None:
            print(f"run.py: error: {sys.executable} has no DeepSpeed; first: source launch_scripts/setup.sh auto",
                  file=sys.stderr)
            return 2
        status = 0 if args.dry_run else subprocess.run(words, cwd=ROOT, env=environment(args)).returncode
        if status:
            return status if status > 0 else 128 - status  # ended by a signal
    return 0


def become_the_environments_python() -> None:
    """Start again as the Python of .venv, which setup.sh makes, where that is there and this one has no DeepSpeed."""
    python = ROOT / ".venv" / "bin" / "python"
    if importlib.util.find_spec("deepspeed") is None and python.is_file() and Path(sys.prefix) != ROOT / ".venv":
        os.execv(python, [str(python), *sys.argv])


if __name__ == "__main__":
    become_the_environments_python()
    sys.exit(main(sys.argv[1:]))
