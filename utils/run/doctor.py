"""Doctor: what is wrong with a run, and what to try; from the lines of metrics.jsonl alone, at most one line at a time.

Numbers are medians of 10 training lines, so that one odd step says nothing: `now` the last ten (three are enough),
`before` earlier tens. The first finding of this table counts, causes before what follows from them:

    finding   when; why this threshold

    mismatch  logprob_mismatch over .01 and over 3 times that of the first ten; float32 stays below 1e-5, bfloat16 at
              .01 to .05 all along, and a run is stopped at .1
    cut       truncated over .5; half the step is spent on responses that can hardly be right
    longer    truncated over .2, and .1 more than in the first ten; a few long responses are normal, a trend is not
    hacking   format over .8, accuracy under .3, common_answer over .6; a healthy run has .04 to .1 of one pattern
    blind     teacher_share under .5: one who reads less than half of a solution has little to tell
    flat      flat_groups over .9, but not while hints make most responses right, as they do at first; with 1 group in
              10 that differs, a step is worth a tenth. Where demonstrations beside the responses have a gradient, they
              teach in groups that are all wrong: there it counts if groups_all_right is over .9, or if after fifty
              steps accuracy is where it was in the first ten. Never where a teacher teaches, instead of rewards
    entropy   under a tenth of the highest ten, with no more hints than then, and accuracy under .9; a healthy run
              falls to a half, and one that has solved its task may fall to nothing
    kl        kl_loss over 1 nat, and over 1.5 times the ten before; a healthy run ends at .3, single steps reach 2
    slow      tokens per second of whole steps under 40 % of the best ten whose responses were half to twice as long;
              another program on the machine costs 20 to 50 % for a while
    memory    memory_gib over twice that of the second ten and 2 GiB more, and still rising; shapes that were not seen
              before take a healthy run from 1.2 to 1.8 in 220 steps
    rank      the same rank is the slowest in 16 of 20 steps, and takes 1.3 times the mean; of two equal ranks one is so
              in 1 of 80 windows, and lengths of responses make 1.02 to 1.06
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

WINDOW, FEWEST = 10, 3  # training lines
IMITATION = 5  # tens of lines in which demonstrations alone may teach
PAUSE = 20  # steps between two lines
SAME = 100  # steps until a finding is told again
HISTORY = 1_000  # training lines that are remembered

Line = Mapping[str, Any]


def diagnose(lines: Sequence[Line]) -> str | None:
    """What is wrong after the last of these lines of metrics.jsonl, and what to try, in one line; None: nothing is."""
    finding = _first_finding([line for line in lines if "loss" in line])
    return finding and finding[1]


def diagnoses(lines: Sequence[Line]) -> list[tuple[int, str]]:
    """(step, line) of all that a console said in the course of a run."""
    doctor = Doctor()
    return [(line["step"], said) for line in lines if (said := doctor.see(line)) is not None]


class Doctor:
    """Sees lines as they come, and does not repeat itself: see PAUSE and SAME. `lines` are those of before a resume."""

    def __init__(self, lines: Iterable[Line] = ()) -> None:
        self.lines: list[Line] = []
        self.last = -math.inf
        self.told: dict[str, int] = {}
        for line in lines:
            self.see(line)

    def see(self, line: Line) -> str | None:
        """A line of metrics.jsonl; what is to be said now."""
        if "loss" not in line:
            return None
        self.lines = [*self.lines[1 - HISTORY :], line]
        step = line["step"]
        if step - self.last < PAUSE:
            return None
        finding = _first_finding(self.lines)
        if finding is None or step - self.told.get(finding[0], -math.inf) < SAME:
            return None
        self.last = self.told[finding[0]] = step
        return finding[1]


class _Tens:
    """Medians of a metric over the last ten training lines and over the tens before."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.now_lines = lines[-WINDOW:]
        # Fewer than ten at the start belong to none.
        ends = range(len(lines) - WINDOW, WINDOW - 1, -WINDOW)
        self.before_lines = [lines[end - WINDOW : end] for end in reversed(ends)]

    def now(self, name: str) -> float:
        return _median(self.now_lines, name)

    def before(self, name: str) -> list[float]:
        return [_median(ten, name) for ten in self.before_lines]

    def know(self, name: str) -> bool:
        return any(name in line for line in self.now_lines)


