"""Evaluate models on test sets: greedy or sampled, without hints, every response kept. Greedy, one model's accuracy on
one data set is the number that training logs.

    deepspeed training/eval.py --model M [M ...] --data D [D ...] --output_dir O [--num_samples n]

Prints the first prompt of every model and data set, and at the end the table. Writes, after each of these pairs:

results.json      {"args", "results", "runs"}: the results of the first pair, and those of all as a list of {"model",
                  "data", "max_prompt_length", "max_response_length", "chat_template", "system_prompt", "think",
                  "left_out" (problems with long prompts), "results"}. Results have for each data_source: n
                  (problems), accuracy, its 95 % interval accuracy_low to accuracy_high, format, reward,
                  response_tokens, truncated, and how often the verifier gave each reason. With --num_samples n,
                  accuracy is mean@n (the mean over problems and samples), and there are pass@k, pass@k_low,
                  pass@k_high for k = 1, 2, 4, .. and n.
responses.jsonl   every response with its model, data, prompt and verdict.
"""

import gc
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from inference.hybrid_engine import load_engine
from utils.evaluation import by_data_source, evaluate, tokenizer_mismatch
from utils.pretrained import resolve_dtype
from utils.report.results import results_of, results_table
from utils.run import distributed, processes
from utils.run.cli import run_script
from utils.run.errors import Fraction, Minutes, NotNegative, Positive, check_ranges, require
from utils.run.output_dir import check_output_dir
from utils.setup.inputs import evaluation_chat, evaluation_lengths, load_inputs
from utils.setup.own_flags import own_data
from utils.setup.words import evaluation_memory, print_plan
from utils.types import Sampling


@dataclass
class Args:
    model: tuple[str, ...]  # Hugging Face names or local folders, such as checkpoints/step_N/hf of a run
    data: tuple[str, ...]  # built-in tasks (countdown, kk_logic, math, sudoku, tree), folders with test.parquet, or own
    output_dir: str  # folder for results.json and responses.jsonl
    test_data: str = ""  # own data: what is tested on; empty: their test split, else 10 % of the prompts held out
    prompt_column: str = ""  # own data: the problem; empty: prompt, question, problem or instruction
    solution_column: str = ""  # own data: steps to the answer; empty: solution, reasoning or rationale, if there
    answer_column: str = ""  # own data: what is verified; empty: answer, final_answer, target, else the last \boxed
    verifier: str = "competition_math"  # own data: a name in rewards/, or your Python file with `verify`
    seed: NotNegative[int] = 0  # of everything that is drawn
    num_samples: NotNegative[int] = 0  # responses sampled per problem, for mean@n and pass@k; 0 is one greedy response
    temperature: Positive[float] = 1.0  # of sampling
    eval_problems: NotNegative[int] = 0  # number of test problems of each data set; 0 is all
    max_prompt_length: NotNegative[int] = 0  # tokens; 0: as in the run that the model is a checkpoint of, else 1024
    max_response_length: NotNegative[int] = 0  # tokens; 0: as above, which gives the number that training logged
    skip_long_prompts: bool = False  # leave out problems whose prompt is too long instead of stopping
    bos: bool = True  # begin prompts with the tokenizer's beginning-of-sequence token, if it has one (Llama)
    chat_template: str = "run"  # that of the run that the model is a checkpoint of; else none, model or a jinja FILE
    system_prompt: str = ""  # with a chat template: the turn before the user's, if it is not that of the run
    think: bool = True  # with --no_think the template is told enable_thinking=False, if it knows that
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # of weights; auto: bfloat16 on GPU, float32 on CPU
    matmul_precision: Literal["highest", "high", "medium"] = "highest"  # of products in float32, as PyTorch calls them
    engine: Literal["auto", "torch", "vllm", "deepspeed"] = "auto"  # what generates; auto: vllm with CUDA, else torch
    kv_cache_gb: Positive[float] = 8.0  # keys and values while generating, GiB per process (vllm: on a CPU only)
    engine_memory_fraction: Fraction = 0.8  # vllm: share of the GPU's memory that it takes, its weights included
    tp_size: Positive[int] = 1  # vllm: processes that share an engine (tensor parallel)
    timeout_minutes: Minutes[float] = 30.0  # without progress of a process, or its waiting for others, the run ends
    overwrite: bool = False  # replace the results in output_dir
    check: bool = False  # check everything that needs no model, print the plan, and stop


