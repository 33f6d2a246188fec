"""Seconds that a checkpoint keeps the training loop waiting, written at once and in the background, for a model of 100
million parameters with random weights.

    deepspeed --num_gpus 2 tests/bench/saving.py FOLDER 3 float32      # ZeRO stage, type of the weights
"""

import os
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from transformers import AutoTokenizer, Qwen2Config

from tests.bench.shapes import random_model, save_without_weights
from tests.workers.skip_worker import update
from utils import checkpoint
from utils.actor import Actor
from utils.run import distributed, processes
from utils.saver import BackgroundSave

STEPS = 3  # that nothing is written beside


def timed(function, *given) -> tuple[float, object]:
    """Seconds, and what came back."""
    began = time.perf_counter()
    result = function(*given)
    return time.perf_counter() - began, result


def main(folder: Path, zero_stage: int, dtype: torch.dtype) -> None:
    processes.join()
    config = Qwen2Config(vocab_size=512, hidden_size=768, intermediate_size=2560, num_hidden_layers=12,
                         num_attention_heads=12, num_key_value_heads=12, tie_word_embeddings=True)
    if distributed.is_main():
        shutil.rmtree(folder, ignore_errors=True)
        save_without_weights(config, folder / "model")
    distributed.barrier()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    actor = Actor(random_model(config, torch.device("cpu"), dtype), betas=(0.9, 0.999), weight_decay=0.0,
                  max_grad_norm=1.0, temperature=1.0, zero_stage=zero_stage, offload=False,
                  gradient_checkpointing=False)
    (folder / "checkpoints").mkdir(exist_ok=True)

    def step() -> float:
        return timed(update, actor, 0, 1e-5)[0]

    def save(number: int) -> None:
        checkpoint.save(str(folder), number, actor, tokenizer, {}, 1, 0)

    step()
    plain = [step() for _ in range(STEPS)]
    for number in (1, 2):
        at_once, _ = timed(save, number)
        copying, on_its_way = timed(BackgroundSave, str(folder), 10 + number, actor, tokenizer, {})
        beside = []
        while not on_its_way.is_written():
            beside.append(step())
        ending, _ = timed(on_its_way.finish, 1, 0)
        if distributed.is_main():
            files = [path for path in (folder / "checkpoints" / f"step_{10 + number}").rglob("*") if path.is_file()]
            size, usual = sum(path.stat().st_size for path in files) / 2**30, sorted(plain)[STEPS // 2]
            print(f"{size:.2f} GiB: at once {at_once:.2f} s; in the background {copying:.2f} + {ending:.2f} s, and "
                  f"{len(beside)} steps of {sum(beside) / len(beside):.2f} s instead of {usual:.2f} s", flush=True)
    processes.end()
    os._exit(0)


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    main(Path(words[0]), int(words[1]), getattr(torch, words[2]))
