"""What a run writes, and shows by its console: metrics, samples, arguments, environment."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.run.console import Console
from utils.run.doctor import Doctor
from utils.run.environment import environment
from utils.run.output_dir import cut_after, json_line, plain, read_jsonl, write_atomically, writing
from utils.run.tracking import start_trackers

# Every training line of metrics.jsonl has these; what an algorithm has no number for (RFT: sft_loss) is 0.0.
TRAINING_FIELDS = {
    "reward": "mean reward of the step's responses",
    "accuracy": "fraction of responses with reward exactly 1",
    "format": "fraction of responses that hold an answer, right or wrong",
    "loss": "what was minimised, mean over the step's updates; null if one of them had a loss that was not finite",
    "pg_loss": "clipped policy-gradient loss per response token (GRPO); near 0 by construction",
    "kl_loss": "k3 estimate of KL(actor || reference) per response token, nats",
    "entropy": "policy entropy per response token, nats",
    "sft_loss": "negative log-likelihood per hint token (sft.py: per solution token), nats; of demonstrations beside "
                "the responses as the script weighs and divides it",
    "grad_norm": "L2 norm of the whole gradient before clipping, mean over the step's updates that were not skipped",
    "skipped_updates": "number of the step's updates that were skipped: loss or gradient norm not finite",
    "lr": "learning rate of the step's last update; one of imitation alone has its own",
    "hint_slices": "mean number of solution slices shown per problem",
    "hint_tokens": "mean number of hint tokens per problem, of its longest hint",
    "whole_hints": "fraction of problems whose hint was the whole solution",
    "response_tokens": "mean number of sampled tokens per response, EOS included",
    "truncated": "fraction of responses cut at the length limit",
    "repeated": "fraction of responses cut at the length limit that repeat themselves (utils/answers.py)",
    "flat_groups": "fraction of groups whose sampled responses all have the same reward: no policy gradient, unless a "
                   "demonstration among them has another",
    "groups_all_right": "fraction of groups of which every response is right",
    "groups_all_wrong": "fraction of groups of which none is (they may differ in format); the others are mixed",
    "common_answer": "fraction of responses with the most common answer, the problem's numbers named by their places",
    "logprob_mismatch": "mean |engine log-prob - actor log-prob| of sampled tokens right after a sync, nats",
    "tokens_per_second": "sampled tokens (those that are trained on) per second of rollout, all ranks together",
    "seconds/sync": "seconds: actor's weights to the engine",
    "seconds/rollout": "seconds: sampling the responses",
    "seconds/reward": "seconds: verifying the responses",
    "seconds/logprobs": "seconds: old and reference log-probs",
    "seconds/update": "seconds: forward, backward and optimiser",
    "seconds/slowest_rank": "seconds of rollout and reward, on the rank that took longest",
    "seconds/mean_rank": "the same, mean over the ranks",
    "slowest_rank": "that rank",
    "memory_gib": "resident memory of the first process, GiB",
}
MORE_FIELDS = {  # of the scripts that know them; N is a number
    "prompt_tokens": "mean number of prompt tokens per problem, without the hint",
    "hint_share": "mean share of the solution's characters shown per problem, 0 to 1",
    "accuracy/slices_N": "fraction right of the responses to which N slices were shown; left out where there are none",
    "rollouts/slices_N": "number of these responses",
    "accuracy/hinted": "fraction right of the responses that go on from a hint which is counted in tokens",
    "rollouts/hinted": "number of these responses",
    "tokens/sampled": "number of tokens sampled, of groups too that were sampled anew",
    "tokens/response": "number of sampled tokens in the step's updates",
    "tokens/hint": "number of hint tokens there, whether a loss has them or not, once for a group; sft.py: of its "
                   "demonstrations",
    "tokens/demonstration": "number of tokens of demonstrations beside the responses there",
    "hint_low": "smallest share of its solution that a problem may be shown: running mean over the steps' problems",
    "hint_high": "the largest, likewise",
    "hint_p": "probability of a slice of its solution to be shown, likewise",
    "problems_met": "number of training problems met so far",
    # These: root mean square over the step's updates that were not skipped, before clipping; metrics.StateGradients.
    "state_grad_norm/hint": "L2 norm of the gradient of the loss with respect to the states that enter the LM head to "
                            "predict hint tokens: of sft_coef * sft_loss alone, if they have no pg_loss",
    "state_grad_norm/response": "the same for response tokens: of pg_loss with the KL and entropy terms",
    "state_grad_norm/demonstration": "the same for tokens of demonstrations beside the responses",
    "demonstration_loss": "loss of the tokens of demonstrations beside the responses, other than their sft_loss",
    "teacher_advantage": "mean over response tokens of log p_teacher - log p_policy: minus the divergence from the "
                         "teacher, who was shown solutions",
    "teacher_share": "mean share of the solution's characters that the teacher was shown",
    "gated": "fraction of problems of which the demonstration alone was trained on, for lack of right responses",
    "flat_groups_at_first": "flat_groups before other problems were sampled in their place",
    "refill_rounds": "number of times that other problems were sampled in the place of some",
    "waiting": "number of problems that wait to be imitated, after the step: no response was right when they were met",
    "imitated": "number of those that were imitated in the step; sft_loss is theirs",
    "mu": "weight of sft_loss; that of pg_loss is 1 - mu",
    "right_loss": "the part of pg_loss that is of right responses",
    "wrong_loss": "the part of pg_loss that is of the others",
    "verifier_timeouts": "number of responses whose verifier ran out of time, crashed or raised",
    "logprob_mismatch_max": "the largest of the differences that logprob_mismatch is the mean of, nats",
    "engine_ratio": "mean importance weight of the response tokens against the engine (--old_logprobs engine)",
    "engine_ratio_capped": "fraction of them above --max_engine_ratio",
    "engine_ratio_max": "the largest of them",
}


def depends_on_machine(name: str) -> bool:
    """Whether a metric says how fast or large things were: the others are the same on every run."""
    return name.startswith("seconds/") or name in ("tokens_per_second", "slowest_rank", "memory_gib")


def resident_gib() -> float:
    """Memory of this process that is in RAM (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


class Logger:
    """A run's files and console. Only the main rank writes and prints; on the others every call does nothing.

    `resume_step` N continues an earlier run's files: lines of steps after N are removed, new ones appended; args.json
    and environment.json get companions (args.resumed_at_N.json). Without it the files start empty. NaN becomes null.
    The trackers that `args` names get the lines of metrics.jsonl and samples.jsonl after they are written.
    """

    def __init__(
        self, output_dir: str | Path, args: Any, is_main: bool, total_steps: int, resume_step: int | None = None
    ) -> None:
        self.is_main = is_main
        self.evaluated = -1  # step of the last evaluation; of a resumed run the main rank alone knows it at first
        if not is_main:
            return
        output_dir = Path(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        suffix, mode = ("", "w") if resume_step is None else (f".resumed_at_{resume_step}", "a")
        settings = dataclasses.asdict(args) if dataclasses.is_dataclass(args) else args
        for name, content in (("args", settings), ("environment", environment())):
            path = output_dir / f"{name}{suffix}.json"
            with writing(path):
                write_atomically(path, json.dumps(plain(content), indent=2) + "\n")
        self.files = {}
        for name in ("metrics", "samples"):
            path = output_dir / f"{name}.jsonl"
            with writing(path):
                if resume_step is not None:
                    cut_after(path, resume_step)
                self.files[name] = path.open(mode, encoding="utf-8", errors="backslashreplace")
        known = [] if resume_step is None else read_jsonl(output_dir / "metrics.jsonl")
        self.doctor = Doctor(known)
        evaluations = [line for line in known if "eval/accuracy" in line]
        self.evaluated = max((line["step"] for line in evaluations), default=-1)
        self.console = Console(total_steps, resume_step or 0, settings.get("verbosity", "normal"), evaluations)
        names = settings.get("tracker", ())
        self.trackers = start_trackers(names, output_dir, plain(settings), resume_step, self.print)

    def log_training(self, step: int, metrics: dict[str, Any]) -> None:
        """A line with all TRAINING_FIELDS (0.0 where `metrics` lacks one) and whatever else is given."""
        if not self.is_main:
            return
        metrics = {"memory_gib": resident_gib()} | metrics
        line = {"step": step} | dict.fromkeys(TRAINING_FIELDS, 0.0) | metrics
        self._write("metrics", line)
        self.console.step(step, plain(metrics))
        message = self.doctor.see(plain(line))
        if message is not None:
            self.print(f"step {step}: {message}")

    def log_evaluation(self, step: int, metrics: dict[str, Any]) -> None:
        """One line; the names are eval/..."""
        self.evaluated = step
        self._write("metrics", {"step": step} | metrics)
        if self.is_main:
            self.console.evaluation(step, plain(metrics))

    def log_samples(self, step: int, samples: Sequence[Mapping[str, Any]], kind: str) -> None:
        """A line in samples.jsonl for each, of which the first is also printed."""
        for number, sample in enumerate(samples):
            self.log_sample(step, **sample, kind=kind, is_shown=number == 0)

    def log_sample(
        self, step: int, prompt: str, hint: str, response: str, reward: float, reason: str, kind: str = "evaluation",
        is_shown: bool = True, **more: Any
    ) -> None:
        """One line in samples.jsonl."""
        texts = {"prompt": prompt, "hint": hint, "response": response}
        self._write("samples", {"step": step, "kind": kind} | texts | {"reward": reward, "reason": reason} | more)
        if self.is_main and is_shown:
            self.console.sample(step, kind, texts, reward, reason)

    def print(self, message: str) -> None:
        """What must be seen."""
        if self.is_main:
            self.console.print(message)

    def note(self, message: str) -> None:
        """What is good to know."""
        if self.is_main:
            self.console.note(message)

    def close(self) -> None:
        if self.is_main:
            self.console.close()
            for file in self.files.values():
                file.close()
            for tracker in self.trackers:
                tracker.end()
            for tracker in self.trackers:
                tracker.close()

    def _write(self, name: str, entry: dict) -> None:
        if self.is_main:
            with writing(Path(self.files[name].name)):
                self.files[name].write(json_line(entry))
                self.files[name].flush()
            for tracker in self.trackers:
                (tracker.log if name == "metrics" else tracker.sample)(plain(entry))

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
