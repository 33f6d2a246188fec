"""What a run needs before a model loads: tokenizer and problems, checked against the flags, and the plan in words."""

import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import close_session, constants
from huggingface_hub.utils import get_session
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import PushToHubMixin

from inference.hybrid_engine import EngineName, check_engine, choose_engine, load_generation_config
from utils.checks import BadInput, is_first_process, load_tokenizer, require, require_divides, world_size
from utils.data import fingerprint, load_problems
from utils.memory import SHAPES, Generation, Run, Shape, evaluation_facts, memory_facts, shape_of
from utils.prompts import check_prompt_lengths, printable_prompt
from utils.tracking import check_tracker
from utils.types import Problem
from utils.zero import resolve_dtype


@dataclass(frozen=True)
class Inputs:
    """Checked inputs of a run. `tokenizer` is None only under --check, for a model that cannot be reached from here;
    `shape` is None for such a model where nothing is known about it, and for one of another family. `engine` is what
    --engine stands for here, `engine_reason` why; `bos` is the flag; `left_out` counts for each split the problems that
    --skip_long_prompts left out."""

    tokenizer: PreTrainedTokenizerBase | None
    problems: list[Problem]
    test_problems: list[Problem]
    shape: Shape | None
    engine: EngineName
    engine_reason: str
    bos: bool
    left_out: dict[str, int]

    @property
    def notes(self) -> str:
        """What a run says at its start about its inputs, in one line."""
        lengths = {"train": len(self.problems), "test": len(self.test_problems)}
        return "; ".join([f"engine {self.engine} ({self.engine_reason})", *(
            f"{count} of {count + lengths[split]} {split} problems left out: longer than --max_prompt_length"
            for split, count in self.left_out.items() if count)])


def load_inputs(
    *, model: str, data: str, splits: tuple[str, ...], max_prompt_length: int, max_response_length: int,
    eval_problems: int, skip_long_prompts: bool, bos: bool, may_be_unreachable: bool, engine: str,
    tp_size: int = 1, sleep_level: int = 0, temperature: float = 1.0, needs: tuple[str, ...] = (),
    tracker: str = "none", max_length: int = 0,
) -> Inputs:  # fmt: skip
    """Tokenizer and problems of the named splits ("train", "test"). `eval_problems` 0 keeps all test problems; `needs`
    names what every training problem must have, "hint" or "answer". `max_length`, where given, is that of the rows of
    training, which else are prompt and response.

    Raises:
        BadInput: anything that is missing, unreadable or too long.
    """
    require(eval_problems >= 0, "--eval_problems", eval_problems, "must not be negative (0 means all)")
    require(max_prompt_length > 0, "--max_prompt_length", max_prompt_length, "must be greater than 0")
    require(max_response_length > 0, "--max_response_length", max_response_length, "must be greater than 0")
    check_tracker(tracker)
    engine, reason = choose_engine(engine, tp_size, sleep_level, temperature)
    if may_be_unreachable and not Path(model).is_dir():
        stop_asking_a_silent_hub()
    tokenizer, shape = load_tokenizer(model, may_be_unreachable), SHAPES.get(model)
    if tokenizer is not None:
        config = AutoConfig.from_pretrained(model)
        check_engine(engine, config, tp_size)
        shape = shape_of(config)
        largest = max(tokenizer.get_vocab().values())
        require(largest < config.vocab_size, "--model", model,
                f"its tokenizer has ids up to {largest}, its embeddings end at {config.vocab_size - 1}")
        positions, window = config.max_position_embeddings, attention_window(config)
        rows = [("--max_response_length", max_response_length, f"with --max_prompt_length {max_prompt_length} exceeds",
                 max_prompt_length + max_response_length)]
        rows += [("--max_length", max_length, "exceeds", max_length)] if max_length else []
        for flag, value, exceeds, length in rows:
            require(length <= positions, flag, value, f"{exceeds} the {positions} positions of {model}")
        flag, value, exceeds, length = rows[-1]
        require("train" not in splits or length <= window, flag, value,
                f"{exceeds} the {window} tokens that {model} looks back: training here knows no such window")
        parts = config, load_generation_config(model), tokenizer
        if "train" in splits:
            check_savable(model, parts)
    loaded = {split: load_problems(data, split, needs if split == "train" else ()) for split in splits}
    if "test" in loaded:
        require(eval_problems <= len(loaded["test"]), "--eval_problems", eval_problems,
                f"is more than the {len(loaded['test'])} test problems of --data {data}")
        loaded["test"] = loaded["test"][: eval_problems or None]
    left_out = {}
    if tokenizer is not None:
        for split, problems in loaded.items():
            loaded[split], left_out[split] = check_prompt_lengths(problems, tokenizer, max_prompt_length, bos, split,
                                                                  skip_long_prompts)
    return Inputs(tokenizer, loaded.get("train", []), loaded.get("test", []), shape, engine, reason, bos, left_out)


