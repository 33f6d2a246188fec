"""Data and a model that several tests share, made once a session; no network, and no GPU but for `-m gpu`."""

import contextlib
import os
import re

# Before anything imports transformers: a test that reaches for the network fails at once and on every machine.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rewards
from rewards import pool
from tests.helpers import launching
from tests.helpers.float64 import float64
from training import tiny_base
from utils.run import watchdog
from utils.tasks import countdown


def pytest_configure(config: pytest.Config) -> None:
    """On the CPU, with all that tests start, wherever they run; on GPUs where -m asks for them, or SHOW_GPUS=1 does."""
    if not wants_gpu(config.option.markexpr) and os.environ.get("SHOW_GPUS") != "1":
        os.environ.update(launching.ON_CPU)


def wants_gpu(markers: str) -> bool:
    """Whether the words of -m ask for tests that are marked gpu."""
    return re.search(r"(?<!not )\bgpu\b", markers) is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Files whose tests start runs come first (launch_scripts/test.sh): no worker is left alone with one at the end.
    with_runs = {item.path for item in items if "slow" in item.keywords}
    items.sort(key=lambda item: item.path not in with_runs)
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU, and -m gpu"))


@pytest.hookimpl(tryfirst=True)  # before fixtures
def pytest_runtest_setup(item: pytest.Item) -> None:
    launching.may_start = "slow" in item.keywords


@pytest.fixture
def forget_verifiers(monkeypatch):
    """Files that a test lets judge are unknown to the next, and their workers end."""
    monkeypatch.setattr(pool, "of_commands", {})
    monkeypatch.setattr(rewards, "NAMED", dict(rewards.NAMED))
    monkeypatch.setattr(rewards, "own_files", {})
    yield
    for one in pool.of_commands.values():
        one.close()


@pytest.fixture(autouse=True)
def in_float64(request):
    """What is marked float64 computes everything in it."""
    with float64() if "float64" in request.keywords else contextlib.nullcontext():
        yield


@pytest.fixture(autouse=True)
def no_heartbeat_goes_on():
    """A script's `main` that a test has called, and that failed, must not be watched any longer: it would be ended."""
    yield
    watchdog.stop()


@pytest.fixture(scope="session")
def countdown_data(tmp_path_factory) -> Path:
    """Countdown, 200 train and 32 test problems of two small numbers: easy for a model trained in seconds."""
    folder = tmp_path_factory.mktemp("countdown") / "data"
    countdown.build(folder, train_problems=200, test_problems=32, min_numbers=2, max_numbers=2, max_number=15,
                    min_target=3, max_target=40, operators="+-*")
    return folder


@pytest.fixture(scope="session")
def exact_base_model(tmp_path_factory, countdown_data) -> Path:
    """A Hugging Face folder: tied Qwen2, trained for seconds. It knows the format and is right at times.

    Computed and stored in float64, for launches that compute in it (float64.IN_FLOAT64), and at a learning rate at
    which rounding does not grow (8e-3 makes .2 of 1e-16): so it is the same model on every processor.
    """
    folder = tmp_path_factory.mktemp("exact_base_model") / "hf"
    with float64():
        tiny_base.main(tiny_base.Args(
            data=str(countdown_data), output_dir=str(folder), solved_fraction=1.0, steps=400, batch_size=8, lr=2e-3,
            warmup_steps=10, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=2,
            max_position_embeddings=192, tokenizer_texts=300, eval_problems=0, threads=1,
        ))
    return folder


@pytest.fixture(scope="session")
def base_model(tmp_path_factory, exact_base_model) -> Path:
    """The same model in float32."""
    folder = tmp_path_factory.mktemp("base_model") / "hf"
    AutoModelForCausalLM.from_pretrained(exact_base_model, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(exact_base_model).save_pretrained(folder)
    return folder
