"""What a run will do, checked before a model loads: data, batch sizes and checkpoint."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from utils import checkpoint
from utils.actor import Actor
from utils.adapters import Lora, LoraFlags, num_learning
from utils.data import fingerprint
from utils.problem_state import ProblemState
from utils.prompts import PromptBuilder
from utils.run import distributed, stopping
from utils.run.errors import check_ranges, require, require_divides
from utils.run.logger import Logger
from utils.run.output_dir import check_output_dir
from utils.saver import Saver
from utils.setup.inputs import Inputs, check_demonstration_lengths, load_inputs
from utils.setup.own_flags import OwnFlags, own_data
from utils.setup.profile import profiled_steps, start_profile
from utils.setup.references import judge_references
from utils.setup.words import of_a_step, of_the_machine, print_plan, weight_bytes
from utils.types import LongestGroup, Problem, Sampling


class Flags(OwnFlags, LoraFlags, Protocol):
    """The flags that a plan reads, which every training script has."""

    model: str
    data: str
    output_dir: str
    node_local_output: bool
    total_steps: int
    eval_every: int
    eval_problems: int
    resume: bool
    resume_step: int
    allow_changes: bool
    reshape: bool
    overwrite: bool
    check: bool
    prompts_per_step: int
    mini_batch_prompts: int
    max_prompt_length: int
    max_response_length: int
    skip_long_prompts: bool
    bos: bool
    chat_template: str
    system_prompt: str
    think: bool
    max_tokens_per_micro_batch: int
    zero_stage: int
    offload: bool
    gradient_checkpointing: bool
    dtype: str
    engine: str
    kv_cache_gb: float
    free_replica: bool
    engine_memory_fraction: float
    sleep_level: int
    tp_size: int
    tracker: tuple[str, ...]
    profile_steps: str
    probe_memory: str
    save_minutes: float
    keep_last: int
    keep_every: int
    background_save: bool


@dataclass(frozen=True)
class Plan:
    """A checked run. `problems` are those of training, `run` what a resumed run must have in common with it, `start`
    the updates that are done, `changes` what differs from the checkpoint by --allow_changes or --reshape,
    `num_adapted` the parameters of adapters, `state` what the run keeps of each training problem, if it does."""

    flags: Flags
    longest: LongestGroup
    inputs: Inputs
    problems: list[Problem]
    has_reference: bool
    run: Mapping[str, Any]
    start: int
    changes: Sequence[str]
    num_adapted: int
    state: ProblemState | None = None

    @property
    def lora(self) -> Lora | None:
        return Lora.of(self.flags)

    @property
    def prompts(self) -> PromptBuilder:
        return self.inputs.prompts

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.inputs.tokenizer

    @property
    def test_problems(self) -> list[Problem]:
        return self.inputs.test_problems

    @property
    def engine(self) -> str:
        return self.inputs.engine

    @property
    def num_updates(self) -> int:
        """Of the optimiser, in a step."""
        return self.flags.prompts_per_step // self.flags.mini_batch_prompts

    @property
    def most_response_tokens(self) -> int:
        """Of a mini-batch, on all processes, where all responses are as long as allowed."""
        return self.flags.mini_batch_prompts * self.longest.responses * self.longest.response

    @property
    def most_tokens(self) -> int:
        """The same with the demonstrations beside the responses."""
        longest = self.longest
        return self.flags.mini_batch_prompts * (longest.responses * longest.response + longest.demonstration)

    @property
    def greedy(self) -> Sampling:
        """How an evaluation samples."""
        return Sampling(1, self.flags.max_response_length, temperature=0.0)

    def steps(self) -> Iterator[int]:
        """Updates done so far, at each turn of the loop; the last turn only evaluates and saves. A run that was asked
        to stop goes no further."""
        for num_done in range(self.start, self.flags.total_steps + 1):
            stopping.begin_step(num_done)
            yield num_done

    def restore(self, actor: Actor) -> None:
        """--overwrite clears the output folder, --resume loads the checkpoint."""
        if self.flags.overwrite:
            checkpoint.clear(self.flags.output_dir)
        if self.flags.resume:
            checkpoint.load(self.flags.output_dir, self.start, actor, self.state, self.flags.reshape)
            checkpoint.complete(self.flags.output_dir, self.start, actor, self.tokenizer)

    def saver(self, actor: Actor, logger: Logger) -> Saver:
        """From here on a signal to stop is heeded: called after the libraries that set handlers of their own."""
        flags = self.flags
        return Saver(flags.output_dir, actor, self.tokenizer, self.run, logger, flags.keep_last, flags.keep_every,
                     flags.save_minutes, flags.background_save, flags.total_steps,
                     saved=self.start if flags.resume else -1, state=self.state)

    def open_logger(self) -> Logger:
        """The run's logger, which has told what the run begins with. --profile_steps is prepared."""
        logger = Logger(self.flags.output_dir, self.flags, distributed.is_main(), self.flags.total_steps,
                        self.start if self.flags.resume else None)
        logger.evaluated = int(distributed.maximum(logger.evaluated))
        num_long, (flag, length) = len(self.inputs.problems) - len(self.problems), demonstration_limit(self.longest)
        if num_long:
            logger.print(f"{num_long} demonstrations are longer than {flag} {length} and left out")
        if self.longest.demonstration:
            logger.print(judge_references(self.problems, self.prompts, together=True))
        logger.note(self.inputs.notes)
        if self.changes:
            logger.print("resumed with changes: " + "; ".join(self.changes))
        start_profile(self.flags.profile_steps, self.flags.total_steps, self.flags.output_dir, self.flags.dtype,
                      self.inputs.shape, logger)
        return logger

    def print(self, title: str) -> None:
        """For --check: the plan in words, from the first process."""
        print_plan(title, self.inputs, of_a_step(self) | of_the_machine(self))


