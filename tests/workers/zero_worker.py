"""Started by test_zero.py under `deepspeed` on two processes: the same two updates at every ZeRO stage, by our Actor on
packed micro-batches and by plain PyTorch one sequence at a time. Writes what it measured, judges nothing.

    deepspeed --num_gpus 2 tests/workers/zero_worker.py FOLDER NAME_OF_CASE ...
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import deepspeed
import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import utils.actor
from inference.hybrid_engine import build_engine
from tests.workers.cases import run_cases, write_down
from utils import policy
from utils.actor import Actor, load_reference, make_reference
from utils.adapters import Lora, add_adapters
from utils.losses import masked_mean
from utils.metrics import count_tokens
from utils.packing import fill_up, pack
from utils.run import distributed
from utils.types import MicroBatch, Prompt, Rollout, Sampling

VOCABULARY, EOS = 61, 60
TEMPERATURE, BETAS, WEIGHT_DECAY = 0.8, (0.8, 0.95), 0.1
LEARNING_RATES = {torch.float32: (1e-3, 5e-4), torch.bfloat16: (2e-2, 1e-2)}  # far above the weights' resolution
LOSS_SCALES = (1.0, 0.05)
MAX_GRAD_NORM = 1.0  # the first update's gradient is clipped to it, the second's is shorter
MAX_TOKENS = 30  # little more than the longest group: several micro-batches, not as many on each rank
PART_LOGITS = 4 * VOCABULARY  # several parts of the vocabulary in every micro-batch, more where more tokens are scored
GROUP_SIZE = 3
ADVANTAGES = (0.7, -0.4, -0.3)


@dataclass(frozen=True)
class Case:
    name: str
    stage: int
    offload: bool = False
    tied: bool = True
    gradient_checkpointing: bool = False
    dtype: torch.dtype = torch.float32
    has_adapters: bool = False


CASES = [
    Case("stage0", 0, tied=False),
    Case("stage1", 1),
    Case("stage2", 2),
    Case("stage3", 3),
    Case("stage3-untied-checkpointing", 3, tied=False, gradient_checkpointing=True),
    Case("adapters-stage0", 0, has_adapters=True),
    Case("adapters-stage1", 1, has_adapters=True),
    Case("adapters-stage2", 2, tied=False, has_adapters=True),
    Case("adapters-stage3", 3, has_adapters=True),
    Case("stage2-offload", 2, offload=True),
    Case("stage3-offload", 3, offload=True),
    Case("bfloat16-stage0", 0, dtype=torch.bfloat16),
    Case("bfloat16-stage1", 1, dtype=torch.bfloat16),
    Case("bfloat16-stage2", 2, dtype=torch.bfloat16),
    Case("bfloat16-stage3", 3, dtype=torch.bfloat16),
    Case("bfloat16-adapters-stage0", 0, dtype=torch.bfloat16, has_adapters=True),
    Case("bfloat16-adapters-stage1", 1, dtype=torch.bfloat16, has_adapters=True),
    Case("bfloat16-adapters-stage2", 2, dtype=torch.bfloat16, has_adapters=True),
    Case("bfloat16-adapters-stage3", 3, dtype=torch.bfloat16, has_adapters=True),
]
LORA = Lora(rank=3, alpha=6.0, targets="q_proj,v_proj,o_proj,down_proj", seed=0)  # q_proj and v_proj have biases


def make_model(case: Case) -> Qwen2ForCausalLM:
    """Always the same weights."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=case.tied, initializer_range=0.2,
        bos_token_id=None, pad_token_id=None, eos_token_id=EOS,
    )
    model = Qwen2ForCausalLM._from_config(config, attn_implementation="sdpa").eval().to(case.dtype)
    if case.has_adapters:
        add_adapters(model, LORA)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # which peft makes zero: then nothing would show what it is multiplied with
                parameter.data.normal_(std=0.1)
    return model


class PlainAdapted(torch.nn.Module):
    """A linear layer with adapters, as the paper has it; made of one of peft's, whose forward pass is not used."""

    def __init__(self, layer: torch.nn.Module):
        super().__init__()
        self.base, self.bias = layer.base_layer.weight, layer.base_layer.bias
        self.a, self.b = layer.lora_A["default"].weight, layer.lora_B["default"].weight

    def weight(self) -> torch.Tensor:
        return self.base + LORA.alpha / LORA.rank * self.b @ self.a

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(states, self.weight(), self.bias)


