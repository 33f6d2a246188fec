"""What DeepSpeed is told; what comes of it on two processes: test_actor_states.py."""

import pytest
import torch

from utils.deepspeed_config import adds_up_in_float32, deepspeed_config

IN_FLOAT32 = {(0, False): False, (0, True): False, (1, False): True, (1, True): False, (2, False): True,
              (2, True): False, (3, False): True, (3, True): True}


@pytest.mark.parametrize("has_cuda", [False, True])
def test_reductions_overlap_with_products_on_a_gpu(monkeypatch, has_cuda):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    for stage in range(4):
        config = deepspeed_config(stage, torch.bfloat16, 1.0, offload=False)
        assert config["zero_optimization"] == {"stage": stage, "overlap_comm": has_cuda}


@pytest.mark.parametrize(("stage", "offload"), IN_FLOAT32)
def test_sums_of_gradients_are_float32_where_deepspeed_can(stage, offload):
    assert adds_up_in_float32(stage, offload) == IN_FLOAT32[stage, offload]
    sums = {"grad_accum_dtype": "fp32"} if IN_FLOAT32[stage, offload] else {}
    assert deepspeed_config(stage, torch.bfloat16, 1.0, offload)["data_types"] == sums
    assert deepspeed_config(stage, torch.float32, 1.0, offload)["data_types"] == {}
