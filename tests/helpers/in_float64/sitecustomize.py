"""On PYTHONPATH of a launch, every Python process imports this at its start, and float32 is float64 in it: torch's name
for it, the method that casts to it, the default type. So what a launch computes can be compared to 1e-9.

A mode as in helpers/float64.py would not do: it holds for one thread, and transformers loads weights in several; and
DeepSpeed compares types with `torch.float32`. The project itself knows nothing of it.
"""

import os

import safetensors.torch  # noqa: F401  before the names change: its tables of types are right then
import torch

torch.float32 = torch.float = torch.float64
torch.FloatTensor = torch.DoubleTensor
torch.Tensor.float = torch.Tensor.double
torch.set_default_dtype(torch.float64)
torch.backends.mkldnn.is_available = lambda: False  # oneDNN has no float64
os.environ["CPU_KERNELS"] = "0"  # nor have these