def make_plan(
    flags: Flags, longest: LongestGroup, *, needs: Sequence[str] = (), temperature: float = 1.0,
    has_reference: bool = False, keeps: Mapping[str, float] | None = None,
) -> Plan:
    """Check all that can be wrong before a model loads. `needs` names what every training problem must have, "hint" or
    "answer", which demonstrations beside responses need anyway; `temperature` is that of sampling; `keeps` names the
    numbers that the run keeps of each of them, with the values they begin with (problem_state.py).

    Raises:
        BadInput: the flag, its value and the rule.
    """
    check_ranges(flags)
    profiled_steps(flags.profile_steps, flags.total_steps)
    distributed.set_node_local(flags.node_local_output)
    require(not (flags.reshape and flags.node_local_output), "--reshape", True,
            "needs all of a state in one folder: not with --node_local_output")
    weight_bytes(flags.dtype)  # raises where a GPU has no such type
    inputs = load_inputs(
        model=flags.model, data=flags.data, splits=("train", "test"), max_prompt_length=flags.max_prompt_length,
        max_response_length=flags.max_response_length, eval_problems=flags.eval_problems,
        skip_long_prompts=flags.skip_long_prompts, bos=flags.bos, may_be_unreachable=flags.check, engine=flags.engine,
        engine_memory_fraction=flags.engine_memory_fraction, tp_size=flags.tp_size, sleep_level=flags.sleep_level,
        temperature=temperature, needs=(*needs, *["answer"] * (longest.demonstration > 0)), trackers=flags.tracker,
        max_length=0 if longest.responses else longest.prefix, chat_template=flags.chat_template,
        system_prompt=flags.system_prompt, think=flags.think, own_data=own_data(flags),
        max_demonstration_length=longest.demonstration,
    )
    num_adapted = num_learning(flags.model, Lora.of(flags)) if flags.lora_rank and inputs.tokenizer is not None else 0
    problems, longest_is = inputs.problems, "--max_prompt_length + --group_size * --max_response_length"
    if longest.demonstration:
        longest_is = (f"--max_prompt_length + {longest.responses} responses of --max_response_length + "
                      "--max_demonstration_length")
    elif longest.solo:
        longest_is = f"--max_prompt_length + {longest.responses - longest.solo} responses of --max_response_length"
    elif not longest.responses:
        longest_is = "--max_length"
    if inputs.prompts is not None and (longest.demonstration or not longest.responses):
        flag, length = demonstration_limit(longest)
        problems, _ = check_demonstration_lengths(problems, inputs.prompts, length, flag, not longest.demonstration)
    check_batch(flags, longest, longest_is, len(problems))
    check_output_dir(flags.output_dir, flags.resume, flags.overwrite)
    chat = inputs.prompts and inputs.prompts.chat
    settings = vars(flags) | ({"chat_template": chat.fingerprint} if chat else {})
    fingerprints = {"train": fingerprint(inputs.problems), "test": fingerprint(inputs.test_problems)}
    run = checkpoint.describe_run(settings, fingerprints)
    start, changes = checkpoint.find(flags.output_dir, flags.resume, flags.resume_step, flags.total_steps, run,
                                     flags.allow_changes, flags.reshape)
    state = ProblemState(keeps) if keeps else None
    return Plan(flags, longest, inputs, problems, has_reference, run, start, changes, num_adapted, state)


def demonstration_limit(longest: LongestGroup) -> tuple[str, int]:
    """The flag that says how long a demonstration may be, beside responses or by itself; and its value."""
    if longest.demonstration:
        return "--max_demonstration_length", longest.demonstration
    return "--max_length", longest.prefix


def check_batch(flags: Flags, longest: LongestGroup, longest_is: str, num_problems: int) -> None:
    """Raises BadInput where a step cannot be divided into mini-batches, ranks and micro-batches. `longest_is` says in
    flags how the tokens of the longest group come about."""
    require(flags.prompts_per_step <= num_problems, "--prompts_per_step", flags.prompts_per_step,
            f"is more than the {num_problems} training problems")
    require_divides("--mini_batch_prompts", flags.mini_batch_prompts, "--prompts_per_step", flags.prompts_per_step)
    require(flags.mini_batch_prompts % distributed.world_size() == 0, "--mini_batch_prompts", flags.mini_batch_prompts,
            f"must be a multiple of the number of processes, {distributed.world_size()}")
    require(flags.max_tokens_per_micro_batch >= longest.tokens, "--max_tokens_per_micro_batch",
            flags.max_tokens_per_micro_batch, f"must hold {longest_is} = {longest.tokens} tokens")
