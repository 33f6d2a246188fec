"""The time of a run: hand-worked numbers for a small model on cards that make one thing slow, and for a large one an
estimate made before."""

from dataclasses import replace

import pytest

from utils.setup.cards import VLLM_WORKS, best, on_card
from utils.setup.duration import (
    CPU_ADAM,
    KERNEL,
    LENGTH,
    PCIE,
    PRODUCTS,
    TABLE,
    Card,
    Work,
    card_here,
    duration_facts,
    generating,
    hours,
    seconds_of_step,
    work_of,
)
from utils.setup.memory_terms import GIB, Run
from utils.setup.shapes import SHAPES, Shape

# 1,576 parameters, 80 of them the embedding, which is the head; 24 numbers a token in the KV cache.
SMALL = Shape(vocab_size=10, hidden_size=8, intermediate_size=12, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=2)
RUN = Run(weight_bytes=2, processes=2, zero_stage=3, offload=False, gradient_checkpointing=False, has_reference=True,
          prompts_per_step=16, mini_batch_prompts=8, group_size=4, row_length=30, rows_per_prompt=1,
          max_tokens_per_micro_batch=60, max_prompt_length=10, max_response_length=5, kv_cache_gb=1.0, test_problems=6,
          gpu_bytes=80 * GIB, engine="torch", engine_memory_fraction=0.5, free_replica=False, sleep_level=0)
FAST = 1e15
PRODUCTS_SLOW = Card(flops=1_000 / PRODUCTS, bandwidth=FAST, link=FAST, gigabytes=80)  # 1,000 FLOP/s are reached
MEMORY_SLOW = Card(flops=FAST, bandwidth=4, link=FAST, gigabytes=80)
LINK_SLOW = Card(flops=FAST, bandwidth=FAST, link=1, gigabytes=80)
INSTANT = Card(flops=FAST, bandwidth=FAST, link=FAST, gigabytes=80)


def test_the_work_of_a_step_is_counted():
    """16 prompts of 5 tokens (half of 10), 64 responses of 2.5: 80 + 160 tokens; 16 * 12.5 + 64 * 15.625 pairs."""
    assert LENGTH == 0.5
    assert work_of(RUN) == Work(240, 160, 1_200)
    apart = replace(RUN, row_length=15, rows_per_prompt=4)  # a prompt once a response
    assert work_of(apart) == Work(480, 160, 64 * 12.5 + 64 * (12.5 + 3.125))
    demonstrations = replace(RUN, group_size=0, row_length=40)  # 20 tokens, 5 of them the prompt
    assert work_of(demonstrations) == Work(320, 240, 16 * 200)
    beside = replace(RUN, row_length=38, max_demonstration_length=8)  # 4 tokens behind each prompt, 28 pairs
    assert work_of(beside) == Work(240 + 64, 160 + 64, 1_200 + 16 * 28)
    trunk, head = Work(240, 160, 1_200).flops(SMALL)
    assert (trunk, head) == (2 * 1_496 * 240 + 4 * 3 * 8 * 1_200, 2 * 80 * 160)
    assert replace(SMALL, tied=False).parameters == 1_656
    assert Work(240, 160, 1_200).flops(replace(SMALL, tied=False)) == (trunk, head)


def test_where_products_are_slow_they_are_the_time():
    """833,280 FLOPs of the trunk and 25,600 of the head, on two processes: 416.64 s and 12.8 s. Twice for the sampling
    policy and the reference; in the update three times and the head once more."""
    seconds = seconds_of_step(SMALL, RUN, PRODUCTS_SLOW)
    assert seconds["log-probs"] == pytest.approx(2 * 429.44)
    assert seconds["update"] == pytest.approx(3 * 429.44 + 12.8)
    assert seconds["rollout"] == pytest.approx(2 * 1_576 * (8 * 5 + 32 * 2.5) / 1_000)
    recomputed = seconds_of_step(SMALL, replace(RUN, gradient_checkpointing=True), PRODUCTS_SLOW)
    assert recomputed["update"] == pytest.approx(seconds["update"] + 416.64)
    for changes, scorings in (({"has_reference": False}, 1), ({"mini_batch_prompts": 16}, 1),
                              ({"has_reference": False, "mini_batch_prompts": 16}, 0), ({"group_size": 0}, 0)):
        work = work_of(replace(RUN, **changes)).flops(SMALL)
        found = seconds_of_step(SMALL, replace(RUN, **changes), PRODUCTS_SLOW)["log-probs"]
        assert found == pytest.approx(scorings * sum(work) / 2_000)


