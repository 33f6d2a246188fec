"""TRL's GRPOTrainer on the work of tests/bench/step.py, which starts this file: writes the seconds of each step.

TRL is no requirement of the project: pip install trl==1.16.0 beside requirements-cpu.txt.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from rewards import score
from utils.data import load_problems


@dataclass
class Args:
    model: str  # folder
    data: str  # folder
    output: str  # JSON: a list of seconds
    steps: int  # training steps
    prompts: int  # a step
    group_size: int  # responses a prompt
    response_length: int  # tokens
    micro_batch: int  # completions of one forward pass with gradients
    shown: int = 0  # chunks of the solution that follow the prompt
    how: Literal["generate", "vllm"] = "generate"  # what samples
    bf16: bool = False  # on a CPU too: its mixed precision


class Clock(TrainerCallback):
    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, *_, **__):
        self.start = time.perf_counter()

    def on_step_end(self, *_, **__):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.start)


def main(args: Args) -> None:
    problems = load_problems(args.data, "train")[: args.prompts * args.steps]
    rows = [{"prompt": problem.prompt + "".join(problem.solution[: args.shown]), "number": number}
            for number, problem in enumerate(problems)]

    def reward(completions, number, **_):
        return [score(problems[i].data_source, completion, problems[i].ground_truth).reward
                for completion, i in zip(completions, number, strict=True)]

    on_gpu, rollouts = torch.cuda.is_available(), args.prompts * args.group_size
    config = GRPOConfig(
        output_dir=str(Path(args.output).with_suffix("")), max_steps=args.steps, report_to=[], save_strategy="no",
        logging_steps=10**6, per_device_train_batch_size=args.micro_batch,
        gradient_accumulation_steps=rollouts // args.micro_batch, num_generations=args.group_size, num_iterations=1,
        max_completion_length=args.response_length, temperature=1.0, top_p=1.0, top_k=0, beta=0.001, entropy_coef=0.001,
        learning_rate=1e-6, lr_scheduler_type="constant", warmup_steps=0, use_cpu=not on_gpu,
        bf16=on_gpu or args.bf16, tf32=None, gradient_checkpointing=False, disable_tqdm=True, shuffle_dataset=False,
        seed=0, use_vllm=args.how == "vllm", vllm_mode="colocate",
    )
    clock = Clock()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16 if on_gpu else torch.float32)
    trainer = GRPOTrainer(model, reward, config, Dataset.from_list(rows), callbacks=[clock],
                          processing_class=AutoTokenizer.from_pretrained(args.model, padding_side="left"))
    trainer.train()
    Path(args.output).write_text(json.dumps(clock.seconds))


if __name__ == "__main__":
    main(tyro.cli(Args, use_underscores=True))
