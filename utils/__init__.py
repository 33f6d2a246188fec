import os
from importlib.metadata import version

if version("torch").endswith("+cpu"):  # else each process warns, when it first imports DeepSpeed, that it finds no GPU
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
