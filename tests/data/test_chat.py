"""Chat templates: the turns, the opened reply, thinking, the end of a turn, lengths, and what is refused."""

import pytest
from transformers import AutoTokenizer

from tests.helpers.chat import CHATML, HEADERS, HYBRID, NO_SYSTEM, PLAIN, REASONER, SILENT, SPELLED, chat_tokenizer
from tests.helpers.models import make_problem
from utils.chat import choose_template, read_template
from utils.prompts import PromptBuilder, decode, encode
from utils.run.errors import BadInput
from utils.setup.inputs import check_demonstration_lengths, check_prompt_lengths

PROBLEM = make_problem(prompt="add 1\n<think> ", solution=["we", " add"], demonstration="we add </think> 1")


def builder(template, max_length=200, bos=True, system_prompt="", think=True, source="model", text=None):
    tokenizer = chat_tokenizer(template)
    chat = choose_template(tokenizer, source, text, system_prompt, think)
    return PromptBuilder(tokenizer, max_length, bos, chat)


def shown(prompts, problem=PROBLEM):
    return decode(prompts.build(problem).prompt_ids, prompts.tokenizer)


# ----- turns -----


@pytest.mark.parametrize(("template", "settings", "expected"), [
    (CHATML, {}, "<|im_start|>user\nadd 1<|im_end|>\n<|im_start|>assistant\n<think> "),
    (CHATML, {"system_prompt": "Be brief."},
     "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nadd 1<|im_end|>\n<|im_start|>assistant\n<think> "),
    (HEADERS, {"system_prompt": "Be brief."},
     "<|begin|><|header|>system<|/header|>\n\nToday: 26 Jul 2024\n\nBe brief.<|eot|>"
     "<|header|>user<|/header|>\n\nadd 1<|eot|><|header|>assistant<|/header|>\n\n<think> "),
    (HYBRID, {}, "<|im_start|>user\nadd 1<|im_end|>\n<|im_start|>assistant\n<think> "),
    (HYBRID, {"think": False},
     "<|im_start|>user\nadd 1<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n<think> "),
    (REASONER, {}, "<|im_start|>user\nadd 1<|im_end|>\n<|im_start|>assistant\n<think>\n"),  # once is enough
    (PLAIN, {}, "### user\nadd 1\n\n### assistant\n<think> "),
])
def test_the_prompt_is_a_users_turn_and_the_think_tag_begins_the_reply(template, settings, expected):
    assert shown(builder(template, **settings)) == expected


