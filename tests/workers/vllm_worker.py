"""Started by test_vllm_engine.py under `deepspeed` on two processes: vLLM in the processes of an actor that learns.
Writes what it measured, judges nothing.

    deepspeed --num_gpus 2 tests/workers/vllm_worker.py FOLDER
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import utils.actor
from inference.hybrid_engine import build_engine
from tests.workers import zero_worker
from tests.workers.zero_worker import (
    EOS,
    GROUP_SIZE,
    TEMPERATURE,
    VOCABULARY,
    engine_mismatch,
    of_ranks,
    prompts_of_rank,
)
from utils.actor import Actor
from utils.adapters import Lora
from utils.pretrained import load_model
from utils.run import distributed, processes
from utils.types import Sampling

OTHER_EOS, LIMIT = 7, 12
LR = 1e-2


@dataclass(frozen=True)
class Case:
    name: str
    kind: type[PreTrainedModel]
    stage: int
    tied: bool
    tp_size: int = 1
    lora: Lora | None = None


CASES = [
    Case("qwen2-tied-stage3", Qwen2ForCausalLM, 3, tied=True),
    Case("llama-untied-stage3", LlamaForCausalLM, 3, tied=False),
    Case("qwen2-untied-stage2", Qwen2ForCausalLM, 2, tied=False),
    Case("llama-tied-stage0-tp2", LlamaForCausalLM, 0, tied=True, tp_size=2),
    Case("adapters-stage3", Qwen2ForCausalLM, 3, tied=True, lora=Lora(4, 32.0, "all-linear", 0)),
    Case("adapters-stage0", Qwen2ForCausalLM, 0, tied=False, lora=Lora(4, 32.0, "q_proj,up_proj", 0)),
]


def save_model(case: Case, folder: Path) -> None:
    torch.manual_seed(0)
    config = {Qwen2ForCausalLM: Qwen2Config, LlamaForCausalLM: LlamaConfig}[case.kind](
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=case.tied, initializer_range=0.2,
        bos_token_id=None, pad_token_id=None, eos_token_id=EOS,
    )
    model = case.kind(config)
    model.generation_config.eos_token_id = [EOS, OTHER_EOS]
    model.generation_config.top_k = 2  # what an engine must not take over
    model.generation_config.do_sample = True
    model.save_pretrained(folder)


def plain_logprobs(folder: Path, rollouts) -> float:
    """Largest difference of the rollouts' log-probabilities from those of transformers' forward pass on the saved
    weights, one sequence at a time."""
    model, worst = AutoModelForCausalLM.from_pretrained(folder).eval(), 0.0
    for rollout in rollouts:
        prefix = rollout.prompt.prompt_ids + rollout.prompt.hint_ids
        logits = model(torch.tensor([prefix + rollout.response_ids])).logits[0, len(prefix) - 1 : -1]
        logprobs = (logits / TEMPERATURE).log_softmax(-1).gather(-1, torch.tensor(rollout.response_ids)[:, None])[:, 0]
        worst = max(worst, (logprobs - torch.tensor(rollout.logprobs)).abs().max().item())
    return distributed.maximum(worst)


def ids_of(groups) -> list[list[list[int]]]:
    return [[rollout.response_ids for rollout in group] for group in groups]


@torch.no_grad()
def run(case: Case, folder: Path) -> dict:
    if distributed.is_main():
        save_model(case, folder)
    distributed.barrier()
    actor = Actor(
        load_model(str(folder), torch.float32, lora=case.lora), betas=(0.9, 0.99), weight_decay=0.0, max_grad_norm=1.0,
        temperature=TEMPERATURE, zero_stage=case.stage, offload=False, gradient_checkpointing=False,
    )
    flags = {"max_length": 64, "kv_cache_gb": 0.02, "memory_fraction": 0.3, "sleep_level": 0, "free_replica": False}
    tokenizer = SimpleNamespace(eos_token_id=EOS, pad_token_id=None)
    engine = build_engine("vllm", actor, tokenizer, tp_size=case.tp_size, **flags)
    ours = build_engine("torch", actor, tokenizer, tp_size=1, **flags)
    prompts = prompts_of_rank()

    def greedy() -> list:
        return [ids_of(some.generate(prompts, Sampling(1, LIMIT, temperature=0.0))) for some in (engine, ours)]

    def sampled(some_prompts, group_size=GROUP_SIZE, seed=3, step=5, first=0):
        return engine.generate(some_prompts, Sampling(group_size, LIMIT, TEMPERATURE, seed, first), step=step)

    engine.sync()
    ours.sync()
    mismatch_before, num_sampled = engine_mismatch(engine, actor, step=1)
    groups = sampled(prompts)
    plain_mismatch = plain_logprobs(folder, [rollout for group in groups for rollout in group])
    greedy_before = greedy()
    together = ids_of(groups)
    again, backwards = ids_of(sampled(prompts)), ids_of(sampled(prompts[::-1]))[::-1]
    fewer, other_seed, other_step = (ids_of(sampled(prompts, **change)) for change in (
        {"group_size": 2}, {"seed": 4}, {"step": 6}))
    last_ones, last_one = (ids_of(sampled(prompts, GROUP_SIZE - first, first=first)) for first in (1, GROUP_SIZE - 1))
    of_one_rank = ids_of(sampled(prompts if distributed.is_main() else []))
    many = engine.generate(prompts, Sampling(200, 1, temperature=2.0))  # nearly uniform: with top-k two tokens

    micro_batches, _ = zero_worker.packed(zero_worker.make_mini_batches()[0])
    with torch.enable_grad():
        zero_worker.update(actor, micro_batches, LR, 1.0)
    mismatch_stale, _ = engine_mismatch(engine, actor, step=2)
    engine.sync()
    ours.sync()
    mismatch_after, _ = engine_mismatch(engine, actor, step=2)
    rollouts = [rollout for group in groups for rollout in group]
    greedy_after = greedy()
    engine.close()
    return {
        "num_sampled": num_sampled,
        "mismatch_before": mismatch_before,
        "mismatch_stale": mismatch_stale,
        "mismatch_after": mismatch_after,
        "plain_mismatch": plain_mismatch,
        "greedy": of_ranks([greedy_before, greedy_after]),
        "samples": {"together": together, "again": again, "backwards": backwards, "fewer": fewer,
                    "other_seed": other_seed, "other_step": other_step, "last_ones": last_ones, "last_one": last_one,
                    "of_one_rank": of_one_rank},
        "finishes": of_ranks([(rollout.finish, rollout.response_ids) for rollout in rollouts]),
        "distinct_first_tokens": len({rollout.response_ids[0] for group in many for rollout in group}),
    }


def main() -> None:
    processes.join(timeout_minutes=2)
    from inference import vllm_engine  # test_vllm_engine.py imports this file where vLLM is missing too

    utils.actor.GATHER_BUCKET = 4_000  # weights: several buckets, cut anywhere
    vllm_engine.BATCHED_TOKENS = 0  # no more than the longest sequence at once: prompts wait for each other
    folder = Path(sys.argv[-1])
    for case in CASES:
        measured = run(case, folder / case.name)
        if distributed.is_main():
            (folder / f"{case.name}.json").write_text(json.dumps(measured))
    processes.end()
    os._exit(0)  # as the scripts do: see cli.run_script


if __name__ == "__main__":
    main()
