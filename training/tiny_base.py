"""A tiny base model for a generated task: Qwen2 architecture, its own tokenizer, trained here in minutes.

    python training/tiny_base.py --task countdown --output_dir M --data D    # D: written by utils.tasks.countdown

It is what a pretrained model is to the paper: it writes the form of a solution, on Countdown with mostly true
arithmetic, and rarely hits the answer. Its texts (utils/tasks/tiny_texts.py) are drawn fresh, without limit, and mostly
wrong; `--solved_fraction` of them are right. Problems of D's test split are never among the right ones.

Loss: negative log-likelihood of the text after the prompt, mean over a batch's tokens.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, pre_tokenizers
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from rewards import score
from utils.cpu_kernels import prepare_for_cpu
from utils.data import data_folder, load_problems
from utils.run.cli import run_script
from utils.run.errors import Fraction, NotNegative, Positive, check_ranges, require
from utils.tasks.registry import CONSTANT_ANSWERS
from utils.tasks.tiny_texts import TASKS
from utils.types import Problem

PAD, EOS = "<|pad|>", "<|endoftext|>"
IGNORED = -100  # label of a token without loss


@dataclass(frozen=True)
class Args:
    output_dir: str  # folder for the model, in the form of transformers; must not exist, unless --overwrite
    task: Literal["countdown", "sudoku", "tree"] = "countdown"  # what the texts are about
    data: str | None = None  # folder that the task's generator wrote, with its kind of problems; else the built-in
    overwrite: bool = False  # replace --output_dir
    seed: NotNegative[int] = 0  # of the texts and of the weights
    solved_fraction: Fraction = 0.1  # of the texts that reach their target, 0..1: more is a stronger base
    steps: Positive[int] = 1_500  # optimiser updates
    batch_size: Positive[int] = 16  # texts per update
    lr: Positive[float] = 2e-3  # peak learning rate: linear warm-up, then linear decay to 0
    warmup_steps: NotNegative[int] = 100  # updates until the peak learning rate
    weight_decay: NotNegative[float] = 0.01  # of AdamW (betas .9/.98)
    hidden_size: Positive[int] = 128  # width of the model
    intermediate_size: Positive[int] = 384  # width of its MLPs
    num_layers: Positive[int] = 4  # its depth
    num_heads: Positive[int] = 4  # attention heads; half as many key and value heads
    max_position_embeddings: Positive[int] = 1_024  # longest text that it can read, tokens
    tokenizer_texts: Positive[int] = 3_000  # texts whose phrases become tokens
    eval_problems: NotNegative[int] = 256  # test problems for the closing lines; 0 leaves them out
    max_response_length: Positive[int] = 128  # tokens a response may have in the closing evaluation
    device: Literal["cpu", "cuda"] = "cpu"  # what trains it; a GPU pays from some 10 M parameters on
    threads: NotNegative[int] = 1  # of a CPU; more hardly help here and stall where a core is busy; 0: torch's choice


def check(args: Args) -> None:
    """BadInput naming flag, value and rule."""
    check_ranges(args)
    require(args.num_heads % 2 == 0, "--num_heads", args.num_heads, "must be even")
    require(args.hidden_size % (2 * args.num_heads) == 0, "--hidden_size", args.hidden_size,
            f"must be a multiple of twice --num_heads {args.num_heads}")
    require(args.device == "cpu" or torch.cuda.is_available(), "--device", args.device, "there is no GPU to be used")
    require(args.overwrite or not Path(args.output_dir).exists(), "--output_dir", args.output_dir,
            "exists; give --overwrite to replace it")
    is_model = (Path(args.output_dir) / "config.json").is_file() or not Path(args.output_dir).exists()
    require(is_model, "--output_dir", args.output_dir, "holds no model, and --overwrite replaces nothing else")


# ---- tokens ---------------------------------------------------------------------------------------------------------


def make_tokenizer(samples: list[str], breaks: str, max_length: int) -> Qwen2Tokenizer:
    """Bytes, and as tokens of their own the phrases between the `breaks` of the samples: a whole instruction is one
    token, a number one per digit.

    It is a Qwen2Tokenizer because AutoTokenizer loads every folder of a Qwen2 model as one, with Qwen2's splitting of
    texts, whatever the folder names. Phrases and bytes pass that unchanged; merges made under another splitting do not.
    """
    vocabulary = {token: i for i, token in enumerate([PAD, EOS, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], unk_token=None, bos_token=None, pad_token=PAD,
                               eos_token=EOS, padding_side="left", model_max_length=max_length)
    phrases = {piece for sample in samples for piece in re.split(breaks, sample) if len(piece) > 1}
    tokenizer.add_tokens([AddedToken(phrase, normalized=False, special=False) for phrase in sorted(phrases)])
    return tokenizer


def make_batch(prompts: list[list[int]], completions: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """input_ids and labels, both (B, L), padded on the right; prompts and padding have no loss."""
    rows = [p + c for p, c in zip(prompts, completions, strict=True)]
    length = max(map(len, rows))
    input_ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
    labels = [[IGNORED] * len(p) + c + [IGNORED] * (length - len(p) - len(c))
              for p, c in zip(prompts, completions, strict=True)]
    return input_ids, torch.tensor(labels)


# ---- model ----------------------------------------------------------------------------------------------------------


def make_model(args: Args, tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """Random weights, tied embeddings, float32."""
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=args.hidden_size, intermediate_size=args.intermediate_size,
        num_hidden_layers=args.num_layers, num_attention_heads=args.num_heads, num_key_value_heads=args.num_heads // 2,
        max_position_embeddings=args.max_position_embeddings, tie_word_embeddings=True,
        bos_token_id=None, pad_token_id=pad, eos_token_id=eos,
    )
    torch.manual_seed(args.seed)
    model = Qwen2ForCausalLM(config).float()
    model.generation_config = GenerationConfig(bos_token_id=None, pad_token_id=pad, eos_token_id=eos)
    return model


def train(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, stream: Iterator[tuple[str, str]], args: Args
) -> None:
    """`args.steps` updates of the model, in place."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=args.weight_decay, fused=True
    )
    prepare_for_cpu(model).train()
    bar = tqdm(range(args.steps), desc="tiny base", unit="step")
    for step in bar:
        scale = min(1, (step + 1) / max(1, args.warmup_steps)) * (1 - step / args.steps)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * scale
        prompts, completions = zip(*(next(stream) for _ in range(args.batch_size)), strict=True)
        completion_ids = [ids + [tokenizer.eos_token_id] for ids in tokenizer(list(completions))["input_ids"]]
        input_ids, labels = make_batch(tokenizer(list(prompts))["input_ids"], completion_ids, tokenizer.pad_token_id)
        logits = model(input_ids=input_ids.to(model.device)).logits[:, :-1]  # (B, L-1, V); right padding needs no mask
        labels = labels[:, 1:].flatten().to(model.device)
        loss = F.cross_entropy(logits.flatten(0, 1), labels, ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


@torch.no_grad()
def evaluate(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, problems: list[Problem], greedy: bool,
             max_response_length: int) -> tuple[float, float]:
    """Accuracy and format (share of responses that hold an answer) without hints; sampling at temperature 1."""
    model.eval()
    torch.manual_seed(0)
    prompt = tokenizer([problem.prompt for problem in problems], padding=True, return_tensors="pt").to(model.device)
    ids = model.generate(input_ids=prompt["input_ids"], attention_mask=prompt["attention_mask"], do_sample=not greedy,
                         top_k=None if greedy else 0, max_new_tokens=max_response_length)
    responses = tokenizer.batch_decode(ids[:, prompt["input_ids"].shape[1]:], skip_special_tokens=True)
    scores = [score(p.data_source, text, p.ground_truth) for p, text in zip(problems, responses, strict=True)]
    return sum(s.correct for s in scores) / len(scores), sum(s.reward > 0 for s in scores) / len(scores)


def main(args: Args) -> None:
    check(args)
    task, data = TASKS[args.task], args.data or args.task
    test_problems = load_problems(data, "test")
    if args.threads:
        torch.set_num_threads(args.threads)
    stream = task.texts(data_folder(data), test_problems, args.solved_fraction, args.seed)
    samples = [prompt + completion for prompt, completion in (next(stream) for _ in range(args.tokenizer_texts))]
    tokenizer = make_tokenizer(samples, task.breaks, args.max_position_embeddings)
    longest = max(len(ids) for ids in tokenizer(samples)["input_ids"])
    require(longest < args.max_position_embeddings, "--max_position_embeddings", args.max_position_embeddings,
            f"must exceed the longest text, {longest} tokens")

    model = make_model(args, tokenizer).to(args.device)
    train(model, tokenizer, stream, args)

    building = Path(f"{args.output_dir}.building")  # renamed when whole: a folder that exists is a finished model
    shutil.rmtree(building, ignore_errors=True)
    model.save_pretrained(building)
    tokenizer.save_pretrained(building)
    shutil.rmtree(args.output_dir, ignore_errors=True)
    os.rename(building, args.output_dir)

    print(f"{args.output_dir}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    if args.eval_problems:
        problems = test_problems[: args.eval_problems]
        for name, greedy in (("greedy", True), ("sampled", False)):
            accuracy, form = evaluate(model, tokenizer, problems, greedy, args.max_response_length)
            print(f"base, {name}, {len(problems)} test problems: accuracy {accuracy:.1%}, format {form:.1%}")
        pattern, accuracy = CONSTANT_ANSWERS[args.task](problems)
        print(f"best constant answer pattern on them: {accuracy:.1%} ({pattern})")


if __name__ == "__main__":
    run_script(main, Args)
