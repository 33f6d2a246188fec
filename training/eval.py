"""Evaluate a model on a test set: greedy, without hints, every response kept. The number that training logs.

    deepspeed training/eval.py --model M --data D --output_dir O

Writes results.json (for each data_source: n, accuracy, format, 95 % interval, response length, the verifier's reasons)
and responses.jsonl (every prompt, response and verdict), and prints the table.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inference.hybrid_engine import eos_ids
from inference.torch_engine import TorchEngine
from utils import distributed
from utils.checks import check_numbers, check_output_dir, launch
from utils.evaluation import by_data_source, evaluate, reasons, summary
from utils.prepare import load_inputs, print_plan
from utils.report import table, wilson_interval
from utils.zero import load_model, resolve_dtype


@dataclass
class Args:
    model: str  # Hugging Face name or local folder, such as checkpoints/step_N/hf of a run
    data: str  # built-in task (countdown), or a folder with test.parquet
    output_dir: str  # folder for results.json and responses.jsonl
    eval_problems: int = 0  # number of test problems; 0 is all
    max_prompt_length: int = 1024  # tokens
    max_response_length: int = 1024  # tokens; to compare with a training log, give the training's
    skip_long_prompts: bool = False  # leave out problems whose prompt is too long instead of stopping
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # of weights; auto: bfloat16 on GPU, float32 on CPU
    kv_cache_gb: float = 8.0  # memory for keys and values while generating, GiB per process
    timeout_minutes: float = 30.0  # a process that waits longer for the others ends the run
    overwrite: bool = False  # replace the results in output_dir
    check: bool = False  # check everything that needs no model, print the plan, and stop


def main(args: Args) -> None:
    inputs = load_inputs(
        model=args.model, data=args.data, splits=("test",), max_prompt_length=args.max_prompt_length,
        max_response_length=args.max_response_length, eval_problems=args.eval_problems,
        skip_long_prompts=args.skip_long_prompts, may_be_unreachable=args.check,
    )
    check_numbers(args, positive=("kv_cache_gb", "timeout_minutes"))
    check_output_dir(args.output_dir, resume=False, overwrite=args.overwrite)
    if args.check:
        print_plan(Path(__file__).stem, inputs, {"responses": "one per problem, greedy"})
        return

    device = distributed.init(args.timeout_minutes)
    model = load_model(args.model, resolve_dtype(args.dtype, device)).eval().to(device)
    engine = TorchEngine(model, eos_ids(inputs.tokenizer, model.generation_config.eos_token_id), args.kv_cache_gb)
    responses = evaluate(engine, inputs.test_problems, inputs.tokenizer, args.max_prompt_length,
                         args.max_response_length)
    if distributed.is_main():
        results = {}
        for data_source, part in by_data_source(responses).items():
            numbers = summary(part)
            low, high = wilson_interval(numbers["accuracy"] * numbers["n"], numbers["n"])
            results[data_source] = numbers | {"accuracy_low": low, "accuracy_high": high, "reasons": reasons(part)}
        output_dir = Path(args.output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        report = {"args": asdict(args), "results": results}
        (output_dir / "results.json").write_text(json.dumps(report, indent=2) + "\n")
        with (output_dir / "responses.jsonl").open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in responses)
        rows = [
            [name, str(r["n"]), f"{r['accuracy']:.1%}", f"{r['accuracy_low']:.1%} to {r['accuracy_high']:.1%}",
             f"{r['format']:.1%}", f"{r['response_tokens']:.1f}",
             ", ".join(f"{reason} {count}" for reason, count in r["reasons"].items())]
            for name, r in results.items()
        ]
        print(table(["data source", "n", "accuracy", "95 % interval", "format", "response tokens", "verdicts"], rows))
    distributed.shutdown()


if __name__ == "__main__":
    launch(main, Args)
