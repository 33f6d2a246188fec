"""vLLM in the training process: what it samples, what it gives back, and two evaluations in a row."""

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel

from tests.gpu.checks import Box, Figure, at_most, check, equal, note
from tests.gpu.runs import launch, make_base, train, wait
from tests.gpu.whole_run import lines as lines_of_run
from tests.gpu.whole_run import of_run
from tests.helpers.launching import to_words
from utils.data import load_problems
from utils.guards import engine_mismatch
from utils.policy import Policy
from utils.pretrained import load_model
from utils.prompts import PromptBuilder
from utils.scorer import Scorer
from utils.types import Prompt, Sampling

MISMATCH = 0.05  # nats, the mean
ASLEEP_GIB = 2.0  # of what an engine took, at most, that level 2 keeps: graphs and libraries
STEPS, LENGTH = 5, 48
FRACTION = 0.2  # of the card's memory


@check(12, "vllm", seconds=120, needs=("vllm", "deepspeed"), cpu="named")
def vllm(box: Box) -> Iterator[Figure]:
    """The same samples at sleep levels 0, 1 and 2; mismatch; memory back in sleep; uft.py; eval.py with two models."""
    base, data = make_base(box.folder, box.pick(200, 60), hidden_size=128)
    first = None
    for level in box.pick((0, 1, 2), (0,)):
        samples = []
        yield from of_level(level, base, data, box, samples)
        first = first or samples
        yield equal(f"sleep level {level}: steps sampled as at level 0", sum(
            some == other for some, other in zip(first, samples, strict=True)), STEPS)
    yield from of_scripts(base, data, box)


def of_level(level: int, base: Path, data: Path, box: Box, samples: list) -> Iterator[Figure]:
    """Five steps with other weights each; the ids of each step are appended to `samples`."""
    from inference.vllm_engine import VLLMEngine

    dtype = box.pick(torch.bfloat16, torch.float32)
    device = box.join()
    model, tokenizer = load_model(str(base), dtype).to(device).eval(), AutoTokenizer.from_pretrained(base)
    scorer = Scorer(policy := Policy(model), policy.to(device), 1.0)
    prompts = [PromptBuilder(tokenizer, 96, True).build(problem) for problem in load_problems(str(data), "train")[:16]]
    before, threads = free_gib(box), torch.get_num_threads()
    engine = VLLMEngine(
        str(base), dtype, [tokenizer.eos_token_id], max_length=160, kv_cache_gb=0.05, memory_fraction=FRACTION,
        sleep_level=level, weights=lambda: [{name: weight.detach() for name, weight in model.named_parameters()}],
        tied=True)
    name = f"sleep level {level}"
    yield note(f"{name}: threads before and after vLLM", f"{threads} {torch.get_num_threads()}")
    mismatches, resets = [], []
    for step in range(1, STEPS + 1):
        engine.sync()
        groups = engine.generate(prompts, Sampling(4, LENGTH, 1.0, seed=3), step)
        mismatches.append(engine_mismatch(groups, scorer, device, 1e9, 4_096)["logprob_mismatch"])
        samples.append([rollout.response_ids for group in groups for rollout in group])
        resets.append(engine.llm.reset_prefix_cache())
        if step == STEPS:
            yield from composition(name, engine, prompts, step, samples[-1], box)
            yield note(f"{name}: GiB taken awake", before - free_gib(box))
        engine.sleep()
        disturb(model)
    yield at_most(f"{name}: largest mismatch of a step", max(mismatches), MISMATCH)
    yield equal(f"{name}: reset_prefix_cache", all(resets), True)
    if box.has_gpu:
        kept = before - free_gib(box)
        yield at_most(f"{name}: GiB taken asleep", kept, ASLEEP_GIB if level == 2 else None)
    engine.close()


def composition(name: str, engine, prompts: list[Prompt], step: int, ids: list, box: Box) -> Iterator[Figure]:
    """The same seed in another batch: equal where rounding does not depend on the batch, as on a CPU."""
    half = len(prompts) // 2
    groups = engine.generate(prompts[half:][::-1], Sampling(4, LENGTH, 1.0, seed=3), step)[::-1]
    again = [rollout.response_ids for group in groups for rollout in group]
    same = sum(one == other for one, other in zip(ids[4 * half :], again, strict=True)) / len(again)
    yield note(f"{name}: same responses in another batch", same) if box.has_gpu else equal(
        f"{name}: same responses in another batch", same, 1.0)


@torch.no_grad()
def disturb(model: PreTrainedModel) -> None:
    """Other weights, which a stale engine would not sample from."""
    model.model.norm.weight.mul_(1.05)
    model.model.layers[0].mlp.down_proj.weight.mul_(1.1)


def of_scripts(base: Path, data: Path, box: Box) -> Iterator[Figure]:
    run = box.folder / "run"
    status = wait(train({
        "model": base, "data": data, "output_dir": run, "total_steps": STEPS, "eval_every": 100, "eval_problems": 8,
        "prompts_per_step": 16, "group_size": 4, "mini_batch_prompts": 8, "max_prompt_length": 64,
        "max_response_length": LENGTH, "max_tokens_per_micro_batch": 640, "engine": "vllm", "kv_cache_gb": 0.05,
        "sleep_level": box.pick(2, 0), "lr": 1e-5,
    }, box.folder / "run.txt"), box.folder / "run.txt")
    yield equal("uft.py: status", status, 0)
    yield from of_run("uft.py", lines_of_run(run), STEPS)
    log = box.folder / "eval.txt"
    models = [str(base), str(run / "checkpoints" / f"step_{STEPS}" / "hf")]
    words = ["--model", *models, "--data", str(data), "--output_dir", str(box.folder / "eval"), *to_words({
        "engine": "vllm", "kv_cache_gb": 0.05, "max_prompt_length": 64, "max_response_length": LENGTH})]
    yield equal("eval.py with two models, each at .8 of the memory: status", wait(
        launch("training/eval.py", words, log), log), 0)


def free_gib(box: Box) -> float:
    if not box.has_gpu:
        return 0.0
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0] / 2**30