def make_plain_model(case: Case) -> Qwen2ForCausalLM:
    """The same in the type of DeepSpeed's master copy."""
    model = make_model(case).float()
    for name, module in list(model.named_modules()):
        if hasattr(module, "lora_A"):
            model.set_submodule(name, PlainAdapted(module))
    return model


@torch.no_grad()
def plain_weights_of(model: Qwen2ForCausalLM) -> dict[str, torch.Tensor]:
    """By the names that they have without adapters."""
    found = {}
    for name, parameter in model.named_parameters():
        owner, _, last = name.rpartition(".")
        layer = model.get_submodule(owner)
        if not isinstance(layer, PlainAdapted):
            found[name] = parameter.detach().clone()
        elif last in ("base", "bias"):
            found[f"{owner}.{'weight' if last == 'base' else last}"] = layer.weight() if last == "base" else parameter
    return found


def learning(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def make_mini_batches() -> list[list[list[Rollout]]]:
    """Two mini-batches of five groups of three; group 0 has no hint, and lengths differ everywhere."""
    random = np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        return random.integers(0, EOS, count).tolist()

    def group(number: int) -> list[Rollout]:
        prompt = Prompt(SimpleNamespace(index=number), ids(3 + number % 4), ids(number % 3), 1)
        lengths = (1, 2 + number % 2, 4 + number % 5)
        return [Rollout(prompt, ids(length), [0.0] * length, "length") for length in lengths]

    return [[group(number) for number in range(start, start + 5)] for start in (0, 5)]


# ----- plain PyTorch: one process, one sequence at a time, all logits -----


def plain_scores(model: Qwen2ForCausalLM, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probability and entropy of every token after the prompt, hint, then response; and the states (1, L, D) that
    enter the LM head."""
    prompt = rollout.prompt
    ids = torch.tensor([prompt.prompt_ids + prompt.hint_ids + rollout.response_ids])
    states = model.model(ids).last_hidden_state
    logprobs = (model.lm_head(states)[0].float() / TEMPERATURE).log_softmax(-1)[len(prompt.prompt_ids) - 1 : -1]
    targets = ids[0, len(prompt.prompt_ids) :]
    return logprobs.gather(-1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1), states


def plain_losses(model: Qwen2ForCausalLM, groups: list[list[Rollout]]) -> tuple[dict[str, torch.Tensor], list]:
    """-0.5 * mean(logprob) over hint tokens; -mean(advantage * logprob) - 0.1 * mean(entropy) over response tokens. And
    the states of all sequences."""
    response, entropy, hint, states = [], [], [], []
    for group in groups:
        num_hint = len(group[0].prompt.hint_ids)
        for sample, rollout in enumerate(group):
            logprobs, entropies, of_sequence = plain_scores(model, rollout)
            response.append(ADVANTAGES[sample] * logprobs[num_hint:])
            entropy.append(entropies[num_hint:])
            states.append(of_sequence)
            if sample == 0:
                hint.append(logprobs[:num_hint])
    return {"hint": -0.5 * torch.cat(hint).mean(),
            "response": -torch.cat(response).mean() - 0.1 * torch.cat(entropy).mean()}, states


def plain_updates(case: Case) -> tuple[list[float], list[float], dict[str, list[float]], Qwen2ForCausalLM]:
    """Losses; norms before clipping of the gradient, and of each part of it with respect to states; and the model after
    two updates."""
    model, losses, norms = make_plain_model(case), [], []
    of_states = {"hint": [], "response": []}
    optimizer = torch.optim.AdamW(learning(model), lr=1.0, betas=BETAS, weight_decay=WEIGHT_DECAY)
    for groups, lr, scale in zip(make_mini_batches(), LEARNING_RATES[case.dtype], LOSS_SCALES, strict=True):
        optimizer.zero_grad()
        parts, states = plain_losses(model, groups)
        for name, part in parts.items():
            grads = torch.autograd.grad(scale * part, states, retain_graph=True, materialize_grads=True)
            of_states[name].append(torch.cat([grad.flatten() for grad in grads]).norm().item())
        loss = scale * (parts["hint"] + parts["response"])
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM).item())
        for parameters in optimizer.param_groups:
            parameters["lr"] = lr
        optimizer.step()
    return losses, norms, of_states, model


# ----- the same by utils.actor.Actor -----


def packed(groups: list[list[Rollout]]) -> tuple[list[MicroBatch], int]:
    """This rank's micro-batches, shared prefixes on the first rank only, as many as on the rank with the most; and how
    many of them are fillers."""
    mine = distributed.share(groups)
    micro_batches = pack(mine, [list(ADVANTAGES)] * len(mine), MAX_TOKENS, torch.device("cpu"),
                         share_prefix=distributed.rank() == 0)
    count = int(distributed.maximum(len(micro_batches)))
    return fill_up(micro_batches, count, torch.device("cpu")), count - len(micro_batches)


def update(actor: Actor, micro_batches: list[MicroBatch], lr: float, scale: float) -> tuple[float, float]:
    """Loss over all ranks, and gradient norm before clipping."""
    num_response = count_tokens([micro_batch.response_mask for micro_batch in micro_batches])
    num_hint = count_tokens([micro_batch.hint_mask for micro_batch in micro_batches])
    total = 0.0
    for number, micro_batch in enumerate(micro_batches, start=1):
        logprobs, entropies = actor(micro_batch)
        loss = (
            masked_mean(-micro_batch.advantages * logprobs - 0.1 * entropies, micro_batch.response_mask, num_response)
            - 0.5 * masked_mean(logprobs, micro_batch.hint_mask, num_hint)
        )
        actor.backward(scale * loss, is_last=number == len(micro_batches))
        total += scale * loss.item()
    norm = actor.step(lr)
    return distributed.sums({"loss": total})["loss"], norm


def prompts_of_rank() -> list[Prompt]:
    """The ranks have different numbers of prompts."""
    random = np.random.default_rng(distributed.rank())
    return [Prompt(SimpleNamespace(index=number), random.integers(0, EOS, 4 + number).tolist(),
                   random.integers(0, EOS, number).tolist(), 1) for number in range(2 + distributed.rank())]


def engine_mismatch(engine, actor: Actor, step: int) -> tuple[float, int]:
    """Largest |engine's - actor's| log-probability over the tokens that the engine samples, and the number of them."""
    prompts = prompts_of_rank()
    groups = engine.generate(prompts, Sampling(GROUP_SIZE, 12, TEMPERATURE, seed=0), step=step)
    micro_batches = pack(groups, [list(ADVANTAGES)] * len(groups), 10_000, torch.device("cpu"))
    assert len(micro_batches) == 1
    differences = (actor.logprobs(micro_batches[0]) - micro_batches[0].engine_logprobs)[micro_batches[0].response_mask]
    return distributed.maximum(differences.abs().max().item()), int(distributed.sums({"n": len(differences)})["n"])


def plain_response_logprobs(case: Case) -> torch.Tensor:
    """Sorted log-probabilities of this rank's response tokens of the first mini-batch, under the initial weights, or
    the base's where there are adapters."""
    model, parts = make_plain_model(replace(case, has_adapters=False)), []
    for group in distributed.share(make_mini_batches()[0]):
        parts += [plain_scores(model, one)[0].detach()[len(one.prompt.hint_ids) :] for one in group]
    return torch.cat(parts).sort().values


def of_ranks(value) -> list:
    """The value of every rank, in their order."""
    return distributed.gather([value])


def largest(difference: torch.Tensor) -> float:
    return distributed.maximum(difference.abs().max().item())


def run(case: Case) -> dict:
    actor = Actor(
        make_model(case), betas=BETAS, weight_decay=WEIGHT_DECAY, max_grad_norm=MAX_GRAD_NORM,
        temperature=TEMPERATURE, zero_stage=case.stage, offload=case.offload,
        gradient_checkpointing=case.gradient_checkpointing,
    )
    reference = load_reference("", actor) if case.has_adapters else make_reference(make_model(case), actor)
    flags = {"max_length": 64, "kv_cache_gb": 1e-5, "tp_size": 1, "memory_fraction": 0.3, "sleep_level": 0}
    tokenizer = SimpleNamespace(eos_token_id=EOS, pad_token_id=None)
    engine = build_engine("torch", actor, tokenizer, free_replica=False, **flags)
    first, num_fillers = packed(make_mini_batches()[0])

    def reference_logprobs() -> torch.Tensor:
        """Sorted, since packing changes the order."""
        return torch.cat([reference.logprobs(one)[one.response_mask] for one in first]).sort().values

    reference_before = reference_logprobs()
    engine.sync()
    mismatch_before, num_sampled = engine_mismatch(engine, actor, step=1)

    layer_calls, losses, norms, of_states = [], [], [], []
    hook = actor.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: layer_calls.append(1))
    for groups, lr, scale in zip(make_mini_batches(), LEARNING_RATES[case.dtype], LOSS_SCALES, strict=True):
        micro_batches, _ = packed(groups)
        layer_calls.clear()
        loss, norm = update(actor, micro_batches, lr, scale)
        losses.append(loss)
        norms.append(norm)
        of_states.append(actor.gradients.norms())
    hook.remove()

    mismatch_stale, _ = engine_mismatch(engine, actor, step=2)
    engine.sync()
    mismatch_after, _ = engine_mismatch(engine, actor, step=2)
    freeing = build_engine("torch", actor, tokenizer, free_replica=True, **flags)
    freeing.sleep()
    replica_bytes = sum(parameter.nbytes for parameter in freeing.model.parameters())
    freeing.sync()
    mismatch_woken, _ = engine_mismatch(freeing, actor, step=2)
    theirs = build_engine("deepspeed", actor, tokenizer, free_replica=False, **flags)
    mismatch_deepspeed, num_deepspeed = engine_mismatch(theirs, actor, step=2)
    greedy_pairs = [  # of each rank's prompts
        [rollout.response_ids for [rollout] in some.generate(prompts_of_rank(), Sampling(1, 12, temperature=0.0))]
        for some in (engine, theirs)
    ]
    reference_after = reference_logprobs()
    buckets = [{name: weight.clone() for name, weight in bucket.items()} for bucket in actor.whole_weights()]
    weights = {name: weight.float() for bucket in buckets for name, weight in bucket.items()}

    expected_losses, plain_norms, plain_of_states, plain_model = plain_updates(case)
    plain_weights, initial = plain_weights_of(plain_model), plain_weights_of(make_plain_model(case))
    changes = torch.cat([(weights[name] - initial[name]).flatten() for name in initial])
    plain_changes = torch.cat([(plain_weights[name] - initial[name]).flatten() for name in initial])
    return {
        "losses": losses,
        "plain_losses": expected_losses,
        "of_states": {name: [one[f"state_grad_norm/{name}"] for one in of_states] for name in plain_of_states},
        "plain_of_states": plain_of_states,
        "norms": norms,
        "plain_norms": plain_norms,
        "shapes": {name: list(weight.shape) for name, weight in weights.items()},
        "plain_shapes": {name: list(weight.shape) for name, weight in plain_weights.items()},
        "num_gathered": sum(map(len, buckets)),
        "num_buckets": len(buckets),
        "weight_difference": largest(changes - plain_changes),
        "weight_change": largest(plain_changes),
        "change_over_plain": float(changes @ plain_changes / (plain_changes @ plain_changes)),
        "num_fillers": of_ranks(num_fillers),
        "num_micro_batches": len(first),
        "num_parts": of_ranks([-(-VOCABULARY // policy.part_size(len(one.targets), VOCABULARY, 0)) for one in first]),
        "layer_calls_per_micro_batch": len(layer_calls) / len(micro_batches),
        "reference_change": largest(reference_after - reference_before),
        "reference_difference": largest(reference_before - plain_response_logprobs(case)),
        "mismatch_before": mismatch_before,
        "mismatch_stale": mismatch_stale,
        "mismatch_after": mismatch_after,
        "num_sampled": num_sampled,
        "replica_bytes_asleep": replica_bytes,
        "mismatch_woken": mismatch_woken,
        "mismatch_deepspeed": mismatch_deepspeed,
        "num_sampled_deepspeed": num_deepspeed,
        "greedy": of_ranks(greedy_pairs),
    }


def adam_difference() -> tuple[float, float]:
    """Two updates of the same weights by the same gradients in float32: the largest difference of DeepSpeed's Adam from
    PyTorch's in float64, and the largest weight."""
    random = torch.Generator().manual_seed(0)
    weights, *gradients = torch.randn(3, 1_000, generator=random) / 100
    ends = []
    for kind, dtype in ((deepspeed.ops.adam.DeepSpeedCPUAdam, torch.float32), (torch.optim.AdamW, torch.float64)):
        parameter = torch.nn.Parameter(weights.to(dtype, copy=True))
        optimizer = kind([parameter], lr=1e-3, betas=BETAS, weight_decay=WEIGHT_DECAY)
        for gradient in gradients:
            parameter.grad = gradient.to(dtype)
            optimizer.step()
        ends.append(parameter.detach().double())
    return (ends[0] - ends[1]).abs().max().item(), ends[1].abs().max().item()


def prepare(folder: str) -> None:
    policy.PART_LOGITS = PART_LOGITS
    utils.actor.GATHER_BUCKET = 4_000  # weights, of about 20,000
    if torch.float32 is torch.float64:  # tests/helpers/in_float64
        deepspeed.ops.adam.DeepSpeedCPUAdam = torch.optim.AdamW  # DeepSpeed's own, in C++, has no float64
    else:
        write_down(folder, "adam", adam_difference())


if __name__ == "__main__":
    run_cases(CASES, run, prepare)