def test_where_memory_is_slow_decoding_and_adam_are_the_time():
    """5 steps read 3,152 bytes of weights each. Of keys and values, 48 bytes a token: prompts of 5 tokens once a group
    (once a row by vLLM) at 2.5 steps, and 2.5 ** 2 / 2 tokens of its own for each of 32 rows."""
    seconds = seconds_of_step(SMALL, RUN, MEMORY_SLOW)
    assert seconds["rollout"] == pytest.approx((5 * 3_152 + 48 * (8 * 2.5 * 5 + 32 * 3.125)) / (4 * 0.25))
    assert seconds["update"] == pytest.approx(2 * 28 * 788 / 4)  # two updates, of half the parameters each
    by_vllm = seconds_of_step(SMALL, replace(RUN, engine="vllm"), MEMORY_SLOW)
    assert by_vllm["rollout"] == pytest.approx((5 * 3_152 + 48 * 32 * (2.5 * 5 + 3.125)) / (4 * 0.5))
    assert seconds_of_step(SMALL, replace(RUN, zero_stage=0), MEMORY_SLOW)["update"] == pytest.approx(2 * 28 * 394)


def test_a_small_cache_makes_rounds():
    one_group = replace(RUN, kv_cache_gb=48 * 30 / GIB)
    bytes_read = 8 * 5 * 3_152 + 48 * 200
    assert generating(SMALL, one_group, MEMORY_SLOW, 8, 4) == pytest.approx(bytes_read / (4 * 0.25))
    two_samples = replace(RUN, kv_cache_gb=48 * 20 / GIB)  # of a group: 8 prompts, twice
    assert generating(SMALL, two_samples, MEMORY_SLOW, 8, 4) == pytest.approx((80 * 3_152 + 48 * 200) / (4 * 0.25))
    half = (3_152 + VLLM_WORKS + 32 * 7.5 * 48 / 2) / RUN.gpu_bytes  # vLLM's cache: half of what the rows need
    by_vllm = replace(RUN, engine="vllm", engine_memory_fraction=half)
    assert generating(SMALL, by_vllm, MEMORY_SLOW, 8, 4) == pytest.approx((10 * 3_152 + 48 * 500) / (4 * 0.5), rel=1e-5)
    nothing = replace(by_vllm, engine_memory_fraction=0.01)  # a row at a time
    assert generating(SMALL, nothing, MEMORY_SLOW, 8, 4) == pytest.approx((160 * 3_152 + 48 * 500) / (4 * 0.5))


def test_where_the_link_is_slow_weights_and_gradients_travel():
    """Half of 3,152 bytes is elsewhere: 1,576 s. Two updates of one micro-batch each gather twice and reduce once."""
    seconds = seconds_of_step(SMALL, RUN, LINK_SLOW)
    assert seconds["update"] == pytest.approx(2 * 3 * 1_576) and seconds["sync"] == pytest.approx(1_576)
    assert seconds["log-probs"] == pytest.approx(2 * 2 * 1_576)
    smaller = seconds_of_step(SMALL, replace(RUN, max_tokens_per_micro_batch=30), LINK_SLOW)
    assert smaller["update"] == pytest.approx(4 * 3 * 1_576)
    stage_2 = seconds_of_step(SMALL, replace(RUN, zero_stage=2, max_tokens_per_micro_batch=30), LINK_SLOW)
    assert stage_2["update"] == pytest.approx(4 * 1_576) and stage_2["sync"] == 0
    stage_1 = seconds_of_step(SMALL, replace(RUN, zero_stage=1, max_tokens_per_micro_batch=30), LINK_SLOW)
    assert stage_1["update"] == pytest.approx(2 * 1_576)
    assert sum(seconds_of_step(SMALL, replace(RUN, processes=1), LINK_SLOW).values()) < 1


def test_what_is_offloaded_comes_and_goes():
    """Two updates of two micro-batches: eight times weights from CPU memory, and Adam there."""
    run = replace(RUN, offload=True, max_tokens_per_micro_batch=30)
    update = seconds_of_step(SMALL, run, INSTANT)["update"]
    of_a_rank = 2 * 788 / PCIE
    assert update == pytest.approx(8 * of_a_rank + 2 * (28 * 1_576 / CPU_ADAM + (4 + 2) * 788 / PCIE), rel=1e-3)


