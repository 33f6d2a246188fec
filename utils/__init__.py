import os
import shutil
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the repository

# With PyTorch's CPU build each process would warn, when it first imports DeepSpeed, that it finds no GPU. Where there
# may be one, that is news (utils/run/devices.py).
if version("torch").endswith("+cpu") and not shutil.which("nvidia-smi") and not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
