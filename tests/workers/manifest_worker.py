"""Started by test_checkpoint.py under `deepspeed` on two processes: the actor's states at every ZeRO stage and their
manifest, where the first rank does not see what the other has just written, as on another machine.

    deepspeed --num_gpus 2 tests/workers/manifest_worker.py FOLDER NAME_OF_CASE ...
"""

import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.workers.cases import run_cases
from tests.workers.zero_worker import BETAS, CASES, WEIGHT_DECAY, Case, make_model, of_ranks
from utils import manifest
from utils.actor import Actor
from utils.run import distributed

FOLDER = Path(next(word for word in sys.argv[1:] if not word.startswith("--")))
files_in, hash_of = manifest.files_in, manifest.hash_of


def run(case: Case) -> dict:
    """The files that each rank hashed."""
    folder, hashed = FOLDER / case.name, []
    actor = Actor(make_model(case), betas=BETAS, weight_decay=WEIGHT_DECAY, max_grad_norm=1.0, temperature=1.0,
                  zero_stage=case.stage, offload=False, gradient_checkpointing=False)

    def files_seen(of: Path) -> list[Path]:
        return [path for path in files_in(of) if distributed.rank() == 1 or "_pp_rank_1_" not in path.name]

    def noted(path: Path) -> str:
        hashed.append(path.name)
        return hash_of(path)

    actor.save(folder / "state")
    manifest.files_in, manifest.hash_of = files_seen, noted
    manifest.write_manifest(folder, 3, {"case": asdict(case) | {"dtype": str(case.dtype)}}, manifest.settled(folder))
    manifest.files_in, manifest.hash_of = files_in, hash_of
    distributed.barrier()
    return {"hashed": of_ranks(hashed)}


if __name__ == "__main__":
    run_cases(CASES, run)
