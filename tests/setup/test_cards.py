"""Which flags the plan advises for GPUs of a size: they fit, and nothing larger does."""

from dataclasses import replace

import pytest

from utils.setup.cards import CARDS, FILLED, MOST_TOKENS, STEP, best, card_facts, fits, flags_of, micro_batches, on_card
from utils.setup.memory import peak
from utils.setup.memory_terms import GIB, Run
from utils.setup.shapes import SHAPES

RUN = Run(weight_bytes=2, processes=4, zero_stage=3, offload=False, gradient_checkpointing=True, has_reference=True,
          prompts_per_step=256, mini_batch_prompts=64, group_size=4, row_length=4_352, rows_per_prompt=1,
          max_tokens_per_micro_batch=16_384, max_prompt_length=256, max_response_length=1_024, kv_cache_gb=8.0,
          test_problems=1_024, gpu_bytes=0, engine="torch", engine_memory_fraction=0.3, free_replica=False,
          sleep_level=0)
QWEN3B = SHAPES["Qwen/Qwen2.5-3B"]


@pytest.mark.parametrize("engine", ["torch", "vllm"])
@pytest.mark.parametrize("processes", [1, 2, 4, 8])
@pytest.mark.parametrize("gigabytes", CARDS)
@pytest.mark.parametrize("model", SHAPES)
def test_what_is_advised_fits_and_a_larger_micro_batch_does_not(model, gigabytes, processes, engine):
    run = on_card(replace(RUN, processes=processes, engine=engine), gigabytes)
    chosen = best(SHAPES[model], run)
    assert fits(SHAPES[model], chosen) and peak(SHAPES[model], chosen) <= FILLED * CARDS[gigabytes] * GIB
    assert chosen.max_tokens_per_micro_batch >= run.row_length
    larger = replace(chosen, max_tokens_per_micro_batch=chosen.max_tokens_per_micro_batch + STEP)
    assert not fits(SHAPES[model], larger) or chosen.max_tokens_per_micro_batch == MOST_TOKENS
    if chosen.gradient_checkpointing:  # without it not even one group fits
        assert not fits(SHAPES[model], replace(chosen, gradient_checkpointing=False, offload=False,
                                               max_tokens_per_micro_batch=5 * STEP))
    if chosen.offload:
        assert not fits(SHAPES[model], replace(chosen, offload=False, max_tokens_per_micro_batch=5 * STEP))
    assert chosen.gradient_checkpointing or not chosen.offload


def test_a_micro_batch_is_no_larger_than_a_mini_batch():
    few = replace(RUN, mini_batch_prompts=8)  # two groups of 4,352 tokens a process
    assert best(SHAPES["Qwen/Qwen2.5-0.5B"], on_card(few, 80)).max_tokens_per_micro_batch == 8 * STEP
    apart = replace(few, row_length=1_280, rows_per_prompt=4, mini_batch_prompts=4)  # prompts once a response
    assert best(SHAPES["Qwen/Qwen2.5-0.5B"], on_card(apart, 80)).max_tokens_per_micro_batch == 5 * STEP


def test_a_response_with_a_prompt_of_its_own_may_be_in_another_micro_batch():
    """Rows of 3,328 and 1,280 tokens: a micro-batch holds the first at least, a mini-batch counts two of them."""
    solo = replace(RUN, row_length=3_328, rows_per_prompt=2, mini_batch_prompts=4)
    assert list(micro_batches(solo)) == [4 * STEP, 5 * STEP, 6 * STEP]
    assert solo.members_of_row == [1_024] * 3


def test_demonstrations_have_a_cache_for_the_evaluation():
    sft = on_card(replace(RUN, group_size=0, row_length=1_024, has_reference=False, mini_batch_prompts=256), 80)
    chosen = best(QWEN3B, sft)
    assert chosen.kv_cache_gb == 12 and chosen.max_tokens_per_micro_batch % STEP == 0  # 256 x 1,280 tokens of 36 KiB


def test_the_advice_is_words_of_a_command_line():
    facts = card_facts(QWEN3B, RUN)
    assert list(facts) == ["  on GPUs of 80 GB", "  on GPUs of 40 GB", "  on GPUs of 24 GB"]
    here = peak(QWEN3B, on_card(RUN, 80)) / GIB
    chosen = best(QWEN3B, on_card(RUN, 80))
    assert facts["  on GPUs of 80 GB"] == (
        f"these flags {here:.2f} GiB; best --max_tokens_per_micro_batch {chosen.max_tokens_per_micro_batch} "
        f"--kv_cache_gb 10 --free_replica, {peak(QWEN3B, chosen) / GIB:.2f} GiB")
    assert "best --gradient_checkpointing --offload --max_tokens" in facts["  on GPUs of 24 GB"]
    assert flags_of(best(QWEN3B, on_card(replace(RUN, engine="vllm"), 40))) == (
        "--gradient_checkpointing --max_tokens_per_micro_batch 16384 --engine_memory_fraction 0.45 --sleep_level 2")
    below = on_card(replace(RUN, zero_stage=2), 80)  # the engine has the actor's own weights
    assert "--free_replica" not in flags_of(best(SHAPES["Qwen/Qwen2.5-0.5B"], below))


def test_what_fits_nowhere_is_said():
    large = replace(QWEN3B, num_layers=36 * 12)
    facts = card_facts(large, RUN)
    assert best(large, on_card(RUN, 24)) is None
    assert facts["  on GPUs of 24 GB"].endswith("; no flags make it fit: take more of them")
    assert card_facts(None, RUN) == {}
