"""What the benchmarks count: FLOPs and bytes of work, shapes, cards, and the plan's largest micro-batch."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.bench.cards import CARDS, card_of, present_card
from tests.bench.micro_batch import Args, foreseen, most_rows
from tests.bench.shapes import QWEN, config_of, decode_bytes, random_model, save_model, update_flops
from tests.bench.workload import groups_of
from training.tiny_base import make_tokenizer
from utils.setup.shapes import Shape, shape_of

SMALL = Shape(40, 16, 24, 2, 4, 2, 4, layer_biases=32)


@pytest.mark.parametrize("name", QWEN)
def test_a_model_in_the_shape_of_a_real_one_has_that_shape(name):
    assert shape_of(config_of(QWEN[name])) == QWEN[name]


def test_flops_of_an_update_are_those_that_torch_counts():
    """PyTorch's counter knows the matrix products of a CPU, and not its attention."""
    model, (prefix, length) = random_model(config_of(SMALL), torch.device("cpu"), torch.float32), (7, 5)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, prefix + length, dtype=torch.long))
    pairs = (prefix + length) * (prefix + length + 1) // 2
    attention = 4 * pairs * SMALL.num_layers * SMALL.num_heads * SMALL.head_dim
    head_of_prefix = 2 * prefix * SMALL.vocab_size * SMALL.hidden_size  # we compute it for scored tokens only
    forward = counter.get_total_flops() + attention - head_of_prefix
    assert update_flops(SMALL, groups_of([(prefix, [length])])) == 3 * forward


def test_responses_share_their_prefix_and_do_not_see_each_other():
    alone, both = (update_flops(SMALL, groups_of([(7, lengths)])) for lengths in ([5], [5, 5]))
    prefix = update_flops(SMALL, groups_of([(7, [0])]))
    assert both - alone == alone - prefix > 0


def test_bytes_of_a_token_are_weights_and_what_rows_see():
    cache = SMALL.cache_elements
    assert cache == 2 * 2 * 2 * 4
    assert decode_bytes(SMALL, 3, 2, prefix=10, suffix=4, itemsize=2) == 2 * (SMALL.parameters + 3 * 18 * cache)
    untied = Shape(40, 16, 24, 2, 4, 2, 4, tied=False)
    assert decode_bytes(untied, 0, 0, 0, 0, 1) == untied.parameters - 40 * 16  # of the embedding a few rows are read


@pytest.mark.parametrize(("name", "card"), [
    ("NVIDIA H100 80GB HBM3", CARDS["H100"]), ("NVIDIA H100 PCIe", CARDS["H100 PCIe"]), ("NVIDIA H200", CARDS["H200"]),
    ("NVIDIA A100-SXM4-80GB", CARDS["A100-SXM4-80GB"]), ("NVIDIA A100-SXM4-40GB", CARDS["A100"]),
    ("NVIDIA L40S", CARDS["L40S"]), ("NVIDIA L4", CARDS["L4"]), ("Quadro", None),
])
def test_a_card_is_known_by_its_name(name, card):
    assert card_of(name) == card
    assert present_card(torch.device("cpu")) is None


def test_the_largest_micro_batch_is_the_last_that_the_estimate_lets_in():
    args = Args()
    rows = most_rows(args, "0.5B", 80.0)
    assert foreseen(args, "0.5B", rows) <= 80 < foreseen(args, "0.5B", rows + 1)
    assert most_rows(args, "3B", 10.0) == 0
    assert most_rows(Args(gradient_checkpointing=True), "0.5B", 80.0) > rows


def test_a_saved_shape_loads_and_its_tokenizer_reads_what_is_sampled(tmp_path, monkeypatch):
    monkeypatch.setitem(QWEN, "0.5B", Shape(2_000, 16, 24, 2, 4, 2, 4, layer_biases=32))
    folder = save_model("0.5B", tmp_path)
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    tokenizer = make_tokenizer([], r"\n", 64)
    assert tokenizer.decode([1_999, *tokenizer("a")["input_ids"]]) == "a"
