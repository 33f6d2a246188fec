"""A checkpoint's state read parameter by parameter, and put into an actor that is cut otherwise: another number of
processes, another ZeRO stage, an optimiser in CPU memory or not.

DeepSpeed's universal checkpoints do not cross stage 0 and stage 3, and take as much disk again, twice. What its files
hold is said by themselves: master copies and Adam's moments in float32, in pieces of parameters. Files are mapped, not
read: nothing is held whole but one parameter at a time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    lazy_init_hp_params_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from utils.manifest import OF_RANK
from utils.run import distributed, watchdog
from utils.run.errors import RunStopped

MASTER, MOMENTS = "master", ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Piece:
    """Elements start .. start + count of the flat `master` and of Adam's `state` beside it."""

    master: Tensor
    state: Mapping[str, Any]
    start: int
    count: int

    def read(self, name: str) -> Tensor:
        """(count,); zeros where no update has happened yet."""
        if name != MASTER and name not in self.state:
            return torch.zeros(self.count)
        whole = self.master if name == MASTER else self.state[name]
        return whole.detach().flatten().narrow(0, self.start, self.count)


Pieces = dict[str, list[Piece]]  # {name of a parameter: its pieces, in order}


# ----- what the files hold -----


def read_pieces(folder: Path, names: Sequence[str]) -> Pieces:
    """Of the state that DeepSpeed has written in `folder`. `names` are those of the parameters that learn, in order:
    at stage 0 they are only numbered there. Called within actor.weights_only."""
    of_ranks = sorted(folder.glob("*_optim_states.pt"), key=lambda path: int(OF_RANK.search(path.name)[1]))
    if not of_ranks:
        return pieces_of_whole(opened(folder / "mp_rank_00_model_states.pt"), names)
    states = [opened(path)["optimizer_state_dict"] for path in of_ranks]
    if "fp32_flat_groups" in states[0]:
        return pieces_of_sharded(states, opened(folder / "zero_pp_rank_0_mp_rank_00_model_states.pt")["param_shapes"])
    pieces: Pieces = {}
    for state in states:
        adam = state["base_optimizer_state"]["state"]
        for group, places in enumerate(state["param_slice_mappings"]):
            master = state["single_partition_of_fp32_groups"][group]
            for name, place in places.items():
                piece = Piece(master, adam.get(group, {}), place.start, place.numel)
                pieces.setdefault(name, []).append(piece)
    return pieces


def opened(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def pieces_of_whole(model_states: Mapping[str, Any], names: Sequence[str]) -> Pieces:
    """Stage 0: every parameter in one piece; in float32 it is its own master copy."""
    optimizer = model_states["optimizer"]
    if "fp32_groups" in optimizer:
        masters = [master for group in optimizer["fp32_groups"] for master in group]
        optimizer = optimizer["optimizer_state_dict"]
    else:
        masters = [model_states["module"][name] for name in names]
    return {name: [Piece(master, optimizer["state"].get(number, {}), 0, master.numel())]
            for number, (name, master) in enumerate(zip(names, masters, strict=True))}


def pieces_of_sharded(states: Sequence[Mapping[str, Any]], shapes: Sequence[Mapping[str, torch.Size]]) -> Pieces:
    """Stage 3: each parameter is cut into as many equal pieces as there were ranks, the last of them padded."""
    pieces: Pieces = {}
    for group, of_group in enumerate(shapes):
        start = 0
        for name, shape in of_group.items():
            size = -(-shape.numel() // len(states))
            pieces[name] = [
                Piece(state["fp32_flat_groups"][group], state["optimizer_state_dict"]["state"].get(group, {}), start,
                      max(0, min(size, shape.numel() - rank * size)))
                for rank, state in enumerate(states)
            ]
            start += size
    return pieces


# ----- into an actor -----


def put(pieces: Pieces, learning: Mapping[str, nn.Parameter], optimizer: Any, zero_stage: int, offload: bool) -> None:
    """Set weights, master copies and Adam's state of all parameters that learn, {name: parameter}, of an actor that has
    made no update. All ranks call together.

    Raises:
        RunStopped: they are others than those of the pieces.
    """
    sizes = {name: sum(piece.count for piece in some) for name, some in pieces.items()}
    expected = {name: parameter.ds_numel if zero_stage == 3 else parameter.numel()
                for name, parameter in learning.items()}
    if sizes != expected:
        other = sorted({name for name, _ in sizes.items() ^ expected.items()})
        raise RunStopped(f"--reshape: the checkpoint was written by another model, {', '.join(other[:3])} differ")
    step = int(next(iter(pieces.values()))[0].state.get("step", 0))
    if zero_stage == 3:
        masters = optimizer.fp32_partitioned_groups_flat
    else:
        masters = [master for group in optimizer.param_groups for master in group["params"]]
    for master in masters:
        count = step if offload and zero_stage > 0 else torch.tensor(float(step))  # DeepSpeedCPUAdam's is a number
        optimizer.state[master] = {"step": count, **{name: torch.zeros_like(master) for name in MOMENTS}}
    if zero_stage in (1, 2):
        lazy_init_hp_params_optimizer_state(list(learning.values()), masters[0], optimizer.state)
    for number, (name, parameter) in enumerate(learning.items()):
        watchdog.progress()
        values = {kind: torch.cat([piece.read(kind) for piece in pieces[name]]) for kind in (MASTER, *MOMENTS)}
        with torch.no_grad():
            if zero_stage == 0:
                put_whole(values, parameter, masters[number], optimizer.state[masters[number]])
            elif zero_stage == 3:
                put_sharded(values, parameter)
            else:
                put_partitioned(values, parameter)


def put_whole(values: Mapping[str, Tensor], parameter: nn.Parameter, master: Tensor, state: dict[str, Tensor]) -> None:
    for target, kind in ((parameter, MASTER), (master, MASTER), *((state[moment], moment) for moment in MOMENTS)):
        target.copy_(values[kind].view_as(target))


def put_partitioned(values: Mapping[str, Tensor], parameter: nn.Parameter) -> None:
    """Each rank takes the part that is its own, and the whole weight."""
    safe_set_full_fp32_param(parameter, values[MASTER])
    for moment in MOMENTS:
        safe_set_full_optimizer_state(parameter, values[moment], moment)
    parameter.copy_(values[MASTER].view_as(parameter))


def put_sharded(values: Mapping[str, Tensor], parameter: nn.Parameter) -> None:
    ranks, rank, size = distributed.world_size(), distributed.rank(), parameter.ds_tensor.numel()
    own = {kind: nn.functional.pad(value, (0, size * ranks - value.numel())).narrow(0, size * rank, size)
           for kind, value in values.items()}
    safe_set_local_fp32_param(parameter, own[MASTER])
    for moment in MOMENTS:
        safe_set_local_optimizer_state(parameter, own[moment], moment)
    with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):
        parameter.copy_(values[MASTER].view_as(parameter))
