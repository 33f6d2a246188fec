"""What the verifier says of the references: a method that rewards its demonstrations trains against a wrong one."""

from collections import Counter
from collections.abc import Sequence

from rewards import score_all
from utils.prompts import PromptBuilder
from utils.rollouts import completion_text
from utils.run import distributed, watchdog
from utils.types import Problem

MOST = 1000  # problems that are judged, spread evenly: a verifier may need seconds for some


def judge_references(problems: Sequence[Problem], prompts: PromptBuilder, together: bool) -> str:
    """The share of demonstrations that the verifier judges right, in words; a warning with its reasons where it is not
    all. What is judged is what the model is shown, decoded as a response is. `together`: all ranks call, and share the
    work."""
    chosen = list(problems[:: -(-len(problems) // MOST)])
    mine = distributed.share(chosen) if together else chosen
    rollouts = [prompts.demonstrate(prompts.build(problem)) for problem in mine]
    scores = score_all([(one.prompt.problem.data_source, completion_text(one, prompts.tokenizer),
                         one.prompt.problem.ground_truth) for one in rollouts], watchdog.progress)
    reasons = [score.reason for score in scores if not score.correct]
    wrong = Counter(sum(distributed.gather([reasons]), []) if together else reasons)
    share = f"the verifier judges {1 - wrong.total() / len(chosen):.1%} of {len(chosen)} references right"
    if not wrong:
        return share
    counts = ", ".join(f"{reason} {count}" for reason, count in sorted(wrong.items()))
    return f"warning: {share}; {wrong.total()} are not ({counts}): what is judged wrong has a lower reward"