def _median(lines: Sequence[Line], name: str) -> float:
    """0 where no line has a number of that name."""
    values = [line[name] for line in lines if isinstance(line.get(name), int | float) and math.isfinite(line[name])]
    return median(values) if values else 0.0


def _first_finding(lines: Sequence[Line]) -> tuple[str, str] | None:
    """(its name, the line that tells it)."""
    if len(lines) < FEWEST:
        return None
    tens = _Tens(lines)
    for name, rule in RULES.items():
        said = rule(tens)
        if said is not None:
            return name, said
    return None


def _mismatch(tens: _Tens) -> str | None:
    now, before = tens.now("logprob_mismatch"), tens.before("logprob_mismatch")
    if not (before and now > 0.01 and now > 3 * before[0]):
        return None
    return (f"logprob_mismatch grows, from {before[0]:.2g} to {now:.2g} nats: the engine samples less and less from "
            "the policy that is trained; try --engine torch, --dtype float32, a lower --lr, or --old_logprobs engine")


def _cut(tens: _Tens) -> str | None:
    cut = tens.now("truncated")
    if not cut > 0.5:
        return None
    start, repeats = f"{cut:.0%} of the responses are cut at the length limit", tens.now("repeated") / cut
    hints = ""
    if tens.now("hint_tokens") > 0:
        whole = tens.now("whole_hints")
        hints = f"; hints show no end ({whole:.0%} reach that of a solution, none that of an answer)"
    if repeats > 0.5:
        return (f"{start}, and {repeats:.0%} of these repeat themselves: a longer limit will not help{hints}; teach "
                "the end first (training/sft.py), or lower --lr if they did end before")
    if cut > 0.95:
        return (f"{start}, hardly one ends: look at samples.jsonl; in mid-reasoning, raise --max_response_length, else "
                f"the model does not know an end{hints}: teach it first (training/sft.py)")
    return f"{start}, the others end: raise --max_response_length"


def _longer(tens: _Tens) -> str | None:
    cut, before = tens.now("truncated"), tens.before("truncated")
    if not (before and cut > 0.2 and cut > before[0] + 0.1):
        return None
    repeats = tens.now("repeated") / cut
    advice = ("raise --max_response_length" if repeats < 0.5 else
              f"{repeats:.0%} of these repeat themselves, so lower --lr or raise --kl_coef")
    return f"more and more responses are cut at the length limit, {cut:.0%} after {before[0]:.0%}: {advice}"


def _hacking(tens: _Tens) -> str | None:
    common, right = tens.now("common_answer"), tens.now("accuracy")
    if not (tens.now("format") > 0.8 and right < 0.3 and common > 0.6):
        return None
    return (f"{common:.0%} of the responses give one and the same answer (or pattern of the problem's numbers), "
            f"{right:.0%} are right: it is the format that is rewarded; show more hints, do SFT first, or let the "
            "verifier give nothing for a wrong answer")


def _blind(tens: _Tens) -> str | None:
    share = tens.now("teacher_share")
    if not tens.know("teacher_share") or share >= 0.5:
        return None
    return f"the teacher reads {share:.0%} of the solutions, for lack of room: raise --max_prompt_length"


