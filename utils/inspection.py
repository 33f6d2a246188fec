"""--dump_batch shows one group as it is trained on: its tokens, and the loss that each of them gets."""

from collections.abc import Sequence
from statistics import fmean

from transformers import PreTrainedTokenizerBase

from utils.prompts import decode
from utils.run.terminal import DIM, GREEN, YELLOW, paint
from utils.types import MicroBatch


def describe_group(micro_batches: Sequence[MicroBatch], tokenizer: PreTrainedTokenizerBase) -> str:
    """The first group of the micro-batches that has a hint, or else the first, read back from its tensors: prompt, hint
    and every response with their tokens, coloured, with the losses they enter and the mean of their advantages.
    Rollouts of a group that do not share a prefix are groups here."""
    micro_batch = next((one for one in micro_batches if one.hint_mask.any()), micro_batches[0])
    start = int(micro_batch.hint_mask.int().argmax())  # 0 where there is none
    predictors, targets = micro_batch.predictors[start:].tolist(), micro_batch.targets[start:].tolist()
    hint_mask, advantages = micro_batch.hint_mask[start:].tolist(), micro_batch.advantages[start:].tolist()
    is_demonstration = micro_batch.demonstration_mask[start:].tolist()
    num_hint = 0
    while num_hint < len(targets) and hint_mask[num_hint] and predictors[num_hint] == predictors[0] + num_hint:
        num_hint += 1
    length = int(micro_batch.position_ids.flatten()[predictors[0]]) + 1  # the first scored token follows the prompt
    prompt_end, last_of_prefix = predictors[0] + 1, predictors[0] + num_hint
    prompt = decode(micro_batch.input_ids.flatten()[prompt_end - length : prompt_end].tolist(), tokenizer)
    behind = f", advantage {round(advantages[0], 3) + 0.0:+.3f}" if num_hint else ""
    lines = [
        paint(f"prompt ({length} tokens, no loss): {prompt}", DIM),
        paint(f"hint ({num_hint} tokens, sft_loss{behind}): {_tokens(targets[:num_hint], tokenizer)}", YELLOW),
    ]
    first, column = num_hint, last_of_prefix + 1  # of the response: its first scored token, its first column
    while first < len(targets) and predictors[first] == last_of_prefix:
        length = 1
        while first + length < len(targets) and predictors[first + length] == column + length - 1:
            length += 1
        text = _tokens(targets[first : first + length], tokenizer)
        advantage = f"advantage {fmean(advantages[first : first + length]):+.3f}"
        kind = f"response ({length} tokens, pg_loss with {advantage}, kl_loss, entropy)"
        if is_demonstration[first]:
            kind = f"demonstration ({length} tokens, not sampled, {advantage})"
        lines.append(paint(f"{kind}: {text}", YELLOW if is_demonstration[first] else GREEN))
        first, column = first + length, column + length
    return "\n".join(lines)


def _tokens(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return "|".join(decode([token], tokenizer) for token in ids)
