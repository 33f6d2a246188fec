"""Try a model on one problem, or on any prompt, from the shell.

    python inference/generate.py --model M --data countdown --index 7 [--hint_slices 2] [-n 4] [--logprobs]
    python inference/generate.py --model M --prompt "Once upon" --temperature 0

Prints the prompt (dim), the hint (yellow) and the responses (green) one after another. With --data there is the
verifier's verdict on each, how many are correct, and the reference answer. The samples are those of eval.py with the
same --num_samples, --temperature and --seed (but not with --engine deepspeed, whose draws depend on what else is in a
batch), and at temperature 0 the response is its greedy one. With --logprobs the tokens that the model was unsure of are
red and underlined, and listed with their probabilities. Colours are left out where the output is no terminal, or
NO_COLOR is set. Control characters in a text are shown as escapes.

Text appears in pieces while it is generated, not token by token: an engine returns whole responses only. It is asked
for FIRST_LIMIT tokens, then for GROWTH times as many, and so on; what is new is printed. That is exact, since a sample
is a function of (seed, step, problem, sample) and the limit only cuts it, and it costs up to 2.3 times the work of the
longest response. Where rounding lets an engine draw something else at a longer limit (vLLM's cache of prefixes in
bfloat16 can), this is said and the response printed anew: the last one counts.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro
from transformers import PreTrainedTokenizerBase

from inference.hybrid_engine import load_engine
from rewards.answer import last_answer
from utils.data import load_splits
from utils.pretrained import resolve_dtype
from utils.prompts import PromptBuilder, decode, encode, solution_slices
from utils.rollouts import score_rollouts
from utils.run import distributed, processes
from utils.run.cli import run_script
from utils.run.errors import BadInput, Fraction, NotNegative, Positive, check_ranges, require
from utils.run.terminal import DIM, GREEN, YELLOW, paint
from utils.setup.inputs import evaluation_chat, load_inputs
from utils.setup.own_flags import own_data
from utils.types import Engine, Problem, Prompt, Rollout, Sampling

FIRST_LIMIT = 8  # tokens that are waited for before there is anything to read
GROWTH = 4  # factor to the next limit g; the work is at most 1 + g / (g - 1) times that of one call
INCOMPLETE = "\ufffd"  # what the bytes of a character that is not complete decode to
UNSURE = "\033[4;31m"  # red, underlined


@dataclass
class Args:
    model: str  # Hugging Face name or local folder, such as checkpoints/step_N/hf of a run
    data: str | None = None  # built-in task (countdown, kk_logic, math, sudoku, tree), folder with test.parquet, or own
    test_data: str = ""  # own data: what is tested on; empty: their test split, else 10 % of the prompts held out
    prompt_column: str = ""  # own data: the problem; empty: prompt, question, problem or instruction
    solution_column: str = ""  # own data: steps to the answer; empty: solution, reasoning or rationale, if there
    answer_column: str = ""  # own data: what is verified; empty: answer, final_answer, target, else the last \boxed
    verifier: str = "competition_math"  # own data: a name in rewards/, or your Python file with `verify`
    index: int = 0  # which problem of --data: its row, from 0
    split: Literal["test", "train"] = "test"  # which file of --data
    prompt: str | None = None  # a text to go on with, instead of --data; not verified
    hint_slices: NotNegative[int] = 0  # slices of the reference solution that follow the prompt
    hint_slices_max: Positive[int] = 5  # slices a solution is cut into, at most
    num_samples: Annotated[Positive[int], tyro.conf.arg(aliases=["-n"])] = 1  # responses
    temperature: NotNegative[float] = 1.0  # of sampling; 0 is greedy
    seed: NotNegative[int] = 0  # of what is drawn
    logprobs: bool = False  # mark and list the tokens it was unsure of; at the temperature of sampling (greedy: 1)
    unsure_below: Fraction = 0.5  # with --logprobs: probability under which a token is marked
    max_prompt_length: Positive[int] = 512  # tokens of prompt and hint
    max_response_length: Positive[int] = 512  # tokens
    bos: bool = True  # begin prompts with the tokenizer's beginning-of-sequence token, if it has one (Llama)
    chat_template: str = "run"  # that of the run that the model is a checkpoint of; else none, model or a jinja FILE
    system_prompt: str = ""  # with a chat template: the turn before the user's, if it is not that of the run
    think: bool = True  # with --no_think the template is told enable_thinking=False, if it knows that
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # of weights; auto: bfloat16 on GPU, float32 on CPU
    engine: Literal["auto", "torch", "vllm", "deepspeed"] = "auto"  # what generates; auto: vllm with CUDA, else torch
    kv_cache_gb: Positive[float] = 1.0  # memory for keys and values while generating, GiB (vllm: on a CPU only)
    engine_memory_fraction: Fraction = 0.8  # vllm: share of the GPU's memory that it takes, its weights included


# ----- the prompt -----


def chosen_problem(args: Args) -> Problem:
    """Row --index of --data, or a Problem that holds --prompt and nothing to verify."""
    require((args.data is None) != (args.prompt is None), "--data", args.data,
            f"either it or --prompt must be given, and not both (--prompt is {args.prompt})")
    if args.data is None:
        for flag, value, neutral in (("--index", args.index, 0), ("--split", args.split, "test"),
                                     ("--hint_slices", args.hint_slices, 0)):
            require(value == neutral, flag, value, "needs a problem of --data; a --prompt stands alone")
        return Problem(0, "", args.prompt, (), "", {})
    problems = load_splits(args.data, (args.split,), own=own_data(args))[0][args.split]
    require(0 <= args.index < len(problems), "--index", args.index,
            f"must lie between 0 and {len(problems) - 1}: --data {args.data} has {len(problems)} {args.split} problems")
    return problems[args.index]


def checked_prompt(args: Args, problem: Problem, prompts: PromptBuilder) -> Prompt:
    """Prompt and hint, which must fit: nothing is left out here."""
    slices = solution_slices(problem.solution, args.hint_slices_max)
    require(args.hint_slices <= len(slices), "--hint_slices", args.hint_slices,
            f"the solution of this problem has {len(slices)} (with --hint_slices_max {args.hint_slices_max})")
    hint = slices[: args.hint_slices]
    num_prompt, num_hint = len(prompts.encode(problem)), len(encode("".join(hint), prompts.tokenizer))
    require(num_prompt > 0, "--prompt", repr(problem.prompt), "must have at least one token")
    require(num_prompt + num_hint <= args.max_prompt_length, "--max_prompt_length", args.max_prompt_length,
            f"the prompt has {num_prompt} tokens and the hint {num_hint}")
    return prompts.build(problem, hint)


# ----- responses as they grow -----


def growing(engine: Engine, prompt: Prompt, args: Args) -> Iterator[tuple[Rollout, bool]]:
    """The samples, one after another, each growing: (what there is, whether that is the whole response)."""
    limit, sample = min(FIRST_LIMIT, args.max_response_length), 0
    while sample < args.num_samples:
        [group] = engine.generate([prompt], Sampling(args.num_samples, limit, args.temperature, args.seed))
        whole = True
        while whole and sample < args.num_samples:
            whole = group[sample].finish == "stop" or limit == args.max_response_length
            yield group[sample], whole
            sample += whole
        limit = min(GROWTH * limit, args.max_response_length)


# ----- on the screen -----


class Piece(NamedTuple):
    """The text of the tokens from number `start` up to, but without, `end`: one or more whole characters."""

    text: str
    start: int
    end: int


def pieces(ids: list[int], whole: bool, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """`ids` cut after every token that completes a character; together they are the text of `ids`.

    Tokens at the end whose character is not complete are left out, unless nothing comes after them (`whole`). The
    pieces of more ids therefore begin with these. Each is decoded after the one before it, since some tokenizers drop
    the space that a text begins with.
    """
    found, before, start = [], 0, 0
    for end in range(1, len(ids) + 1):
        text = decode(ids[before:end], tokenizer)[len(decode(ids[before:start], tokenizer)):]
        if not text.endswith(INCOMPLETE) or (whole and end == len(ids)):
            found.append(Piece(text, start, end))
            before, start = start, end
    return found


def show_new(found: list[Piece], shown: list[Piece], probabilities: list[float], unsure_below: float) -> None:
    """Print the pieces that `found` has and `shown` has not; all again where it is not `shown` that goes on."""
    if found[: len(shown)] != shown:
        print("\n--- rounding: with more room the engine drew another response, from the start:")
        shown = []
    for piece in found[len(shown) :]:
        unsure = min(probabilities[piece.start : piece.end]) < unsure_below
        print(paint(piece.text, UNSURE if unsure else GREEN), end="", flush=True)


def describe_unsure(found: list[Piece], probabilities: list[float], unsure_below: float) -> list[str]:
    """A line for each token under that probability: number (from 1), probability, text (of the whole character)."""
    return [f"    token {number + 1:<5} {probabilities[number]:.3f}  {piece.text!r}"
            for piece in found for number in range(piece.start, piece.end) if probabilities[number] < unsure_below]


def main(args: Args) -> None:
    if distributed.world_size() > 1:
        raise BadInput(f"generate.py runs on one process, not on {distributed.world_size()}: start it with python")
    check_ranges(args)
    require(args.num_samples == 1 or args.temperature > 0, "--num_samples", args.num_samples,
            "must be 1 at --temperature 0: all samples would be the same")
    problem = chosen_problem(args)
    inputs = load_inputs(
        model=args.model, data="", splits=(), max_prompt_length=args.max_prompt_length, eval_problems=0, bos=args.bos,
        max_response_length=args.max_response_length, skip_long_prompts=False, may_be_unreachable=False,
        engine=args.engine, engine_memory_fraction=args.engine_memory_fraction,
        **evaluation_chat(args.model, args.chat_template, args.system_prompt, args.think),
    )
    tokenizer = inputs.tokenizer
    prompt = checked_prompt(args, problem, inputs.prompts)
    device = processes.join()
    sys.stdout.reconfigure(errors="backslashreplace")  # for what the terminal's encoding has not
    print(f"engine {inputs.engine} ({inputs.engine_reason}), temperature {args.temperature:g}, seed {args.seed}")
    print(f"--- prompt, {len(prompt.prompt_ids)} tokens")
    print(paint(decode(prompt.prompt_ids, tokenizer), DIM), flush=True)
    if args.hint_slices:
        num_slices = len(solution_slices(problem.solution, args.hint_slices_max))
        print(f"--- hint, {prompt.hint_slices} of {num_slices} slices, {len(prompt.hint_ids)} tokens")
        print(paint(decode(prompt.hint_ids, tokenizer), YELLOW), flush=True)

    engine = load_engine(inputs.engine, args.model, tokenizer, resolve_dtype(args.dtype, device), device,
                         max_length=args.max_prompt_length + args.max_response_length, tp_size=1,
                         kv_cache_gb=args.kv_cache_gb, memory_fraction=args.engine_memory_fraction,
                         end_ids=inputs.prompts.end_ids)
    unsure_below = args.unsure_below if args.logprobs else 0.0
    scores, responses = [], growing(engine, prompt, args)
    for sample in range(args.num_samples):
        print(f"--- response {sample + 1} of {args.num_samples}", flush=True)
        shown: list[Piece] = []
        for rollout, whole in responses:
            probabilities = [math.exp(logprob) for logprob in rollout.logprobs]
            found = pieces(rollout.response_ids, whole, tokenizer)
            show_new(found, shown, probabilities, unsure_below)
            shown = found
            if whole:
                break
        length = f"{len(rollout.response_ids)} tokens" + ", cut off by --max_response_length" * (
            rollout.finish == "length")
        if args.data is not None:
            [[score]] = score_rollouts([[rollout]], tokenizer)
            scores.append(score)
            length = f"{score.reason}, reward {score.reward:g}; {length}"
        print(f"\n--- {length}")
        if args.logprobs:
            unsure = describe_unsure(shown, probabilities, unsure_below)
            print(f"    mean log-probability {fmean(rollout.logprobs):.4f}; probability under {unsure_below:g}: "
                  f"{len(unsure)} tokens", *unsure, sep="\n", flush=True)
    if args.data is not None:
        print(f"=== {sum(score.correct for score in scores)} of {len(scores)} correct; reference answer: "
              + paint((last_answer(problem.demonstration) or str(problem.ground_truth)).strip(), ""))
    processes.end()


if __name__ == "__main__":
    run_script(main, Args)