def test_a_kernel_takes_its_time_however_little_it_does():
    for engine, kernels in (("torch", 25), ("vllm", 12)):
        run = replace(RUN, engine=engine)
        assert generating(SMALL, run, INSTANT, 8, 4) == pytest.approx(5 * 3 * kernels * KERNEL, rel=1e-3)


def test_hours_count_steps_and_evaluations():
    parts, total = hours(SMALL, RUN, MEMORY_SLOW, total_steps=10, eval_every=4)  # evaluated at 0, 4, 8 and 10
    evaluation = generating(SMALL, RUN, MEMORY_SLOW, 3, 1)
    assert total == pytest.approx((10 * sum(parts.values()) + 4 * evaluation) / 3_600)
    _, without_rest = hours(SMALL, RUN, MEMORY_SLOW, total_steps=8, eval_every=4)
    assert without_rest == pytest.approx((8 * sum(parts.values()) + 3 * evaluation) / 3_600)


def paper(engine: str) -> Run:
    """Qwen2.5-3B on four processes, as the recipes have it."""
    return replace(RUN, processes=4, prompts_per_step=256, mini_batch_prompts=64, row_length=4_352, engine=engine,
                   max_prompt_length=256, max_response_length=1_024, test_problems=1_024, free_replica=True,
                   max_tokens_per_micro_batch=16_384, gradient_checkpointing=True, kv_cache_gb=24.0)


def test_the_papers_run_takes_what_was_estimated_by_hand():
    """20 to 27 s a step of 3 B on four H100 with our engine, 3 to 4 hours for 500 steps."""
    for run in (paper("torch"), best(SHAPES["Qwen/Qwen2.5-3B"], on_card(paper("torch"), 80))):
        parts, total = hours(SHAPES["Qwen/Qwen2.5-3B"], run, TABLE["H100"], 500, 25)
        assert 20 < sum(parts.values()) < 27 and 3 < total < 4
        assert 7 < parts["update"] < 11 and 3 < parts["log-probs"] < 6 and 8 < parts["rollout"] < 14


def test_the_facts_are_of_all_cards_or_of_the_one_here():
    shape = SHAPES["Qwen/Qwen2.5-3B"]
    facts = duration_facts(shape, paper("torch"), 500, 25)
    assert list(facts) == ["time", *(f"  on 4 x {name}" for name in TABLE)]
    assert facts["time"].startswith("estimated, never measured: lengths 50% of the limits, products at 35% of a card's")
    chosen = best(shape, on_card(paper("torch"), 40))
    parts, total = hours(shape, chosen, TABLE["A100-40"], 500, 25)
    assert facts["  on 4 x A100-40"] == (
        f"{sum(parts.values()):.1f} s a step (rollout {parts['rollout']:.1f}, log-probs {parts['log-probs']:.1f}, "
        f"update {parts['update']:.1f}, sync {parts['sync']:.1f}), {total:.1f} h for 500 steps, "
        f"{4 * total:.1f} GPU-hours")
    here = duration_facts(shape, paper("torch"), 500, 25, "H100")
    parts, _ = hours(shape, paper("torch"), TABLE["H100"], 500, 25)
    assert list(here) == ["time", "  on 4 x H100"]
    assert here["  on 4 x H100"].startswith(f"{sum(parts.values()):.1f} s a step")
    assert duration_facts(replace(shape, num_layers=400), paper("torch"), 500, 25)["  on 4 x L4"] == "does not fit"
    assert duration_facts(None, paper("torch"), 500, 25) == {}


@pytest.mark.parametrize(("name", "gib", "card"), [
    ("NVIDIA H100 80GB HBM3", 79.1, "H100"), ("NVIDIA A100-SXM4-80GB", 79.2, "A100-80"),
    ("NVIDIA A100-SXM4-40GB", 39.4, "A100-40"), ("NVIDIA A100-PCIE-40GB", 39.4, "A100-40"),
    ("NVIDIA GeForce RTX 4090", 23.6, "RTX 4090"), ("NVIDIA L4", 22.0, "L4"), ("NVIDIA L40S", 44.4, None),
    ("NVIDIA H200", 139.8, None), ("Tesla V100-SXM2-32GB", 31.7, None),
])
def test_the_card_here_is_known_by_its_name(name, gib, card):
    assert card_here(name, gib * GIB) == card
