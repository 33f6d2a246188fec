"""What a run reads before a model loads: tokenizer, configuration and problems, checked against the flags."""

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import close_session, constants
from huggingface_hub.utils import get_session
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import PushToHubMixin

from inference.hybrid_engine import EngineName, check_engine, choose_engine
from utils import manifest
from utils.attention import unknown_attention
from utils.chat import MODEL, NONE, choose_template, read_template
from utils.data import OWN, load_splits
from utils.pretrained import load_generation_config
from utils.prompts import PromptBuilder
from utils.run.errors import BadInput, require
from utils.run.tracking import check_trackers
from utils.setup.shapes import SHAPES, Shape, shape_of
from utils.tasks.own import Own
from utils.types import Problem


@dataclass(frozen=True)
class Inputs:
    """Checked inputs of a run. `prompts` is None only under --check, for a model that cannot be reached from here;
    `shape` is None for such a model where nothing is known about it, and for one of another family. `engine` is what
    --engine stands for here, `engine_reason` why; `left_out` counts for each split the problems that
    --skip_long_prompts left out."""

    prompts: PromptBuilder | None
    problems: list[Problem]
    test_problems: list[Problem]
    shape: Shape | None
    engine: EngineName
    engine_reason: str
    left_out: dict[str, int]
    data_words: str = ""  # how data of one's own were read

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return self.prompts and self.prompts.tokenizer

    @property
    def notes(self) -> str:
        """What a run says at its start about its inputs, in one line."""
        lengths = {"train": len(self.problems), "test": len(self.test_problems)}
        return "; ".join([f"engine {self.engine} ({self.engine_reason})", *(
            f"{count} of {count + lengths[split]} {split} problems left out: longer than --max_prompt_length"
            for split, count in self.left_out.items() if count), *([self.data_words] if self.data_words else [])])


def load_inputs(
    *, model: str, data: str, splits: tuple[str, ...], max_prompt_length: int, max_response_length: int,
    eval_problems: int, skip_long_prompts: bool, bos: bool, may_be_unreachable: bool, engine: str,
    engine_memory_fraction: float, tp_size: int = 1, sleep_level: int = 0, temperature: float = 1.0,
    needs: tuple[str, ...] = (), trackers: tuple[str, ...] = (), max_length: int = 0, chat_template: str = NONE,
    system_prompt: str = "", think: bool = True, own_data: Own = OWN, max_demonstration_length: int = 0,
) -> Inputs:
    """Tokenizer and problems of the named splits ("train", "test"). `eval_problems` 0 keeps all test problems; `needs`
    names what every training problem must have, "hint" or "answer". `max_length`, where given, is that of the rows of
    training, which else are prompt and response, or prompt and demonstration where that has a length of its own.

    Raises:
        BadInput: anything that is missing, unreadable or too long.
    """
    require(max_prompt_length > 0, "--max_prompt_length", max_prompt_length, "must be greater than 0")
    require(max_response_length > 0, "--max_response_length", max_response_length, "must be greater than 0")
    check_trackers(trackers)
    template = read_template(chat_template, system_prompt, think)
    engine, reason = choose_engine(engine, tp_size, sleep_level, temperature, engine_memory_fraction)
    if may_be_unreachable and not Path(model).is_dir():
        stop_asking_a_silent_hub()
    tokenizer, shape = load_tokenizer(model, may_be_unreachable), SHAPES.get(model)
    if tokenizer is not None:
        config = AutoConfig.from_pretrained(model)
        check_engine(engine, config, tp_size)
        own = unknown_attention(config) if "train" in splits else None
        require(own is None, "--model", model, f"is {own}; training attends by transformers' interface")
        shape = shape_of(config)
        largest = max(tokenizer.get_vocab().values())
        require(largest < config.vocab_size, "--model", model,
                f"its tokenizer has ids up to {largest}, its embeddings end at {config.vocab_size - 1}")
        positions = config.max_position_embeddings
        rows = [("--max_response_length", max_response_length, f"with --max_prompt_length {max_prompt_length} exceeds",
                 max_prompt_length + max_response_length)]
        rows += [("--max_length", max_length, "exceeds", max_length)] if max_length else []
        if max_demonstration_length:
            rows.append(("--max_demonstration_length", max_demonstration_length,
                         f"with --max_prompt_length {max_prompt_length} exceeds",
                         max_prompt_length + max_demonstration_length))
        for flag, value, exceeds, length in rows:
            require(length <= positions, flag, value, f"{exceeds} the {positions} positions of {model}")
        chat = choose_template(tokenizer, chat_template, template, system_prompt, think)
        parts = config, load_generation_config(model), tokenizer
        if "train" in splits:
            check_savable(model, parts)
    loaded, words = load_splits(data, splits, {"train": needs}, own_data)
    if "test" in loaded:
        require(eval_problems <= len(loaded["test"]), "--eval_problems", eval_problems,
                f"is more than the {len(loaded['test'])} test problems of --data {data}")
        loaded["test"] = loaded["test"][: eval_problems or None]
    prompts, left_out = None, {}
    if tokenizer is not None:
        prompts = PromptBuilder(tokenizer, max_prompt_length, bos, chat)
        for split, problems in loaded.items():
            loaded[split], left_out[split] = check_prompt_lengths(problems, prompts, split, skip_long_prompts)
    return Inputs(prompts, loaded.get("train", []), loaded.get("test", []), shape, engine, reason, left_out,
                  words)


