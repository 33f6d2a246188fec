"""Groups of a step that teach nothing, and the problems that take their places."""

from collections.abc import Iterator, Sequence

from utils import seeding
from utils.data import problems_of_step
from utils.rollouts import Verdict
from utils.run import distributed
from utils.types import Problem


def further_problems(problems: list[Problem], step: int, count: int, seed: int) -> Iterator[Problem]:
    """Those that the `count` problems of `step` leave, in an order that depends on (seed, step) alone; then these, and
    all of them again without an end."""
    of_step = problems_of_step(problems, step, count, seed)
    met = {problem.index for problem in of_step}
    order = seeding.generator("refill", seed, step).permutation(len(problems))
    others = [problems[number] for number in order if problems[number].index not in met]
    while True:
        yield from others
        yield from of_step


class Refill:
    """Hands out the problems that are sampled in the place of flat groups, whose rewards are all the same. All ranks
    call together, and the places of all of them are filled in the order of the step's problems: how these are spread
    changes nothing."""

    def __init__(self, problems: list[Problem], step: int, count: int, seed: int):
        self.further = further_problems(problems, step, count, seed)
        self.num_groups = count
        self.num_flat: list[int] = []  # before each round

    def places(self, scores: Sequence[Sequence[Verdict]]) -> dict[int, Problem]:
        """{place: problem} for the flat ones of this rank's groups, by the `scores` of its groups."""
        is_flat = distributed.gather([len({score.reward for score in group}) == 1 for group in scores])
        self.num_flat.append(sum(is_flat))
        drawn = [next(self.further) if flat else None for flat in is_flat]
        return {place: problem for place, problem in enumerate(distributed.share(drawn)) if problem is not None}

    def metrics(self) -> dict[str, float]:
        """Of a step with at least one round: the share of groups that were flat at first, and the number of rounds in
        which some were sampled anew."""
        return {"flat_groups_at_first": self.num_flat[0] / self.num_groups,
                "refill_rounds": float(sum(count > 0 for count in self.num_flat))}