DEFAULT_LENGTH = 1024  # tokens of prompts and of responses in an evaluation, where nothing says another


def evaluation_lengths(model: str, max_prompt_length: int, max_response_length: int) -> tuple[int, int, str]:
    """Tokens that prompts and responses may have in an evaluation of `model`, where 0 is "not given": those of the run,
    if the model is a checkpoint of one; else DEFAULT_LENGTH, or half of the model's positions. In words, where they are
    from."""
    prompt, response, reason = DEFAULT_LENGTH, DEFAULT_LENGTH, "the defaults"
    folder = Path(model).absolute()
    run, config = folder.parents[min(2, len(folder.parents) - 1)] / "args.json", folder / "config.json"
    if folder.name == "hf" and run.is_file():
        settings = read_object(run)
        prompt, response = settings["max_prompt_length"], settings["max_response_length"]
        reason = f"those of its training, {run}"
    elif config.is_file():
        positions = read_object(config).get("max_position_embeddings") or 2 * DEFAULT_LENGTH
        if positions < 2 * DEFAULT_LENGTH:
            prompt = response = positions // 2
            reason = f"half of its {positions} positions each"
    if max_prompt_length and max_response_length:
        reason = "as the flags say"
    return max_prompt_length or prompt, max_response_length or response, reason


def read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file. Raises BadInput where it cannot be read."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error


def attention_window(config: PretrainedConfig) -> float:
    """Tokens that the model looks back, in those of its layers that look back least."""
    return config.to_dict().get("sliding_window") or math.inf  # None where a Qwen2 or Qwen3 does not use it


def check_savable(model: str, parts: Iterable[PushToHubMixin]) -> None:
    """Save what a checkpoint holds beside the weights. Raises BadInput where that fails: hours before the first one."""
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            try:
                part.save_pretrained(folder)
            except Exception as error:  # transformers has many, for each way in which files contradict themselves
                name, reason = type(part).__name__, " ".join(str(error).split())
                raise BadInput(f"flag --model {model}: no checkpoint could hold its {name}: {reason}") from error


def stop_asking_a_silent_hub() -> None:
    """Where the Hugging Face hub does not answer, only the local cache is read from here on: the retries for each file
    take a minute in all."""
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception:  # of the HTTP library, which differs between versions of the hub's
        constants.HF_HUB_OFFLINE = True
        close_session()  # the next one reads the constant


