"""The ranks of a run, and the few things they tell each other."""

import os

import torch
import torch.distributed as dist


def rank() -> int:
    """This process's number; before the ranks have met, the one that the launcher gave it."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes; before they have met, how many the launcher started."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    return rank() == 0


_is_node_local = False


def set_node_local(is_node_local: bool) -> None:
    """Whether every machine has an output folder of its own; else all processes share one."""
    global _is_node_local
    _is_node_local = is_node_local


def is_node_local() -> bool:
    return _is_node_local


def keeper() -> int:
    """The first of the processes that have this one's output folder: it makes, renames and removes what they share."""
    return rank() - int(os.environ.get("LOCAL_RANK", "0")) if _is_node_local else 0


def is_keeper() -> bool:
    return rank() == keeper()


def share(items: list) -> list:
    """This rank's items: every world_size-th, so that any prefix of the list is spread evenly."""
    return items[rank()::world_size()]


def _reduce(values: list[float], operation: dist.ReduceOp) -> list[float]:
    if world_size() == 1:
        return values
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, operation)
    return tensor.tolist()


def sums(values: dict[str, float]) -> dict[str, float]:
    """Each value summed over ranks, in double precision. Every rank must give the same names in the same order."""
    return dict(zip(values, _reduce(list(values.values()), dist.ReduceOp.SUM), strict=True))


def maximum(value: float) -> float:
    return maxima([value])[0]


def maxima(values: list[float]) -> list[float]:
    """The largest of each over the ranks."""
    return _reduce(values, dist.ReduceOp.MAX)


def gather(items: list) -> list:
    """The ranks' lists put together, undoing `share`: every rank gets all, in the order before the sharing."""
    if world_size() == 1:
        return items
    parts: list[list] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, items)
    merged: list = [None] * sum(len(part) for part in parts)
    for rank_of_part, part in enumerate(parts):
        merged[rank_of_part::world_size()] = part
    return merged


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()
