"""The forward pass: token ids in, log-probabilities and entropies of the scored tokens out.

The LM head runs on the N scored states only, a chunk of them at a time, and its gradient is written out by hand: no
(R, L, V) tensor ever exists, nor an (N, V) one for large vocabularies.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from utils import attention
from utils.attention import Layout
from utils.linear import add_product, product

CHUNK_LOGITS = 2**26  # logits of a chunk at most, and log-probabilities kept for the backward pass: 256 MiB in float32
CACHE_LOGITS = 2**20  # of a chunk on a CPU, where several passes over them should find them in its cache


def chunk_size(vocab_size: int, on_cpu: bool) -> int:
    """Rows of a chunk. A matrix product of few rows is slow, so a CPU takes no fewer than 128 for its cache's sake."""
    most = max(1, CHUNK_LOGITS // vocab_size)
    return min(most, max(128, CACHE_LOGITS // vocab_size)) if on_cpu else most


def log_probabilities(states: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """(n, D) states, (V, D) head -> log-probabilities of all words, (n, V), in float32 at least."""
    logits = product(states, weight)
    return logits.to(torch.promote_types(logits.dtype, torch.float)).div_(temperature).log_softmax(dim=-1)


class ScoreStates(torch.autograd.Function):
    """(N, D) states, (V, D) head, (N,) targets -> log-probability of each target, entropy of each state: (N,), (N,).

    With p the probabilities at temperature T and H their entropy, the logits z / T of a state have the gradients
    onehot(target) - p of the log-probability and -p (log p + H) of the entropy. Where all log p together are no more
    than CHUNK_LOGITS they are kept for the backward pass, else computed again, a chunk at a time.
    """

    @staticmethod
    def forward(ctx, states: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        size = chunk_size(weight.shape[0], states.device.type == "cpu")
        is_kept = len(states) * weight.shape[0] <= CHUNK_LOGITS
        logprobs, entropies, kept = [], [], []
        for some_states, some_targets in zip(states.split(size), targets.split(size), strict=True):
            log_p = log_probabilities(some_states, weight, temperature)
            logprobs.append(log_p.gather(-1, some_targets[:, None]).squeeze(-1))
            entropies.append(-torch.linalg.vecdot(log_p.exp(), log_p))
            kept += [log_p] * is_kept
        entropy = torch.cat(entropies)
        ctx.save_for_backward(states, weight, targets, entropy, *kept)
        ctx.temperature, ctx.size = temperature, size
        return torch.cat(logprobs), entropy

    @staticmethod
    def backward(ctx, logprob_slopes: Tensor, entropy_slopes: Tensor) -> tuple[Tensor, Tensor, None, None]:
        states, weight, targets, entropy, *kept = ctx.saved_tensors
        at_target, at_log_p = logprob_slopes / ctx.temperature, entropy_slopes / ctx.temperature
        constant = at_target + at_log_p * entropy
        state_grads, weight_grad = torch.empty_like(states), torch.zeros_like(weight)
        flat = (states, targets, at_target, at_log_p, constant, state_grads)
        for number, chunk in enumerate(zip(*(values.split(ctx.size) for values in flat), strict=True)):
            some_states, some_targets, target_slope, slope, offset, out = chunk
            log_p = kept[number] if kept else log_probabilities(some_states, weight, ctx.temperature)
            grads = torch.addcmul(offset[:, None], slope[:, None], log_p).mul_(log_p.exp()).neg_()  # (n, V)
            grads.scatter_add_(1, some_targets[:, None], target_slope[:, None])
            grads = grads.to(weight.dtype)
            out.copy_(product(grads, weight.T))
            add_product(weight_grad, grads.T, some_states.T)
        return state_grads, weight_grad, None, None


def score_targets(states: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """The log-probabilities of ScoreStates alone, (N,)."""
    size = chunk_size(weight.shape[0], states.device.type == "cpu")
    return torch.cat([
        log_probabilities(some_states, weight, temperature).gather(-1, some_targets[:, None]).squeeze(-1)
        for some_states, some_targets in zip(states.split(size), targets.split(size), strict=True)
    ])


class ChunkedHead(nn.Module):
    """The LM head, shared with the model. One module call whatever the number of chunks: under ZeRO-3 every call
    gathers the weight on all ranks together, and ranks differ in their number of scored tokens."""

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight

    def forward(
        self, states: Tensor, targets: Tensor, temperature: float, with_entropies: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        if not with_entropies:
            return score_targets(states, self.weight, targets, temperature), None
        return ScoreStates.apply(states, self.weight, targets, temperature)


class Policy(nn.Module):
    """A causal language model that scores chosen tokens of packed rows."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        model.set_attn_implementation(attention.NAME)
        self.model = model
        self.head = ChunkedHead(model.get_output_embeddings().weight)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        visible: Layout | Tensor,
        predictors: Tensor,
        targets: Tensor,
        temperature: float,
        with_entropies: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Score `targets` from the states at `predictors`.

        Args:
            input_ids, position_ids: (R, L).
            visible: which tokens a token sees: a layout of theirs, or a mask (R, 1, L, L), True where it may look.
            predictors: (N,) indices into the R * L states; targets: (N,) token ids.

        Returns:
            log-probabilities (N,) and entropies (N,) in float32, in nats; None for entropies not asked for.
        """
        how = {"attention_mask": visible}
        if isinstance(visible, Layout):  # a mask of four dimensions keeps transformers from making one
            assert self.model.config._attn_implementation == attention.NAME, "no other attention knows layouts"
            how = {"attention_mask": input_ids.new_ones(1, 1, 1, 1, dtype=torch.bool), "layout": visible}
        trunk = self.model.get_decoder()
        states = trunk(input_ids, position_ids=position_ids, use_cache=False, **how).last_hidden_state  # (R, L, D)
        return self.head(states.flatten(0, 1)[predictors], targets, temperature, with_entropies)
