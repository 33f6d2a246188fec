"""Data and a model that several tests share, made once a session; no network, no GPU needed."""

import os

# Before anything imports transformers: a test that reaches for the network fails at once and on every machine.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

from utils import tiny_base  # noqa: E402
from utils.tasks import countdown  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(scope="session")
def countdown_data(tmp_path_factory) -> Path:
    """Countdown with 200 train and 32 test problems of three small numbers."""
    folder = tmp_path_factory.mktemp("countdown") / "data"
    countdown.build(folder, train_problems=200, test_problems=32, min_numbers=3, max_numbers=3, max_number=9,
                    min_target=5, max_target=40, operators="+-*")
    return folder


@pytest.fixture(scope="session")
def base_model(tmp_path_factory, countdown_data) -> Path:
    """A Hugging Face folder: tied Qwen2, trained for seconds. It knows a little of the format, so rewards differ."""
    folder = tmp_path_factory.mktemp("base_model") / "hf"
    tiny_base.main(tiny_base.Args(
        data=str(countdown_data), output_dir=str(folder), solved_fraction=0.5, steps=200, batch_size=8, lr=1e-2,
        warmup_steps=5, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, max_position_embeddings=192,
        tokenizer_texts=300, eval_problems=0,
    ))  # fmt: skip
    return folder