def check_batch(
    *, prompts_per_step: int, mini_batch_prompts: int, longest_group: int, longest_group_is: str,
    max_tokens_per_micro_batch: int, num_problems: int,
) -> None:  # fmt: skip
    """Raises BadInput where a step cannot be divided into mini-batches, ranks and micro-batches.

    `longest_group` is the number of tokens that a prompt and all that is trained on it can have; `longest_group_is`
    says in flags how it comes about.
    """
    require(prompts_per_step <= num_problems, "--prompts_per_step", prompts_per_step,
            f"is more than the {num_problems} training problems")
    require_divides("--mini_batch_prompts", mini_batch_prompts, "--prompts_per_step", prompts_per_step)
    require(mini_batch_prompts % world_size() == 0, "--mini_batch_prompts", mini_batch_prompts,
            f"must be a multiple of the number of processes, {world_size()}")
    require(max_tokens_per_micro_batch >= longest_group, "--max_tokens_per_micro_batch", max_tokens_per_micro_batch,
            f"must hold {longest_group_is} = {longest_group} tokens")


def longest_rows(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of the longest row that training packs with these flags, and how many such rows a prompt makes."""
    if "group_size" not in settings:  # demonstrations
        return settings["max_length"], 1
    shared = settings["group_size"] if settings["share_prefix"] else 1  # responses in a row
    row_length = settings["max_prompt_length"] + shared * settings["max_response_length"]
    return row_length, settings["group_size"] // shared


def memory_plan(inputs: Inputs, settings: Mapping[str, Any]) -> dict[str, str]:
    """What a run with these flags needs on each process, for `print_plan`. Without group_size nothing is sampled in
    training, which then packs demonstrations of at most max_length tokens; without zero_stage nothing is trained."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weight_bytes = resolve_dtype(settings["dtype"], device).itemsize
    tests = -(-len(inputs.test_problems) // world_size())
    lengths = {name: settings[name] for name in ("max_prompt_length", "max_response_length", "kv_cache_gb")}
    if "zero_stage" not in settings:
        return evaluation_facts(inputs.shape, Generation(weight_bytes=weight_bytes, **lengths), tests,
                                settings["num_samples"] or 1)
    row_length, rows_per_prompt = longest_rows(settings)
    of_vllm = {"  vLLM": f"{settings['engine_memory_fraction']:.0%} of each GPU, instead of the replica and of what "
                         "generating takes here"} if inputs.engine == "vllm" else {}
    names = ("zero_stage", "offload", "gradient_checkpointing", "prompts_per_step", "mini_batch_prompts",
             "max_tokens_per_micro_batch")
    return memory_facts(inputs.shape, Run(
        weight_bytes=weight_bytes, processes=world_size(), has_reference=settings.get("kl_coef", 0) > 0,
        group_size=settings.get("group_size", 0), row_length=row_length, rows_per_prompt=rows_per_prompt,
        test_problems=len(inputs.test_problems),
        **lengths, **{name: settings[name] for name in names},
    )) | of_vllm


def print_plan(title: str, inputs: Inputs, facts: dict[str, object]) -> None:
    """For --check, from the first process: `facts`, the data, and the first prompt exactly as the model will get it."""
    if not is_first_process():
        return
    first = (inputs.problems or inputs.test_problems)[0]
    prompt, num_tokens = repr(first.prompt), "not known, the tokenizer of --model cannot be reached from this machine"
    if inputs.tokenizer is not None:
        prompt, num_tokens = printable_prompt(first, inputs.tokenizer, inputs.bos)
    facts = facts | {
        "engine": f"{inputs.engine} ({inputs.engine_reason})",
        "processes": world_size(),
        **{name: f"{len(problems)} (fingerprint {fingerprint(problems)}"
                 f"{f'; {count} left out: longer than --max_prompt_length' if count else ''})"
           for name, problems, count in (("training problems", inputs.problems, inputs.left_out.get("train", 0)),
                                         ("test problems", inputs.test_problems, inputs.left_out.get("test", 0)))},
        "first prompt": prompt,
        "first solution": repr(list(first.solution)),
        "first prompt, tokens": num_tokens,
    }
    width = max(map(len, facts))
    print(f"{title}: all checks passed. The plan:", *(f"  {name:<{width}}  {fact}" for name, fact in facts.items()),
          sep="\n", flush=True)
