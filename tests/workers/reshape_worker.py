"""Started by test_reshape.py, on one process and on two: actors that learn and are saved, and others, cut otherwise,
that are restored from that. Writes what it measured, judges nothing.

    deepspeed --num_gpus 2 tests/workers/reshape_worker.py FOLDER save|load_1|load_2 ...

FOLDER/1 has what one process has saved, FOLDER/2 what two have. `load_1` restores what one has saved, in actors of
other cases than those that saved it.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

from tests.workers.cases import run_cases
from tests.workers.skip_worker import make_actor, update
from tests.workers.state_worker import deepspeed_config, with_config
from tests.workers.zero_worker import LEARNING_RATES, Case
from utils.actor import Actor
from utils.run import distributed

BFLOAT16 = torch.bfloat16
GROUPS = {
    "float32": [Case("stage0", 0), Case("stage2", 2), Case("stage3-parts", 3)],
    "bfloat16": [Case("stage0", 0, dtype=BFLOAT16), Case("stage1", 1, dtype=BFLOAT16),
                 Case("stage2-offload", 2, offload=True, dtype=BFLOAT16)],
    "adapters": [Case("stage1", 1, dtype=BFLOAT16, has_adapters=True),
                 Case("stage3", 3, dtype=BFLOAT16, has_adapters=True)],
}
FURTHER = {(1, 2): 1, (2, 2): -1}  # processes before and now: which of a group's cases is restored
FOLDERS: list[Path] = []  # the one of the command line


@dataclass(frozen=True)
class Job:
    """Of a group, for run_cases."""

    name: str


def made(case: Case) -> Actor:
    if case.name != "stage3-parts":
        return make_actor(case)
    zero = deepspeed_config(case.stage, case.dtype, 1.0, case.offload)["zero_optimization"]
    return with_config(case, zero_optimization=zero | {"sub_group_size": 3000})


def full_states(actor: Actor) -> dict[str, dict[str, torch.Tensor]]:
    """{name: {weight, master, moments, step}} by DeepSpeed's getters, or from the optimiser where nothing is cut."""
    found, states = {}, list(actor.optimizer.state.items())
    learning = [(name, one) for name, one in actor.policy.named_parameters() if one.requires_grad]
    for number, (name, parameter) in enumerate(learning):
        with deepspeed.zero.GatheredParameters(parameter, enabled=actor.zero_stage == 3):
            weight = parameter.detach().clone()
        if actor.zero_stage == 0:
            master, state = states[number]
            values = {"master": master.detach(), **{moment: state[moment] for moment in ("exp_avg", "exp_avg_sq")}}
        else:
            values = {"master": safe_get_full_fp32_param(parameter),
                      **{moment: safe_get_full_optimizer_state(parameter, moment)
                         for moment in ("exp_avg", "exp_avg_sq")}}
        values["step"] = torch.tensor(float(states[-1][1]["step"]))
        found[name] = {"weight": weight, **{kind: value.reshape(weight.shape) if value.dim() else value
                                            for kind, value in values.items()}}
        found[name] = {kind: value.detach().clone() for kind, value in found[name].items()}
    return found


def save(group: str, case: Case) -> dict:
    """Two updates, the state, and one more."""
    actor, rate = made(case), LEARNING_RATES[case.dtype][0]
    for number in (0, 1):
        update(actor, number, rate)
    folder = FOLDERS[0] / str(distributed.world_size()) / group / case.name
    actor.save(folder)
    before = full_states(actor)
    norm = update(actor, 1, rate)
    if distributed.is_main():
        torch.save({"before": before, "after": full_states(actor), "norm": norm}, folder / "expected.pt")
    elif actor.zero_stage:
        full_states(actor)  # a collective
    distributed.barrier()
    return {}


def load(group: str, number: int, processes: int) -> dict:
    """The state of another case of the group, which `processes` have saved, in an actor of case `number`."""
    cases = GROUPS[group]
    case, old = cases[number], cases[(number + FURTHER[processes, distributed.world_size()]) % len(cases)]
    folder = FOLDERS[0] / str(processes) / group / old.name
    expected = torch.load(folder / "expected.pt")
    actor = made(case)
    actor.load(folder, reshape=True)
    restored = full_states(actor)
    norm = update(actor, 1, LEARNING_RATES[case.dtype][0])
    after = full_states(actor)
    return {
        "from": f"{old.name} on {processes}", "to": f"{case.name} on {distributed.world_size()}",
        "differ": [f"{name} {kind}" for name, values in expected["before"].items() for kind, value in values.items()
                   if not torch.equal(value, restored[name][kind])],
        "same_names": list(restored) == list(expected["before"]),
        "norms": [norm, expected["norm"]],
        "update": distance(expected["after"], restored), "apart": distance(expected["after"], after),
    }


def distance(one: dict, other: dict) -> float:
    """L2, of all master copies."""
    return sum((values["master"] - other[name]["master"]).square().sum().item() for name, values in one.items())**0.5


def run(job: Job) -> list[dict]:
    what, _, processes = job.name.partition("_")
    if what == "save":
        return [save(group, case) for group, cases in GROUPS.items() for case in cases]
    return [{"group": group} | load(group, number, int(processes))
            for group, cases in GROUPS.items() for number in range(len(cases))]


if __name__ == "__main__":
    run_cases([Job("save"), Job("load_1"), Job("load_2")], run, lambda folder: FOLDERS.append(Path(folder)))
