"""Chat templates: a problem's prompt as a user's turn, after which the assistant's turn is opened."""

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from utils.run.errors import BadInput, require

NONE, MODEL = "none", "model"  # what --chat_template may say besides a file
DATE = datetime(2024, 7, 26)  # for templates that write today's: a run resumed or evaluated later has the same prompts
QUESTION, REPLY = "Which is it?", "It is that."  # of a conversation that shows how a template writes one
THINK = re.compile(r"\s*(<think>\s*)\Z")


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of `tokenizer`; `source` is what --chat_template says. `system_prompt` is the turn before the
    user's, "" is none; without `think` the template is told enable_thinking=False."""

    tokenizer: PreTrainedTokenizerBase
    source: str
    system_prompt: str
    think: bool

    def render(self, *turns: str, open_reply: bool) -> str:
        """The turns, the user's first, after the system prompt; with `open_reply` the assistant's is opened.

        Raises:
            BadInput: the template does not parse, or refuses what it is given.
        """
        messages = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        messages += [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)]
        settings = {} if self.think else {"enable_thinking": False}
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_reply,
                                                      strftime_now=DATE.strftime, **settings)
        except Exception as error:  # a template is a program: it raises what it likes
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise BadInput(f"flag --chat_template {self.source}: the template fails ({reason})") from error

    def prompt(self, text: str) -> str:
        """`text` as the model is given it. A `<think>` at its end moves to the start of the assistant's turn; where the
        template has written one there itself, that is the one."""
        found = THINK.search(text)
        opened = self.render(text[: found.start()] if found else text, open_reply=True)
        return opened if found is None or opened.rstrip().endswith("<think>") else opened + found[1]

    @cached_property
    def end_id(self) -> int:
        """The token that ends a turn of the assistant: the first that follows it, if it is one that the tokenizer has
        added to the words of its vocabulary; else, as in templates of plain text, its end of sequence."""
        after = self.render(QUESTION, REPLY, open_reply=False).rpartition(REPLY)[2].lstrip()
        first = self.tokenizer(after, add_special_tokens=False)["input_ids"][:1]
        known = first and first[0] in self.tokenizer.added_tokens_decoder
        return first[0] if known else self.tokenizer.eos_token_id

    @property
    def fingerprint(self) -> str:
        """What a run that goes on must have in common with itself: the text, wherever it is from."""
        text = self.tokenizer.get_chat_template()
        return f"a template with fingerprint {hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def check(self) -> None:
        """Raises BadInput where the template fails, leaves a turn out, or does not know what it is asked for."""
        plain = ChatTemplate(self.tokenizer, self.source, "", self.think)
        require(QUESTION in plain.render(QUESTION, open_reply=True), "--chat_template", self.source,
                "the template does not write the user's turn")
        require(REPLY in plain.render(QUESTION, REPLY, open_reply=False), "--chat_template", self.source,
                "the template does not write the assistant's turn")
        if not self.think and "enable_thinking" not in self.tokenizer.get_chat_template():
            raise BadInput("flag --no_think: the chat template knows no enable_thinking")
        if self.system_prompt:
            try:
                shown = self.render(QUESTION, open_reply=True)
            except BadInput as error:
                raise BadInput(f"flag --system_prompt {self.system_prompt!r}: the chat template refuses a system role "
                               f"({error.__cause__})") from error
            require(self.system_prompt.strip() in shown, "--system_prompt", repr(self.system_prompt),
                    "the chat template leaves the system's turn out")


def read_template(chat_template: str, system_prompt: str, think: bool) -> str | None:
    """The text of the file that --chat_template names; None where it says none or model.

    Raises:
        BadInput: there is no such file, or a flag needs a template.
    """
    if chat_template == NONE:
        for flag, given in ((f"--system_prompt {system_prompt!r}", system_prompt), ("--no_think", not think)):
            if given:
                raise BadInput(f"flag {flag}: needs a chat template: --chat_template model, or a jinja file")
    if chat_template in (NONE, MODEL):
        return None
    try:
        return Path(chat_template).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise BadInput(f"flag --chat_template {chat_template}: must be none, model or a jinja file, and such a file "
                       f"cannot be read ({reason})") from error


def choose_template(
    tokenizer: PreTrainedTokenizerBase, chat_template: str, text: str | None, system_prompt: str, think: bool
) -> ChatTemplate | None:
    """What the flags ask for, checked; `text` is what `read_template` has read. A file's template becomes the
    tokenizer's, which is saved with the model.

    Raises:
        BadInput: the tokenizer has no template, or the template does not do what is asked for.
    """
    if chat_template == NONE:
        return None
    if text is not None:
        tokenizer.chat_template = text
    try:
        tokenizer.get_chat_template()
    except ValueError as error:
        raise BadInput(f"flag --chat_template {chat_template}: the tokenizer of --model has no chat template, or "
                       "several and none of them the default; name a jinja file") from error
    chosen = ChatTemplate(tokenizer, chat_template, system_prompt, think)
    chosen.check()
    return chosen