def main(args: Args) -> None:
    for flag, names in (("--model", args.model), ("--data", args.data)):
        require(len(names) > 0, flag, "(none)", "must name at least one")
        require(len({Path(name) for name in names}) == len(names), flag, " ".join(names), "must not name one twice")
    check_ranges(args)
    require(len(args.data) == 1 or not args.test_data, "--test_data", args.test_data, "needs a single --data")
    lengths = {model: evaluation_lengths(model, args.max_prompt_length, args.max_response_length)
               for model in args.model}
    chats = {model: evaluation_chat(model, args.chat_template, args.system_prompt, args.think) for model in args.model}
    all_inputs = {
        (model, data): load_inputs(
            model=model, data=data, splits=("test",), max_prompt_length=lengths[model][0],
            max_response_length=lengths[model][1], eval_problems=args.eval_problems,
            skip_long_prompts=args.skip_long_prompts, bos=args.bos, may_be_unreachable=args.check,
            engine=args.engine, engine_memory_fraction=args.engine_memory_fraction, tp_size=args.tp_size,
            temperature=args.temperature, own_data=own_data(args), **chats[model],
        )
        for model in args.model for data in args.data
    }
    check_output_dir(args.output_dir, resume=False, overwrite=args.overwrite)
    if args.check:
        sampled = f"{args.num_samples} per problem, sampled at temperature {args.temperature} with seed {args.seed}"
        for (model, data), inputs in all_inputs.items():
            prompt_length, response_length, reason = lengths[model]
            facts = {"model": model, "data": data,
                     "lengths": f"prompts of {prompt_length} tokens at most, responses of {response_length} ({reason})",
                     "responses": sampled if args.num_samples else "one per problem, greedy",
                     **evaluation_memory(inputs, args.num_samples or 1, args.dtype, max_prompt_length=prompt_length,
                                         max_response_length=response_length, kv_cache_gb=args.kv_cache_gb,
                                         engine_memory_fraction=args.engine_memory_fraction)}
            warning = inputs.tokenizer and tokenizer_mismatch(inputs.test_problems[0].prompt, inputs.tokenizer)
            print_plan(Path(__file__).stem, inputs, facts | ({"warning": warning} if warning else {}))
        return

    device = processes.start(args.output_dir, args.timeout_minutes, args.matmul_precision)
    dtype = resolve_dtype(args.dtype, device)
    output_dir = Path(args.output_dir)
    if distributed.is_main():
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / "results.json").unlink(missing_ok=True)
        (output_dir / "responses.jsonl").write_text("")
        for (model, data), inputs in all_inputs.items():
            first = inputs.test_problems[0]
            prompt, num_tokens = inputs.prompts.printable(first)
            prompt_length, response_length, reason = lengths[model]
            print(f"{model} on {data}: {inputs.notes}; prompts of {prompt_length} tokens at most, responses of "
                  f"{response_length} ({reason})")
            print(f"{model} on {data}: first prompt, {num_tokens} tokens: {prompt}", flush=True)
            if warning := tokenizer_mismatch(first.prompt, inputs.tokenizer):
                print(f"warning: {warning}", flush=True)

    runs = []
    for name in args.model:
        tokenizer, (prompt_length, response_length, _) = all_inputs[name, args.data[0]].tokenizer, lengths[name]
        engine = load_engine(
            all_inputs[name, args.data[0]].engine, name, tokenizer, dtype, device,
            max_length=prompt_length + response_length, kv_cache_gb=args.kv_cache_gb, tp_size=args.tp_size,
            memory_fraction=args.engine_memory_fraction, end_ids=all_inputs[name, args.data[0]].prompts.end_ids,
        )
        for data in args.data:
            inputs = all_inputs[name, data]
            sampling = Sampling(args.num_samples or 1, response_length, args.temperature if args.num_samples else 0.0,
                                args.seed)
            responses = evaluate(engine, inputs.test_problems, inputs.prompts, sampling)
            if not distributed.is_main():
                continue
            results = {data_source: results_of(part, args.num_samples)
                       for data_source, part in by_data_source(responses).items()}
            runs.append({"model": name, "data": data, "max_prompt_length": prompt_length,
                         "max_response_length": response_length, **chats[name], "left_out": inputs.left_out["test"],
                         "results": results})
            with (output_dir / "responses.jsonl").open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(json.dumps({"model": name, "data": data} | asdict(one), ensure_ascii=False) + "\n"
                                for one in responses)
            report = {"args": asdict(args), "results": runs[0]["results"], "runs": runs}
            (output_dir / "results.json").write_text(json.dumps(report, indent=2) + "\n")
        engine.close()
        del engine  # memory for the next
        gc.collect()
        torch.cuda.empty_cache()
    if distributed.is_main():
        print(results_table(runs, args.num_samples))
    processes.end()


if __name__ == "__main__":
    run_script(main, Args)
