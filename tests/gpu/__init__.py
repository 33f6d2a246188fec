"""Checks of what only a GPU shows: `python -m tests.gpu`, see README.md."""

import importlib
import os

# Before anything imports transformers: nothing here needs the network, and none of it may wait for one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

FILES = ("card", "cudnn_nan", "new_shapes", "varlen", "pytest_gpu", "engine_scores", "by_response", "decode",
         "update", "memory", "whole_run", "accumulation", "vllm_runs",
         "two_gpus")


def load_checks() -> None:
    """Fills checks.CHECKS."""
    for name in FILES:
        importlib.import_module(f"tests.gpu.{name}")
