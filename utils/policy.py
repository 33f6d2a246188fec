"""The forward pass: token ids in, log-probabilities and entropies of the scored tokens out.

The LM head runs on the N scored states only, with a part of the vocabulary at a time, and its gradient is written out
by hand: no (R, L, V) tensor ever exists, nor an (N, V) one for large vocabularies, and every part of the head and of
its gradient is read or written once.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from utils import attention, cpu_kernels
from utils.attention import Layout, by_layout
from utils.cpu_linear import add_product, outer_product, product
from utils.logits import PLAIN_LOGITS, Logits, compute_logits

PART_LOGITS = 2**26  # of a part of the vocabulary at most, on a CPU: 256 MiB in float32; see `most_logits`
CACHE_LOGITS, CPU_WORDS = 2**22, 1024  # on a CPU no more logits than that, where it has so many words
LARGE_GPU = 40e9  # bytes


def memory_of(device: torch.device) -> int:
    """Bytes of a GPU's memory; 0 for a CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0


def most_logits(gpu_bytes: float) -> int:
    """Logits of a part of the vocabulary, and logits kept for the backward pass, at most."""
    return PART_LOGITS * (1 if not gpu_bytes else 2 if gpu_bytes < LARGE_GPU else 4)


def part_size(num_states: int, vocab_size: int, gpu_bytes: float) -> int:
    """Words of a part, all parts but the last alike. A matrix product of few words is slow, so a CPU takes no fewer
    than 1,024 for its cache's sake."""
    num_states = max(1, num_states)
    size = most_logits(gpu_bytes) // num_states
    if not gpu_bytes:
        size = min(size, max(CPU_WORDS, CACHE_LOGITS // num_states))
    size = max(1, size)
    return -(-vocab_size // -(-vocab_size // size))


class FusedLinearLogProbs(torch.autograd.Function):
    """(N, D) states, (V, D) and (V,) or None of the head, (N,) targets -> log-probability of each target, entropy of
    each state: (N,), (N,), in float32 at least.

    With p the probabilities and H their entropy, the logits of a state have the gradients onehot(target) - p of the
    log-probability and -p (log p + H) of the entropy. Where all logits together are no more than `most_logits` they are
    kept for the backward pass, else computed again, a part of the vocabulary at a time.
    """

    @staticmethod
    def forward(
        ctx, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, logits: Logits
    ) -> tuple[Tensor, Tensor]:
        is_kept = len(states) * weight.shape[0] <= most_logits(memory_of(states.device))
        given = states, weight, bias, targets, temperature, logits
        logprobs, entropies, log_sums, kept = score(*given, with_entropies=True, is_kept=is_kept)
        ctx.save_for_backward(states, weight, bias, targets, entropies, log_sums, *kept)
        ctx.temperature, ctx.logits = temperature, logits
        return logprobs, entropies

    @staticmethod
    def backward(ctx, grad_logprobs: Tensor, grad_entropies: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, targets, entropies, log_sums, *kept = ctx.saved_tensors
        factor, is_capped = ctx.temperature / ctx.logits.scale, ctx.logits.soft_cap is not None
        of_targets, of_log_p = grad_logprobs / factor, grad_entropies / factor
        constant = of_targets + of_log_p * entropies
        _, needs_weight, needs_bias, *_ = ctx.needs_input_grad  # a frozen head needs none
        grad_states = torch.zeros_like(states, dtype=entropies.dtype)
        grad_weight = torch.empty_like(weight) if needs_weight else None
        grad_bias = torch.empty_like(bias) if needs_bias else None
        for number, part in enumerate(parts_of(weight, len(states))):
            scores = kept[number] if kept else logits_of_part(states, weight, bias, part, ctx.temperature, ctx.logits)
            grads = logit_gradients(scores, log_sums, targets - part.start, of_targets, of_log_p, constant,
                                    may_overwrite=not kept and not is_capped)
            if is_capped:
                ctx.logits.cap_gradients(ctx.temperature, scores, grads)
            if grad_bias is not None:
                grad_bias[part] = grads.sum(dim=0)
            grads = grads.to(weight.dtype)
            if grads.dtype == grad_states.dtype:
                add_product(grad_states, grads, weight[part].T)
            else:
                grad_states += product(grads, weight[part].T)
            if grad_weight is not None:
                grad_weight[part] = outer_product(grads, states)
        return grad_states.to(states.dtype), grad_weight, grad_bias, None, None, None


def parts_of(weight: Tensor, num_states: int) -> list[slice]:
    """Of the vocabulary of a head (V, D)."""
    vocab_size = len(weight)
    size = part_size(num_states, vocab_size, memory_of(weight.device))
    return [slice(first, min(first + size, vocab_size)) for first in range(0, vocab_size, size)]


@torch.no_grad()
def score(
    states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, logits: Logits, *,
    with_entropies: bool, is_kept: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor, list[Tensor]]:
    """Log-probabilities of the targets, entropies if they are asked for, and logarithms of the sums of exponentials,
    (N,) each, and the parts of the logits, (N, words) each, if they are kept. No gradients."""
    parts = parts_of(weight, len(states))
    at_target, sums, kept = torch.zeros((), device=states.device), [], []
    for part in parts:
        scores = logits_of_part(states, weight, bias, part, temperature, logits)
        sums.append(softmax_sums(scores, with_entropies))
        own, is_there = place_in_part(targets - part.start, scores.shape[1])
        at_target = torch.where(is_there, scores.gather(1, own[:, None])[:, 0], at_target)
        kept += [scores] * is_kept
    log_sums, entropies = join_parts(sums)
    return at_target - log_sums, entropies, log_sums, kept


def logits_of_part(
    states: Tensor, weight: Tensor, bias: Tensor | None, part: slice, temperature: float, logits: Logits
) -> Tensor:
    """(N, D) states -> (N, words); the rest as in `compute_logits`."""
    return compute_logits(states, weight[part], None if bias is None else bias[part], temperature, logits)


def softmax_sums(logits: Tensor, with_entropies: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """(N, words) -> the highest logits, the logarithms of the sums of exp(logit - highest), and the entropies of the
    softmax if they are asked for, (N,) each."""
    if cpu_kernels.take(logits):
        return torch.ops.cpu_kernels.softmax_sums(logits)
    log_p = logits.log_softmax(dim=1)
    entropies = -torch.linalg.vecdot(log_p.exp(), log_p) if with_entropies else None
    return logits.amax(dim=1), -log_p.amax(dim=1), entropies


def join_parts(sums: list[tuple[Tensor, Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """From what `softmax_sums` says of parts the logarithms of the sums of exponentials of all words, and their
    entropy: with a part's share w of all weight, the sum over parts of w (its own entropy - log w)."""
    tops, of_parts = torch.stack([top for top, *_ in sums]), torch.stack([log for _, log, _ in sums])  # (parts, N)
    highest = tops.amax(dim=0)
    of_parts = of_parts + (tops - highest)  # relative: logits far from 0 leave no digits for a share
    together = of_parts.logsumexp(dim=0)
    log_sums = highest + together
    if sums[0][2] is None:
        return log_sums, None
    log_shares = of_parts - together
    entropies = torch.stack([entropies for *_, entropies in sums])
    return log_sums, (log_shares.exp() * (entropies - log_shares)).sum(dim=0)


def place_in_part(targets: Tensor, num_words: int) -> tuple[Tensor, Tensor]:
    """Numbers of words, counted from the first of a part, as numbers in it, and whether they are there."""
    return targets.clamp(0, num_words - 1), (targets >= 0) & (targets < num_words)


def logit_gradients(
    logits: Tensor, log_sums: Tensor, targets: Tensor, at_target: Tensor, at_log_p: Tensor, offset: Tensor,
    may_overwrite: bool,
) -> Tensor:
    """A part of the logits, (N, words), and numbers of a state, (N,) -> with log p = logit - log_sum the gradients
    -(offset + at_log_p * log p) * p, and `at_target` more at the target, if it is in the part."""
    if cpu_kernels.take(logits):
        grads = logits if may_overwrite else torch.empty_like(logits)
        torch.ops.cpu_kernels.logit_gradients(logits, log_sums, targets, at_target, at_log_p, offset, grads)
        return grads
    log_p = logits - log_sums[:, None]
    grads = torch.addcmul(offset[:, None], at_log_p[:, None], log_p).mul_(log_p.exp_()).neg_()
    own, is_there = place_in_part(targets, logits.shape[1])
    return grads.scatter_add_(1, own[:, None], torch.where(is_there, at_target, 0)[:, None])


class PartedHead(nn.Module):
    """The LM head, its parameters shared with the model. One module call whatever the number of parts: under ZeRO-3
    every call gathers the weight on all ranks together, and ranks differ in their number of scored tokens."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None = None, logits: Logits = PLAIN_LOGITS):
        super().__init__()
        self.weight, self.bias, self.logits = weight, bias, logits

    def forward(
        self, states: Tensor, targets: Tensor, temperature: float, with_entropies: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        given = states, self.weight, self.bias, targets, temperature, self.logits
        if not with_entropies:
            return score(*given, with_entropies=False)[0], None
        return FusedLinearLogProbs.apply(*given)


class Policy(nn.Module):
    """A causal language model that scores chosen tokens of packed rows."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        model.set_attn_implementation(attention.NAME)
        self.model = model
        head = model.get_output_embeddings()
        self.head = PartedHead(head.weight, head.bias, Logits.of(model.config))

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