def load_tokenizer(model: str, may_be_unreachable: bool = False) -> PreTrainedTokenizerBase | None:
    """Tokenizer of a local folder or Hugging Face name.

    Args:
        may_be_unreachable: return None where a name's files cannot be fetched (for --check without a hub).

    Raises:
        BadInput: no such folder, a folder without config.json or tokenizer, or a name whose files cannot be fetched.
    """
    folder = Path(model)
    is_local = folder.is_dir()
    looks_local = model.startswith((".", "/", "~")) or model.count("/") > 1
    is_unfinished = folder.name == "hf" and (folder.parent / manifest.NAME).is_file()
    require(is_local or not looks_local, "--model", model, "no such folder"
            + is_unfinished * "; its run was stopped before it wrote that, which --resume of the run does")
    if is_local:
        require((folder / "config.json").is_file(), "--model", model, "the folder has no config.json")
        names = ("tokenizer.json", "tokenizer.model", "vocab.json")
        require(any((folder / name).is_file() for name in names), "--model", model,
                "the folder has no tokenizer (tokenizer.json, tokenizer.model or vocab.json)")
    try:
        AutoConfig.from_pretrained(model)
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:  # what transformers raises for unreadable, unknown and unreachable alike
        if may_be_unreachable and not is_local:
            return None
        first_line = str(error).strip().splitlines()[0]
        raise BadInput(f"flag --model {model}: config and tokenizer cannot be loaded ({first_line}); "
                       "give a local folder, or a name of the Hugging Face hub that this machine can reach") from error
    require(tokenizer.eos_token_id is not None, "--model", model, "its tokenizer has no end-of-sequence token")
    return tokenizer


DEFAULT_LENGTH = 1024  # tokens of prompts and of responses in an evaluation, where nothing says another


def evaluation_lengths(model: str, max_prompt_length: int, max_response_length: int) -> tuple[int, int, str]:
    """Tokens that prompts and responses may have in an evaluation of `model`, where 0 is "not given": those of the run,
    if the model is a checkpoint of one; else DEFAULT_LENGTH, or half of the model's positions. In words, where they are
    from."""
    prompt, response, reason = DEFAULT_LENGTH, DEFAULT_LENGTH, "the defaults"
    run, config = file_of_run(model), Path(model) / "config.json"
    if run is not None:
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


def evaluation_chat(model: str, chat_template: str, system_prompt: str, think: bool) -> dict[str, str | bool]:
    """chat_template, system_prompt and think for `load_inputs` in an evaluation of `model`. Where the first is "run",
    they are those of the run, if the model is a checkpoint of one, as far as the others are not given."""
    run = file_of_run(model) if chat_template == "run" else None
    own = {} if run is None else read_object(run)
    if chat_template == "run":
        chat_template = NONE if own.get("chat_template", NONE) == NONE else MODEL  # a file's is in the checkpoint
    return {"chat_template": chat_template, "system_prompt": system_prompt or own.get("system_prompt", ""),
            "think": think and own.get("think", True)}


def file_of_run(model: str) -> Path | None:
    """args.json of the run that `model` is a checkpoint of."""
    folder = Path(model).absolute()
    run = folder.parents[min(2, len(folder.parents) - 1)] / "args.json"
    return run if folder.name == "hf" and run.is_file() else None


def read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file. Raises BadInput where it cannot be read."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from error


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


def check_demonstration_lengths(
    problems: list[Problem], prompts: PromptBuilder, max_length: int, flag: str = "--max_length",
    with_prompt: bool = True,
) -> tuple[list[Problem], int]:
    """The problems whose prompt and demonstration, or with `with_prompt` off demonstration alone, fit into the
    `max_length` tokens of `flag`, and how many do not: a demonstration is never cut, since it would lose its answer and
    its end.

    Raises:
        BadInput: none fits.
    """
    parts = [prompts.tokenizer(texts, add_special_tokens=False)["input_ids"]
             for texts in ([*map(prompts.text, problems)], [p.demonstration for p in problems])]
    start = len(prompts.start_ids)
    lengths = [(start + len(prompt)) * with_prompt + len(demonstration) + 1  # what ends it
               for prompt, demonstration in zip(*parts, strict=True)]
    fitting = [p for p, length in zip(problems, lengths, strict=True) if length <= max_length]
    if not fitting:
        raise BadInput(f"flag {flag} {max_length}: no demonstration is as short, the shortest has {min(lengths)}")
    return fitting, len(problems) - len(fitting)


def check_prompt_lengths(
    problems: list[Problem], prompts: PromptBuilder, split: str, skip: bool
) -> tuple[list[Problem], int]:
    """The problems whose prompt fits into `prompts.max_length` tokens, and how many do not.

    Raises:
        BadInput: one does not fit and `skip` is not set, or none is left.
    """
    texts = prompts.tokenizer([*map(prompts.text, problems)], add_special_tokens=False)["input_ids"]
    lengths = [len(prompts.start_ids) + len(ids) for ids in texts]
    fitting = [p for p, length in zip(problems, lengths, strict=True) if length <= prompts.max_length]
    num_long = len(problems) - len(fitting)
    if num_long and not skip:
        raise BadInput(
            f"flag --max_prompt_length {prompts.max_length}: {num_long} of {len(problems)} {split} prompts are longer "
            f"(the longest has {max(lengths)} tokens); raise it, or leave them out with --skip_long_prompts"
        )
    if not fitting:
        raise BadInput(f"flag --max_prompt_length {prompts.max_length}: no {split} prompt is as short as that")
    return fitting, num_long