def _flat(tens: _Tens) -> str | None:
    flat, right, answered, hints = map(tens.now, ("flat_groups", "accuracy", "format", "hint_tokens"))
    if not flat > 0.9 or right > 0.5 and hints > 0 or tens.know("teacher_share"):
        return None
    if tens.now("state_grad_norm/demonstration") > 0 and not tens.now("groups_all_right") > 0.9:
        before = tens.before("accuracy")
        if len(before) < IMITATION or right > before[0] + 0.02:
            return None
        return (f"{flat:.0%} of the groups have equal rewards, so that demonstrations alone teach, and {right:.0%} of "
                f"the responses are right, after {before[0]:.0%}: do SFT first (training/sft.py), raise --lr or "
                "--group_size, or take easier problems")
    if answered < 0.5:
        why = f"{1 - answered:.0%} of the responses hold no answer; show more hints, or do SFT first"
    elif right > 0.9:
        why = f"{right:.0%} of the responses are right; the problems are too easy to teach more"
    elif right < 0.1:
        why = f"{right:.0%} of the responses are right; show more hints, raise --group_size or take easier problems"
    else:
        why = (f"{right:.0%} of the responses are right, each problem always or never; raise --temperature or "
               "--group_size")
    return f"{flat:.0%} of the groups have equal rewards, hence almost no policy gradient: {why}"


def _entropy(tens: _Tens) -> str | None:
    now, before = tens.now("entropy"), tens.before("entropy")
    highest = max(before, default=0.0)
    if not 0 < now < highest / 10 or tens.now("accuracy") >= 0.9:
        return None
    if tens.now("hint_tokens") > tens.before("hint_tokens")[before.index(highest)]:
        return None
    return (f"entropy has collapsed, from {highest:.2g} to {now:.2g} nats a token: the model tries nothing new; raise "
            "--entropy_coef or --temperature, or lower --lr")


def _kl(tens: _Tens) -> str | None:
    now, before = tens.now("kl_loss"), tens.before("kl_loss")
    if not (before and now > 1 and now > 1.5 * before[-1]):
        return None
    return (f"kl_loss grows, from {before[-1]:.2g} to {now:.2g} nats a token: the model leaves its reference; raise "
            "--kl_coef or lower --lr")


def _slow(tens: _Tens) -> str | None:
    def rate(lines: Sequence[Line]) -> float:
        speeds = [(line.get("response_tokens") or 1) / seconds for line in lines if (seconds := _seconds(line)) > 0]
        return median(speeds) if speeds else 0.0

    now, length = rate(tens.now_lines), tens.now("response_tokens")
    alike = [ten for ten in tens.before_lines if length / 2 <= _median(ten, "response_tokens") <= 2 * length]
    best = max(map(rate, alike), default=0.0)
    if not now < 0.4 * best:
        return None
    phase = max(("sync", "rollout", "reward", "logprobs", "update"),
                key=lambda name: tens.now(f"seconds/{name}") - _median(alike[-1], f"seconds/{name}"))
    return (f"steps take {best / now:.1f} times as long a token as they did, most in {phase}: look for other "
            "programs on the machine, a hot or throttled processor, a slow disk")


def _seconds(line: Line) -> float:
    """Of a whole step."""
    return sum(value or 0 for name, value in line.items()
               if name.startswith("seconds/") and not name.endswith("_rank"))


def _memory(tens: _Tens) -> str | None:
    now, before = tens.now("memory_gib"), tens.before("memory_gib")
    if not (len(before) > 1 and now > 2 * before[1] and now > before[1] + 2 and now > before[-1]):
        return None
    return (f"the first process holds {now:.1f} GiB, after {before[1]:.1f}, and more at each step: save often "
            "(--save_every) and go on with --resume before memory ends; a verifier may keep what it is given")


def _rank(tens: _Tens) -> str | None:
    lines = [*(tens.before_lines[-1] if tens.before_lines else ()), *tens.now_lines]
    if len(lines) < 2 * WINDOW:
        return None
    number, times = Counter(line.get("slowest_rank") for line in lines).most_common(1)[0]
    slowest, mean = tens.now("seconds/slowest_rank"), tens.now("seconds/mean_rank")
    if not (times >= 16 and slowest > 1.3 * mean > 0):
        return None
    return (f"rank {number:.0f} takes {slowest / mean:.1f} times the ranks' mean to sample and verify, step after "
            "step, and the others wait: look at its GPU or machine (clock, heat, other programs)")


RULES = {
    "mismatch": _mismatch, "cut": _cut, "longer": _longer, "hacking": _hacking, "blind": _blind, "flat": _flat,
    "entropy": _entropy, "kl": _kl, "slow": _slow, "memory": _memory, "rank": _rank,
}