@pytest.mark.parametrize(("prompt", "user", "reply"), [
    ("add 1 <think>", "add 1", "<think>"),
    ("add 1\n<think>\n\n", "add 1", "<think>\n\n"),
    ("write <think> first", "write <think> first", ""),
    ("add 1 ", "add 1 ", ""),
    ("<think>a<think> ", "<think>a", "<think> "),
])
def test_only_a_think_tag_at_the_end_moves(prompt, user, reply):
    assert shown(builder(CHATML), make_problem(prompt=prompt)) == (
        f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{reply}")


def test_hints_follow_the_opened_reply():
    prompts = builder(CHATML)
    prompt = prompts.build(PROBLEM, PROBLEM.solution)
    assert decode(prompt.prompt_ids + prompt.hint_ids, prompts.tokenizer).endswith("assistant\n<think> we add")
    assert prompt.hint_ids == encode("we add", prompts.tokenizer) and prompt.hint_slices == 2


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(("template", "count"), [(CHATML, 0), (HEADERS, 1)])
def test_of_beginnings_there_are_as_many_as_the_template_writes(template, count, bos):
    prompts = builder(template, bos=bos)
    assert prompts.build(PROBLEM).prompt_ids.count(prompts.tokenizer.bos_token_id) == count
    assert prompts.build(PROBLEM).prompt_ids[0] == prompts.tokenizer.convert_tokens_to_ids(
        "<|begin|>" if count else "<|im_start|>")


def test_marks_are_tokens():
    prompts = builder(CHATML)
    marks = [prompts.tokenizer.convert_tokens_to_ids(mark) for mark in ("<|im_start|>", "<|im_end|>")]
    assert [i for i in prompts.build(PROBLEM).prompt_ids if i in marks] == [marks[0], marks[1], marks[0]]


def test_none_is_the_prompt_as_it_is():
    prompts = builder(CHATML, source="none")
    assert prompts.chat is None and prompts.end_ids == frozenset()
    assert prompts.build(PROBLEM).prompt_ids == [prompts.tokenizer.bos_token_id,
                                                 *encode(PROBLEM.prompt, prompts.tokenizer)]


# ----- ends -----


@pytest.mark.parametrize(("template", "end"), [
    (CHATML, "<|im_end|>"), (HYBRID, "<|im_end|>"), (HEADERS, "<|eot|>"), (PLAIN, None),
    (SPELLED, None)])
def test_demonstrations_and_responses_end_with_the_turn(template, end):
    """Where no token says that a turn is over, the end of sequence does."""
    prompts = builder(template)
    eos = prompts.tokenizer.eos_token_id
    expected = eos if end is None else prompts.tokenizer.convert_tokens_to_ids(end)
    demonstration = prompts.demonstration(PROBLEM)
    assert demonstration.hint_ids == [*encode(PROBLEM.demonstration, prompts.tokenizer), expected]
    assert demonstration.prompt_ids == prompts.build(PROBLEM).prompt_ids
    assert prompts.end_ids == {eos, expected}


# ----- lengths, and what is shown -----


def test_the_tokens_of_the_template_count():
    num_prompt = len(builder(CHATML).build(PROBLEM).prompt_ids)
    assert num_prompt == len(encode("add 1<think> user\n\nassistant\n", chat_tokenizer(None))) + 3
    assert check_prompt_lengths([PROBLEM], builder(CHATML, num_prompt), "train", skip=False) == ([PROBLEM], 0)
    with pytest.raises(BadInput, match=f"the longest has {num_prompt} tokens"):
        check_prompt_lengths([PROBLEM], builder(CHATML, num_prompt - 1), "train", skip=False)
    whole = num_prompt + len(builder(CHATML).demonstration(PROBLEM).hint_ids)
    assert check_demonstration_lengths([PROBLEM], builder(CHATML), whole) == ([PROBLEM], 0)
    with pytest.raises(BadInput, match=f"the shortest has {whole}"):
        check_demonstration_lengths([PROBLEM], builder(CHATML), whole - 1)


def test_a_prompt_is_shown_with_its_turns():
    prompts = builder(HEADERS)
    text, num_tokens = prompts.printable(PROBLEM)
    assert text == repr(shown(prompts)) and num_tokens == len(prompts.build(PROBLEM).prompt_ids)


def test_the_fingerprint_is_that_of_the_text_wherever_it_is_from():
    assert builder(CHATML).chat.fingerprint == builder(None, source="a.jinja", text=CHATML).chat.fingerprint
    assert builder(CHATML).chat.fingerprint != builder(PLAIN).chat.fingerprint


# ----- a file -----


def test_a_file_becomes_the_tokenizers_and_is_saved_with_it(tmp_path):
    (tmp_path / "mine.jinja").write_text(PLAIN)
    source = str(tmp_path / "mine.jinja")
    prompts = builder(CHATML, source=source, text=read_template(source, "", True))
    assert shown(prompts) == "### user\nadd 1\n\n### assistant\n<think> "
    prompts.tokenizer.save_pretrained(tmp_path / "hf")
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").chat_template == PLAIN


# ----- what is refused -----


@pytest.mark.parametrize(("template", "settings", "message"), [
    (None, {}, "flag --chat_template model: the tokenizer of --model has no chat template"),
    ({"tools": CHATML}, {}, "flag --chat_template model: the tokenizer of --model has no chat template, or several"),
    ("{% if %}", {}, "flag --chat_template model: the template fails (TemplateSyntaxError: "),
    ("{{ messages[0].text.here }}", {}, "flag --chat_template model: the template fails (UndefinedError: "),
    ("{{ ''.__class__.__mro__ }}", {}, "flag --chat_template model: the template fails (SecurityError: "),
    ("{{ messages.pop() }}", {}, "flag --chat_template model: the template fails (SecurityError: "),
    ("hello", {}, "flag --chat_template model: the template does not write the user's turn"),
    ("{{ messages[0].content }}", {}, "flag --chat_template model: the template does not write the assistant's turn"),
    (CHATML, {"think": False}, "flag --no_think: the chat template knows no enable_thinking"),
    (NO_SYSTEM, {"system_prompt": "x"},
     "flag --system_prompt 'x': the chat template refuses a system role (no system role here)"),
    (SILENT, {"system_prompt": "x, y"},
     "flag --system_prompt 'x, y': the chat template leaves the system's turn out"),
])
def test_a_template_that_cannot_do_it_is_told(template, settings, message):
    with pytest.raises(BadInput) as error:
        builder(template, **settings)
    assert str(error.value).startswith(message)


def test_a_template_without_system_role_serves_without():
    assert shown(builder(NO_SYSTEM)) == shown(builder(CHATML))


def test_the_template_called_default_is_taken_of_several():
    assert shown(builder({"tools": PLAIN, "default": CHATML})) == shown(builder(CHATML))


def test_files_and_flags_that_do_not_fit(tmp_path):
    (tmp_path / "latin").write_bytes(b"\xe9")
    for args, message in (
        (("no.jinja", "", True), "flag --chat_template no.jinja: must be none, model or a jinja file, and such a file "
                                 "cannot be read (No such file or directory)"),
        ((str(tmp_path), "", True), f"flag --chat_template {tmp_path}: must be none, model or a jinja file"),
        ((str(tmp_path / "latin"), "", True), f"flag --chat_template {tmp_path / 'latin'}: must be none"),
        (("none", "x", True), "flag --system_prompt 'x': needs a chat template: --chat_template model"),
        (("none", "", False), "flag --no_think: needs a chat template"),
    ):
        with pytest.raises(BadInput) as error:
            read_template(*args)
        assert str(error.value).startswith(message)
