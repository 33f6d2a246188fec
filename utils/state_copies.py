"""What DeepSpeed would write of a checkpoint, kept in CPU memory instead."""

from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine

StateFile = tuple[Any, str]  # what torch.save takes: contents, path


def copied(item: Any) -> Any:
    """With all tensors in it copied to the CPU, each to a storage of its own; what else may change is copied too."""
    if torch.is_tensor(item):
        return item.detach().to("cpu", copy=True)
    if isinstance(item, dict):
        return type(item)((key, copied(value)) for key, value in item.items())
    if type(item) in (list, tuple):  # not torch.Size
        return type(item)(map(copied, item))
    return item


class Copies(CheckpointEngine):
    """Takes the place of a DeepSpeed engine's while it saves; `files` are what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[StateFile] = []

    def save(self, state_dict: Any, path: str) -> None:
        self.files.append((copied(state_dict), path))

    def preserves_storage_sharing(self) -> bool:
        """False: no second copy is made."""
        return False

    def create(self, info: CheckpointCommitInfo) -> None:
        pass

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True

    def load(self, path: str, map_location: Any = None) -> Any:
        raise NotImplementedError
