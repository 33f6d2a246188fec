"""The forward pass: token ids in, log-probabilities and entropies of the scored tokens out.

The LM head runs on the N scored states only, a chunk of them at a time, and its gradient is written out by hand: no
(R, L, V) tensor ever exists, nor an (N, V) one for large vocabularies.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from utils import attention, cpu_kernels
from utils.attention import Layout, by_layout
from utils.cpu_linear import add_product, product

CHUNK_LOGITS = 2**26  # of a chunk at most, on a CPU: 256 MiB in float32; see `most_logits`
CACHE_LOGITS = 2**20  # of a chunk on a CPU, where several passes over them should find them in its cache
LARGE_GPU = 40e9  # bytes


def memory_of(device: torch.device) -> int:
    """Bytes of a GPU's memory; 0 for a CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


def most_logits(gpu_bytes: float) -> int:
    """Logits of a chunk, and log-probabilities kept for the backward pass, at most. On a GPU few chunks are faster; and
    the gradient of a head in bfloat16 is rounded once for each."""
    return CHUNK_LOGITS * (1 if not gpu_bytes else 2 if gpu_bytes < LARGE_GPU else 4)


def chunk_size(vocab_size: int, device: torch.device) -> int:
    """Rows of a chunk. A matrix product of few rows is slow, so a CPU takes no fewer than 128 for its cache's sake."""
    most = max(1, most_logits(memory_of(device)) // vocab_size)
    return min(most, max(128, CACHE_LOGITS // vocab_size)) if device.type == "cpu" else most


@dataclass(frozen=True)
class Logits:
    """What a model makes of `states @ weight.T + bias` before it calls it logits: times `scale` (Granite, Cohere), then
    soft_cap * tanh(logits / soft_cap) where there is a soft cap (Gemma 2). Then comes the temperature."""

    scale: float = 1.0
    soft_cap: float | None = None

    @classmethod
    def of(cls, config: PretrainedConfig) -> "Logits":
        settings = config.get_text_config().to_dict()
        scale = settings.get("logit_scale") or 1 / (settings.get("logits_scaling") or 1)
        return cls(scale, settings.get("final_logit_softcapping"))

    def at(self, temperature: float, products: Tensor) -> Tensor:
        """(n, V) products, which are overwritten -> logits at the temperature, in float32 at least."""
        products = products.to(torch.promote_types(products.dtype, torch.float))
        if self.soft_cap is None:
            return products if temperature == self.scale else products.div_(temperature / self.scale)
        return products.mul_(self.scale / self.soft_cap).tanh_().mul_(self.soft_cap / temperature)

    def cap_gradients(self, temperature: float, logits: Tensor, grad_logits: Tensor) -> None:
        """With a soft cap: gradients (n, V) of `logits`, which `at` returned, become in place those of what is capped,
        over the same factors."""
        grad_logits.addcmul_(grad_logits, (logits * (temperature / self.soft_cap)).square_(), value=-1)  # 1 - tanh^2


PLAIN_LOGITS = Logits()


class FusedLinearLogProbs(torch.autograd.Function):
    """(N, D) states, (V, D) and (V,) or None of the head, (N,) targets -> log-probability of each target, entropy of
    each state: (N,), (N,), in float32 at least.

    With p the probabilities and H their entropy, the logits of a state have the gradients onehot(target) - p of the
    log-probability and -p (log p + H) of the entropy. Where all log p together are no more than `most_logits` they are
    kept for the backward pass, else computed again, a chunk at a time; so are those with a soft cap, whose gradient
    takes the logits themselves.
    """

    @staticmethod
    def forward(
        ctx, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, logits: Logits
    ) -> tuple[Tensor, Tensor]:
        size = chunk_size(weight.shape[0], states.device)
        is_kept = logits.soft_cap is None and len(states) * weight.shape[0] <= most_logits(memory_of(states.device))
        logprobs, entropies, kept = [], [], []
        for some_states, some_targets in zip(states.split(size), targets.split(size), strict=True):
            log_p, entropy = log_softmax(chunk_of_logits(some_states, weight, bias, temperature, logits))
            logprobs.append(log_p.gather(-1, some_targets[:, None]).squeeze(-1))
            entropies.append(entropy)
            kept += [log_p] * is_kept
        entropy = torch.cat(entropies)
        ctx.save_for_backward(states, weight, bias, targets, entropy, *kept)
        ctx.temperature, ctx.logits, ctx.size = temperature, logits, size
        return torch.cat(logprobs), entropy

    @staticmethod
    def backward(ctx, grad_logprobs: Tensor, grad_entropies: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, targets, entropy, *kept = ctx.saved_tensors
        factor = ctx.temperature / ctx.logits.scale
        of_targets, of_log_p = grad_logprobs / factor, grad_entropies / factor
        constant = of_targets + of_log_p * entropy
        _, needs_weight, needs_bias, *_ = ctx.needs_input_grad  # a frozen head needs none
        grad_states, grad_weight = torch.empty_like(states), torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=entropy.dtype) if needs_bias else None
        flat = (states, targets, of_targets, of_log_p, constant, grad_states)
        for number, chunk in enumerate(zip(*(values.split(ctx.size) for values in flat), strict=True)):
            some_states, some_targets, at_target, at_log_p, offset, out = chunk
            scores = None if kept else chunk_of_logits(some_states, weight, bias, ctx.temperature, ctx.logits)
            is_capped = ctx.logits.soft_cap is not None
            log_p = kept[number] if kept else log_softmax(scores.clone() if is_capped else scores)[0]
            grads = logit_gradients(log_p, some_targets, at_target, at_log_p, offset, may_overwrite=not kept)
            if is_capped:
                ctx.logits.cap_gradients(ctx.temperature, scores, grads)
            if grad_bias is not None:
                grad_bias += grads.sum(dim=0)
            grads = grads.to(weight.dtype)
            out.copy_(product(grads, weight.T))
            if grad_weight is not None:
                add_product(grad_weight, grads.T, some_states.T)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_states, grad_weight, grad_bias, None, None, None


def log_softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(n, V) logits, which may be overwritten -> log-probabilities (n, V) and entropies (n,)."""
    if cpu_kernels.take(logits) and not logits.requires_grad:
        entropies = torch.ops.cpu_kernels.log_softmax_(logits)
        return logits, entropies
    log_p = logits.log_softmax(dim=-1)
    return log_p, -torch.linalg.vecdot(log_p.exp(), log_p)


def logit_gradients(
    log_p: Tensor, targets: Tensor, at_target: Tensor, at_log_p: Tensor, offset: Tensor, may_overwrite: bool
) -> Tensor:
    """(n, V) log p, three factors a row -> -(offset + at_log_p * log p) * p, with `at_target` more at the target."""
    if cpu_kernels.take(log_p):
        grads = log_p if may_overwrite else torch.empty_like(log_p)
        torch.ops.cpu_kernels.logit_gradients(log_p, targets, at_target, at_log_p, offset, grads)
        return grads
    grads = torch.addcmul(offset[:, None], at_log_p[:, None], log_p).mul_(log_p.exp()).neg_()
    return grads.scatter_add_(1, targets[:, None], at_target[:, None])


def chunk_of_logits(
    states: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, logits: Logits
) -> Tensor:
    """The head (V, D), (V,) of states (n, D): logits at the temperature, (n, V), in float32 at least."""
    return logits.at(temperature, product(states, weight, bias))


def score_targets(
    states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, logits: Logits
) -> Tensor:
    """The log-probabilities of FusedLinearLogProbs alone, (N,)."""
    size = chunk_size(weight.shape[0], states.device)
    return torch.cat([
        log_softmax(chunk_of_logits(some_states, weight, bias, temperature, logits))[0]
        .gather(-1, some_targets[:, None]).squeeze(-1)
        for some_states, some_targets in zip(states.split(size), targets.split(size), strict=True)
    ])


class ChunkedHead(nn.Module):
    """The LM head, its parameters shared with the model. One module call whatever the number of chunks: under ZeRO-3
    every call gathers the weight on all ranks together, and ranks differ in their number of scored tokens."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None = None, logits: Logits = PLAIN_LOGITS):
        super().__init__()
        self.weight, self.bias, self.logits = weight, bias, logits

    def forward(
        self, states: Tensor, targets: Tensor, temperature: float, with_entropies: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        given = states, self.weight, self.bias, targets, temperature, self.logits
        if not with_entropies:
            return score_targets(*given), None
        return FusedLinearLogProbs.apply(*given)


class Policy(nn.Module):
    """A causal language model that scores chosen tokens of packed rows."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        model.set_attn_implementation(attention.NAME)
        self.model = model
        head = model.get_output_embeddings()
        self.head = ChunkedHead(head.weight, head.bias, Logits.of(model.config))

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        layout: Layout,
        predictors: Tensor,
        targets: Tensor,
        temperature: float,
        with_entropies: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Score `targets` from the states at `predictors`.

        Args:
            input_ids, position_ids: (R, L).
            layout: which tokens a token sees.
            predictors: (N,) indices into the R * L states; targets: (N,) token ids.

        Returns:
            log-probabilities (N,) and entropies (N,) in float32, in nats; None for entropies not asked for.
        """
        assert self.model.config._attn_implementation == attention.NAME, "no other attention knows layouts"
        trunk, how = self.model.get_decoder(), by_layout(input_ids, layout)
        states = trunk(input_ids, position_ids=position_ids, use_cache=False, **how).last_hidden_state  # (R, L, D)
        return self.head(states.flatten(0, 1)[predictors], targets, temperature, with_entropies)


@torch.no_grad()
def own_logprobs(
    model: PreTrainedModel, row: Tensor, predictors: Tensor, targets: Tensor, temperature: float = 1.0,
    layout: Layout | None = None,
) -> Tensor:
    """(N,) log-probabilities that the model itself gives `targets` after the places `predictors` of one row (1, L), in
    float32 at least; attention as the model's is, or by a layout."""
    positions = torch.arange(row.shape[1], device=row.device)[None]
    how = {} if layout is None else by_layout(row, layout)
    logits = model(input_ids=row, position_ids=positions, use_cache=False, **how).logits[0, predictors]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float))
    return (logits / temperature).log_softmax(dim=-1).gather(-1, targets[:, None]).squeeze(-1)
