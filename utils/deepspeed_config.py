"""How DeepSpeed is used: its settings, and what memory (utils/setup/) and the actor must agree on."""

import torch

from utils.run import distributed

GATHER_BUCKET = 2**28  # weights gathered at once: 512 MiB in bfloat16


def adds_up_in_float32(zero_stage: int, offload: bool) -> bool:
    """Whether gradients of bfloat16 weights are summed over micro-batches in float32: where DeepSpeed 0.19.8 can. At
    stage 0 it cannot, and at stages 1 and 2 with offloading a skipped update's gradients would stay in the sum."""
    return zero_stage == 3 or zero_stage > 0 and not offload


def deepspeed_config(zero_stage: int, dtype: torch.dtype, max_grad_norm: float, offload: bool) -> dict:
    """DeepSpeed settings. Everything that changes numbers is named: some defaults do (clipping is 1.0 if unnamed)."""
    zero: dict = {"stage": zero_stage, "overlap_comm": torch.cuda.is_available()}
    if offload and zero_stage > 0:
        zero["offload_optimizer"] = {"device": "cpu"}
    if offload and zero_stage == 3:
        zero["offload_param"] = {"device": "cpu"}
    is_bfloat16 = dtype == torch.bfloat16
    sums = {"grad_accum_dtype": "fp32"} if is_bfloat16 and adds_up_in_float32(zero_stage, offload) else {}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # micro-batches differ in number; Actor marks the last one itself
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": is_bfloat16, "check_grad_overflow": True, "immediate_grad_update": True},
        "data_types": sums,
        "checkpoint": {"use_node_local_storage": distributed.is_node_local()},
        "steps_per_print": 2**31,
    }
