"""The command line of the UFT authors' release: prints the `deepspeed ...` command it stands for here, and runs it.

    python launch_scripts/run.py --algo uft --n_gpu 2 --visible-devices 0,1 --T 500 --T_hint 300 --data countdown \\
        --model Qwen/Qwen2.5-0.5B --tp_size 1 --idx 0 --sft_loss_coef 0.001 --n_rollouts 4

--eval evaluates instead of training: the run's latest checkpoint, or --model where it has none. Flags of the training
script may follow after `--`, such as `-- --check` or `-- --resume`; they overrule the recipe. The exit status is the
training's. Everything runs from the repository root, which relative paths refer to.
"""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {"sft": "sft", "rft": "rft", "stage": "stage", "r3": "r3", "uft": "uft", "rft_cosine": "uft"}
DATA = {"logic": "kk_logic"}  # their name -> ours
TRAIN_ROWS = {"countdown": 10_240, "kk_logic": 4_500, "math": 8_230}
SFT_EPOCHS, BATCH = 5, 256


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the words after `--`. Wrong flags end the process with status 2."""
    own, further = words, []
    if "--" in words:
        own, further = words[: words.index("--")], words[words.index("--") + 1 :]
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", required=True, choices=[*SCRIPTS, "sft_rft"],
                        help="rft_cosine is uft with --sft_loss_coef 0; sft_rft is sft, then rft from its checkpoint")
    parser.add_argument("--model", required=True, help="Hugging Face name or local folder")
    parser.add_argument("--data", required=True, help="countdown, math, logic, or a folder with two parquet files")
    parser.add_argument("--n_gpu", type=int, default=2, help="processes, one per GPU (default 2)")
    parser.add_argument("--visible-devices", default="", help="GPUs to use, e.g. 0,1 (default: the first)")
    parser.add_argument("--T", type=int, default=500, help=f"training steps, but sft takes {SFT_EPOCHS} epochs (500)")
    parser.add_argument("--T_hint", type=int, default=300, help="stage, uft: steps over which hints get shorter (300)")
    parser.add_argument("--sft_loss_coef", type=float, default=0.001, help="stage, uft: weight of sft_loss (0.001)")
    parser.add_argument("--n_rollouts", "--n_rollout", type=int, default=4, help="responses per prompt (4)")
    parser.add_argument("--tp_size", type=int, default=1, help="GPUs that share an engine; more than 1 takes vLLM (1)")
    parser.add_argument("--idx", type=int, default=0, help="number of the run: its seed, and part of its folder")
    parser.add_argument("--eval", action="store_true", help="evaluate instead of training")
    parser.add_argument("--dry_run", action="store_true", help="only print the command")
    args = parser.parse_args(own)
    if args.n_gpu < 1:
        parser.error(f"flag --n_gpu {args.n_gpu}: must be at least 1")
    if args.tp_size < 1 or args.n_gpu % args.tp_size:
        parser.error(f"flag --tp_size {args.tp_size}: must divide --n_gpu {args.n_gpu}")
    if args.visible_devices and len(args.visible_devices.split(",")) != args.n_gpu:
        parser.error(f"flag --visible-devices {args.visible_devices}: must name --n_gpu {args.n_gpu} devices")
    args.data = DATA.get(args.data, args.data)
    if args.data not in TRAIN_ROWS and not (ROOT / args.data / "test.parquet").is_file():
        parser.error(f"flag --data {args.data}: must be countdown, math, logic, or a folder with test.parquet")
    return args, further


def output_dir(args: argparse.Namespace) -> str:
    data = args.data if args.data in TRAIN_ROWS else Path(args.data).name
    return f"runs/{args.algo}_{Path(args.model).name}_{data}_{args.idx}"


def sft_steps(data: str) -> int:
    if data in TRAIN_ROWS:
        return -(-SFT_EPOCHS * TRAIN_ROWS[data] // BATCH)
    import pyarrow.parquet  # only here: the others start without it

    return -(-SFT_EPOCHS * pyarrow.parquet.read_metadata(ROOT / data / "train.parquet").num_rows // BATCH)


def command(script: str, args: argparse.Namespace, model: str, folder: str, flags: dict[str, object]) -> list[str]:
    devices = ["--include", f"localhost:{args.visible_devices}"] if args.visible_devices else [
        "--num_gpus", str(args.n_gpu)]
    flags = {"model": model, "data": args.data, "output_dir": folder, "seed": args.idx,
             "max_prompt_length": 256 if args.data == "countdown" else 1024, "max_response_length": 1024,
             "kv_cache_gb": 24} | flags | ({"engine": "vllm", "tp_size": args.tp_size} if args.tp_size > 1 else {})
    return ["deepspeed", *devices, f"training/{script}.py", *(word for name, value in flags.items()
                                                             for word in (f"--{name}", str(value)))]


def training(algo: str, args: argparse.Namespace, model: str, folder: str) -> list[str]:
    """The command that trains `model` by `algo`, with the recipe where it depends on the command line."""
    flags: dict[str, object] = {"total_steps": sft_steps(args.data)} if algo == "sft" else {
        "total_steps": args.T, "group_size": args.n_rollouts}
    if algo in ("stage", "uft", "rft_cosine"):
        flags |= {"hint_steps": args.T_hint, "sft_coef": 0 if algo == "rft_cosine" else args.sft_loss_coef}
    return [*command(SCRIPTS[algo], args, model, folder, flags), "--gradient_checkpointing"]


def latest(folder: str) -> Path | None:
    """The newest checkpoint of the run in `folder`, for transformers, relative to the repository root."""
    name = Path(folder) / "checkpoints" / "latest"
    return name.parent / (ROOT / name).read_text().strip() / "hf" if (ROOT / name).is_file() else None


def evaluation(args: argparse.Namespace, further: list[str]) -> list[str]:
    """The command that evaluates; says on stderr what."""
    folder = output_dir(args)
    runs = [f"{folder}/rft", f"{folder}/sft"] if args.algo == "sft_rft" else [folder]
    checkpoint = next((found for found in map(latest, runs) if found), None)
    where = f"{folder}_eval_{checkpoint.parent.name if checkpoint else 'base'}"
    print(f"evaluating {checkpoint or f'--model {args.model}: there is no checkpoint in {folder}'}", file=sys.stderr)
    return [*command("eval", args, str(checkpoint or args.model), where, {}), *further]


def both_halves(args: argparse.Namespace, further: list[str]) -> list[list[str]]:
    """sft and then rft from its last checkpoint, each from where it was cut off; a finished first half is left out.
    With --check both, the second with --model where its own does not exist yet."""
    folder, is_check, is_new = output_dir(args), "--check" in further, "--overwrite" in further

    def half(algo: str, model: str) -> list[str]:
        run = ROOT / folder / algo
        start = ["--resume"] if latest(f"{folder}/{algo}") else ["--overwrite"] if (run / "args.json").is_file() else []
        return [*training(algo, args, model, f"{folder}/{algo}"), *further, *([] if is_new else start)]

    model = f"{folder}/sft/checkpoints/step_{sft_steps(args.data)}/hf"
    is_finished = (ROOT / model / "config.json").is_file()
    first = [half("sft", args.model)] if is_check or is_new or not is_finished else []
    return [*first, half("rft", args.model if is_check and not is_finished else model)]


def main(words: list[str]) -> int:
    """The exit status of the first command that fails, or 0."""
    args, further = parse(words)
    if args.eval:
        commands = [evaluation(args, further)]
    elif args.algo == "sft_rft":
        commands = both_halves(args, further)
    else:
        commands = [[*training(args.algo, args, args.model, output_dir(args)), *further]]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # this Python's deepspeed
    for words in commands:
        print(shlex.join(words), flush=True)
        status = 0 if args.dry_run else subprocess.run(words, cwd=ROOT, env=os.environ | {"PATH": path}).returncode
        if status:
            return status if status > 0 else 128 - status  # ended by a signal
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
