"""What the benchmarks run on: a random model of 4.9 M parameters with a tokenizer, and problems of about 140 tokens
with solutions of five lines. Nothing is learned from them; their sizes are what counts."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from training.tiny_base import make_tokenizer
from utils.tasks.parquet import write_splits
from utils.types import Problem, Prompt, Rollout

PROBLEM = Problem(0, "countdown", "", (), "", {})
LETTERS = list("abcdefghijklmnopqrstuvwxyz 0123456789")


def make_model(folder: Path, vocab_size: int = 2_048, hidden_size: int = 256, num_layers: int = 6) -> Path:
    """A Qwen2 folder with random weights: 64 dimensions a head, half as many key-value heads, tied embeddings."""
    tokenizer = make_tokenizer([], r"\n", 4_096)
    fillers = range(len(tokenizer), vocab_size)
    tokenizer.add_tokens([AddedToken(f"<{number}>", normalized=False, special=False) for number in fillers])
    torch.manual_seed(0)
    heads = hidden_size // 64
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=vocab_size, hidden_size=hidden_size, intermediate_size=hidden_size * 11 // 4,
        num_hidden_layers=num_layers, num_attention_heads=heads, num_key_value_heads=max(1, heads // 2),
        max_position_embeddings=4_096, tie_word_embeddings=True, bos_token_id=None, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )).float()
    model.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_problems(folder: Path, count: int = 512, prompt_length: int = 140, solution_length: int = 100) -> Path:
    """Countdown by name, noise by content: prompts of `prompt_length` characters, one token each, give or take 10 %."""
    random = np.random.default_rng(0)

    def text(length: int) -> str:
        return "".join(random.choice(LETTERS, max(1, round(length * random.uniform(0.9, 1.1)))))

    def row() -> dict:
        chunks = [text(solution_length / 5) + "\n" for _ in range(5)]
        return {
            "data_source": "countdown", "prompt": [{"role": "user", "content": text(prompt_length)}], "hint": chunks,
            "answer": "".join(chunks) + "</think>\n<answer> 1 + 2 </answer>",
            "reward_model": {"style": "rule", "ground_truth": {"target": 3, "numbers": [1, 2]}},
        }

    write_splits(folder, {"train": [row() for _ in range(count)], "test": [row() for _ in range(8)]})
    return folder


def groups_of(
    lengths: Sequence[tuple[int, Sequence[int]]], vocab_size: int = 500, seed: int = 0
) -> list[list[Rollout]]:
    """Groups of random ids with these lengths of prompt and responses."""
    random = np.random.default_rng(seed)

    def ids(length: int) -> list[int]:
        return random.integers(0, vocab_size, length).tolist()

    groups = []
    for prefix, responses in lengths:
        prompt = Prompt(PROBLEM, ids(prefix), [], 0)
        groups.append([Rollout(prompt, ids(length), [0.0] * length, "length") for length in responses])
    return groups


def read_times(path: Path) -> list[dict[str, float]]:
    """The training lines of a metrics.jsonl, without the first: it warms up."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if "loss" in line][1:]
