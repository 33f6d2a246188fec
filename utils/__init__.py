import os
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the repository

if version("torch").endswith("+cpu"):  # else each process warns, when it first imports DeepSpeed, that it finds no GPU
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
