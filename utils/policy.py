"""The forward pass: token ids in, log-probabilities and entropies of the scored tokens out.

The LM head runs on the N scored states only, in chunks that are recomputed in the backward pass: no (R, L, V) tensor
ever exists, nor an (N, V) one for large vocabularies.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

CHUNK_LOGITS = 2**26  # logits alive at once: 256 MiB in float32


def score_states(states: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(N, D) states, (V, D) head, (N,) targets -> log-probability of each target, entropy of each state: (N,), (N,)."""
    logits = F.linear(states, weight).float() / temperature  # (N, V)
    log_normaliser = logits.logsumexp(dim=-1)
    logprobs = logits.gather(-1, targets[:, None]).squeeze(-1) - log_normaliser
    probabilities = (logits - log_normaliser[:, None]).exp()
    return logprobs, log_normaliser - (probabilities * logits).sum(dim=-1)


class ChunkedHead(nn.Module):
    """The LM head, shared with the model. One module call whatever the number of chunks: under ZeRO-3 every call
    gathers the weight on all ranks together, and ranks differ in their number of scored tokens."""

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight

    def forward(self, states: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        rows = max(1, CHUNK_LOGITS // self.weight.shape[0])
        if len(states) <= rows:
            return score_states(states, self.weight, targets, temperature)
        scored = [
            checkpoint(score_states, some_states, self.weight, some_targets, temperature, use_reentrant=False)
            for some_states, some_targets in zip(states.split(rows), targets.split(rows), strict=True)
        ]
        logprobs, entropies = zip(*scored, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)


class Policy(nn.Module):
    """A causal language model that scores chosen tokens of packed rows."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.head = ChunkedHead(model.get_output_embeddings().weight)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        predictors: Tensor,
        targets: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """Score `targets` from the states at `predictors`.

        Args:
            input_ids, position_ids: (R, L).
            attention_mask: (R, 1, L, L) bool, True where a token may look.
            predictors: (N,) indices into the R * L states; targets: (N,) token ids.

        Returns:
            log-probabilities (N,) and entropies (N,) in float32, in nats.
        """
        trunk = self.model.get_decoder()
        states = trunk(input_ids, position_ids=position_ids, attention_mask=attention_mask,
                       use_cache=False).last_hidden_state  # (R, L, D)
        return self.head(states.flatten(0, 1)[predictors], targets, temperature)
