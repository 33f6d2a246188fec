"""generate.py: the responses of eval.py and of one call of the engine, shown as they grow, safe on a terminal."""

import io
import json
import multiprocessing
import os
import re
import sys
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from inference import generate
from inference.generate import Args, growing
from inference.hybrid_engine import load_engine
from tests.helpers import chat
from tests.helpers.launching import run, succeed, to_words
from tests.helpers.models import CPU, make_problem
from tests.helpers.verifiers import VERIFIER
from utils.data import load_problems
from utils.evaluation import evaluate
from utils.prompts import PromptBuilder, decode, encode, solution_slices
from utils.run import processes
from utils.run.cli import run_script
from utils.run.terminal import DIM, GREEN, RESET, YELLOW, paint
from utils.types import Rollout, Sampling

LENGTHS = {"max_prompt_length": 64, "max_response_length": 48}


def engine_of(model, tokenizer, name="torch", end_ids=()):
    return load_engine(name, str(model), tokenizer, torch.float32, CPU, max_length=sum(LENGTHS.values()),
                       kv_cache_gb=0.1, tp_size=1, memory_fraction=0.5, end_ids=end_ids)


@pytest.fixture(scope="module")
def tokenizer(base_model):
    return AutoTokenizer.from_pretrained(base_model)


@pytest.fixture(scope="module")
def engine(base_model, tokenizer):
    return engine_of(base_model, tokenizer)


@pytest.fixture
def call(monkeypatch, capsys, base_model):
    """call(data=.., index=..) -> stdout of main."""
    monkeypatch.setattr(processes, "join", lambda: CPU)
    monkeypatch.setattr(processes, "end", lambda: None)

    def run(**settings):
        generate.main(Args(**{"model": str(base_model), "engine": "torch"} | LENGTHS | settings))
        return capsys.readouterr().out

    return run


@pytest.fixture
def says(monkeypatch, capsys, tokenizer):
    """says(text or ids, ..) makes an engine say that, one a sample, and returns the list of its calls: (prompt, limit,
    what had been printed since the last call, or what `screen` returns)."""

    def start(*responses, logprobs=(), stops=True, screen=lambda: capsys.readouterr().out):
        calls = []
        all_ids = [one if isinstance(one, list) else encode(one, tokenizer) for one in responses]

        class Scripted:
            def generate(self, prompts, sampling, step=0):
                assert sampling.group_size == len(all_ids) and step == 0
                limit = sampling.max_response_length
                calls.append((prompts[0], limit, screen()))
                return [[Rollout(prompts[0], ids[:limit], [*logprobs, *[0.0] * len(ids)][: len(ids[:limit])],
                                 "stop" if stops and len(ids) <= limit else "length") for ids in all_ids]]

        monkeypatch.setattr(generate, "load_engine", lambda *_arguments, **_settings: Scripted())
        return calls

    return start


def responses_in(shown: str) -> list[tuple[str, str]]:
    """(text, verdict line) of each response."""
    return re.findall(r"^--- response \d+ of \d+\n(.*?)\n--- (.*?)$", shown, re.DOTALL | re.MULTILINE)


def verdict(one) -> str:
    cut_off = ", cut off by --max_response_length" * one.truncated
    return f"{one.reason}, reward {one.reward:g}; {one.response_tokens} tokens{cut_off}"


# ----- the same as elsewhere -----


def test_the_greedy_response_and_its_verdict_are_those_of_an_evaluation(call, countdown_data, engine, tokenizer):
    problems = load_problems(str(countdown_data), "test")[:12]
    expected = evaluate(engine, problems, PromptBuilder(tokenizer, 64, True), Sampling(1, 48, 0.0))
    assert len({one.reason for one in expected}) > 1  # else this would show little
    for one in expected:
        shown = call(data=str(countdown_data), index=one.index, temperature=0.0)
        assert responses_in(shown) == [(paint(one.response, ""), verdict(one))]
        assert f"tokens\n{one.prompt}\n--- response 1 of 1\n" in shown
        assert f"=== {one.correct:d} of 1 correct; reference answer: " in shown


def test_samples_are_those_of_an_evaluation_with_the_same_seed(call, countdown_data, engine, tokenizer):
    problems = load_problems(str(countdown_data), "test")
    settings = {"data": str(countdown_data), "index": 9, "temperature": 2.5, "seed": 5}
    expected = evaluate(engine, problems[9:10], PromptBuilder(tokenizer, 64, True), Sampling(4, 48, 2.5, 5))
    assert len({one.response for one in expected}) == 4 and {one.truncated for one in expected} == {False, True}
    four = call(num_samples=4, **settings)
    assert responses_in(four) == [(paint(one.response, ""), verdict(one)) for one in expected]
    assert f"=== {sum(one.correct for one in expected)} of 4 correct; " in four
    assert responses_in(call(num_samples=2, **settings)) == responses_in(four)[:2]
    assert responses_in(call(num_samples=4, **settings | {"seed": 6})) != responses_in(four)


def test_the_reference_answer_is_shown(call, says, countdown_data):
    says("x")
    for split in ("train", "test"):
        problem = load_problems(str(countdown_data), split)[3]
        answer = problem.demonstration.partition("<answer> ")[2].removesuffix(" </answer>")
        assert call(data=str(countdown_data), index=3, split=split).endswith(f"reference answer: {answer}\n")


def test_rows_of_ones_own_file_are_judged_by_ones_own_verifier(call, says, tokenizer, tmp_path, forget_verifiers):
    data, verifier = tmp_path / "sums.jsonl", tmp_path / "judge.py"
    data.write_text("".join(json.dumps({"ask": f"{n} + 1?", "sum": n + 1}) + "\n" for n in range(20)))
    verifier.write_text(VERIFIER)
    own = {"data": str(data), "prompt_column": "ask", "answer_column": "sum", "verifier": str(verifier),
           "split": "train", "index": 3, "max_prompt_length": 140}
    says([*encode("<answer>no</answer>", tokenizer), tokenizer.eos_token_id], screen=lambda: "")
    shown = call(**own)
    assert "Problem: 4 + 1?" in shown and "reference answer: 5" in shown
    assert responses_in(shown)[0][1].startswith("wrong result, reward 0.1")


def test_without_a_demonstration_what_the_verifier_knows_is_the_reference(call, says, monkeypatch):
    problem = make_problem(demonstration="")
    monkeypatch.setattr(generate, "load_splits", lambda *_, own: ({"test": [problem]}, ""))
    says("x")
    assert call(data="D").endswith(f"reference answer: {problem.ground_truth}\n")


def test_a_prompt_of_ones_own_is_continued_and_not_judged(call, engine, tokenizer, countdown_data):
    text = load_problems(str(countdown_data), "test")[0].prompt
    prompt = PromptBuilder(tokenizer, 64, True).build(make_problem(0, text))
    [[expected]] = engine.generate([prompt], Sampling(1, 48, 0.0))
    assert expected.finish == "stop"
    shown = call(prompt=text, temperature=0.0)
    assert responses_in(shown) == [(decode(expected.response_ids, tokenizer), f"{len(expected.response_ids)} tokens")]
    assert not re.search("correct|reward|reference|hint", shown)


# ----- hints -----


def test_a_hint_is_shown_and_given_to_the_model(call, says, countdown_data, tokenizer):
    problem = next(one for one in load_problems(str(countdown_data), "test") if len(one.solution) > 1)
    slices = solution_slices(problem.solution, 5)
    for k in range(len(slices) + 1):
        calls = says("x")
        shown = call(data=str(countdown_data), index=problem.index, hint_slices=k)
        hint = "".join(slices[:k])
        assert [(given.hint_ids, given.hint_slices) for given, *_ in calls] == [(encode(hint, tokenizer), k)]
        header = f"--- hint, {k} of {len(slices)} slices, {len(encode(hint, tokenizer))} tokens\n{hint}\n"
        assert (header in calls[0][2]) == (k > 0) and "--- hint" not in shown
    calls = says("x")
    call(data=str(countdown_data), index=problem.index, hint_slices=1, hint_slices_max=1)
    assert calls[0][0].hint_ids == encode("".join(problem.solution), tokenizer)


def test_the_hint_is_part_of_what_is_verified(call, says, monkeypatch):
    problem = make_problem(solution=["<ans", "wer>"])
    monkeypatch.setattr(generate, "load_splits", lambda *_, own: ({"test": [problem]}, ""))
    says("wer> 2+3 </answer>", stops=False)
    assert "\n--- correct, reward 1; " in call(data="D", hint_slices=1)
    assert "\n--- no answer, reward 0; " in call(data="D")


# ----- as they grow -----


def test_growing_gives_what_one_call_gives_and_what_is_shown_early_is_its_beginning(engine, tokenizer, countdown_data):
    problem = load_problems(str(countdown_data), "test")[9]
    prompt = PromptBuilder(tokenizer, 64, True).build(problem)
    for temperature, count in ((0.0, 1), (1.4, 4)):
        [whole] = engine.generate([prompt], Sampling(count, 48, temperature, 5))
        args = Args("", num_samples=count, temperature=temperature, seed=5, max_response_length=48)
        updates = list(growing(engine, prompt, args))
        grown = [rollout for rollout, is_whole in updates if is_whole]
        assert [(one.response_ids, one.finish) for one in grown] == [(one.response_ids, one.finish) for one in whole]
        assert len(updates) > count  # else nothing grew
        sample = 0
        for rollout, is_whole in updates:
            length = len(rollout.response_ids)
            assert rollout.response_ids == whole[sample].response_ids[:length]
            assert rollout.logprobs == pytest.approx(whole[sample].logprobs[:length], abs=1e-5)
            sample += is_whole


@pytest.mark.parametrize(("length", "limit", "expected"), [
    (3, 48, [8]), (8, 48, [8]), (9, 48, [8, 32]), (40, 48, [8, 32, 48]), (99, 48, [8, 32, 48]), (99, 32, [8, 32]),
    (99, 5, [5]), (513, 2048, [8, 32, 128, 512, 2048])])
def test_the_limits_grow_as_long_as_a_response_does(says, length, limit, expected):
    calls = says([5] * length, [5])
    args = Args("", num_samples=2, max_response_length=limit)
    updates = list(growing(generate.load_engine(), None, args))
    assert [at for _, at, _ in calls] == expected
    assert [is_whole for _, is_whole in updates] == [False] * (len(expected) - 1) + [True, True]
    work = sum(min(length, at) for at in expected)
    assert work <= (1 + generate.GROWTH / (generate.GROWTH - 1)) * min(length, limit)


def test_text_is_on_the_screen_while_the_rest_is_generated(call, says, monkeypatch):
    screen = io.BytesIO()  # what has been flushed
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding="utf-8"))
    calls = says("0123456789" * 4, "ab", screen=lambda: screen.getvalue().decode())
    call(prompt="q", num_samples=2)
    sys.stdout.flush()
    start, first, second = [shown for *_, shown in calls]
    assert start.endswith("--- prompt, 1 tokens\nq\n--- response 1 of 2\n")
    assert first == start + "01234567" and second == first + "890123456789012345678901"
    rest = "23456789\n--- 40 tokens\n--- response 2 of 2\nab\n--- 2 tokens\n"
    assert screen.getvalue().decode() == second + rest


def test_half_a_character_is_never_printed(call, says, tokenizer):
    for before in range(9):
        text = "a" * before + "\u20ac\U0001f600" * 4
        assert len(encode(text, tokenizer)) == before + 28
        calls = says(text)
        last = call(prompt="q")
        printed = [out for *_, out in calls[1:]]
        assert "\ufffd" not in "".join([*printed, last]) and printed[0] == text[: len(printed[0])]
        assert "".join([*printed, last]) == f"{text}\n--- {before + 28} tokens\n"


def test_a_response_that_rounding_changed_is_printed_anew(call, says, monkeypatch):
    says("x")
    limits = []

    class Unsteady:
        def generate(self, prompts, sampling):
            limit = sampling.max_response_length
            limits.append(limit)
            ids = [70] * limit if limit == 8 else [71] * 9
            return [[Rollout(prompts[0], ids, [0.0] * len(ids), "length" if limit == 8 else "stop")]]

    monkeypatch.setattr(generate, "load_engine", lambda *_, **__: Unsteady())
    shown = call(prompt="q")
    first, notice, *rest = shown.partition("--- response 1 of 1\n")[2].splitlines()
    assert limits == [8, 32] and len(set(first)) == 1 and len(first) == 8
    assert notice.startswith("--- rounding") and len(rest[0]) == 9 and rest[0] != "\ufffd" * 9
    assert set(rest[0]).isdisjoint(first) and rest[1] == "--- 9 tokens"


# ----- the terminal -----


def test_texts_cannot_control_the_terminal(call, says, monkeypatch):
    attack, harmless = "\x1b[2J\r\x07\x9b1m\t", r"\x1b[2J\r\x07\x9b1m" + "\t"
    problem = make_problem(0, attack, [f"h{attack}"], f"d <answer>{attack}!</answer>")
    monkeypatch.setattr(generate, "load_splits", lambda *_, own: ({"test": [problem]}, ""))
    calls = says(f"r{attack}\n", logprobs=[-1.0] * 9)
    last = call(data="D", hint_slices=1, logprobs=True)
    shown = "".join(out for *_, out in calls) + last
    assert not set(shown) & {chr(code) for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}
    for text in (f"\n{harmless}\n", f"\nh{harmless}\n", f"\nr{harmless}\n", f"answer: {harmless}!\n", r"'\x1b'"):
        assert text in shown


def test_prompt_hint_response_and_unsure_tokens_have_their_own_colours_on_a_terminal(call, says, monkeypatch):
    problem = make_problem(0, "ask", ["hint"])
    monkeypatch.setattr(generate, "load_splits", lambda *_, own: ({"test": [problem]}, ""))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    calls = says("a\u20acb", logprobs=[-0.1, -0.1, -0.9, -0.1, -0.1])
    for logprobs, colour in ((True, generate.UNSURE), (False, GREEN)):
        last = call(data="D", hint_slices=1, logprobs=logprobs)
        shown = calls.pop()[2] + last
        assert f"{DIM}ask{RESET}\n" in shown and f"{YELLOW}hint{RESET}\n" in shown
        assert f"\n{GREEN}a{RESET}{colour}\u20ac{RESET}{GREEN}b{RESET}\n" in shown


def test_unsure_tokens_are_listed_with_their_probability_and_the_mean(call, says):
    says("a\u20acb", logprobs=[-1.0, -0.1, -0.9, -0.1, -0.5])
    assert call(prompt="q", logprobs=True).splitlines()[-3:] == [
        "    mean log-probability -0.5200; probability under 0.5: 2 tokens",
        "    token 1     0.368  'a'",
        "    token 3     0.407  '\u20ac'",
    ]
    says("a\u20acb", logprobs=[-1.0, -0.1, -0.9, -0.1, -0.5])
    assert [line[:17] for line in call(prompt="q", logprobs=True, unsure_below=0.7).splitlines()[-3:]] == [
        "    token 1     0", "    token 3     0", "    token 5     0"]


def test_probabilities_are_the_engines(call, engine, tokenizer, countdown_data):
    problem = load_problems(str(countdown_data), "test")[4]
    [[expected]] = engine.generate([PromptBuilder(tokenizer, 64, True).build(problem)], Sampling(1, 48, 1.3, 2))
    shown = call(data=str(countdown_data), index=4, temperature=1.3, seed=2, logprobs=True)
    assert f"    mean log-probability {sum(expected.logprobs) / len(expected.logprobs):.4f};" in shown
    listed = re.findall(r"^    token (\d+) +(0\.\d+)  '", shown, re.MULTILINE)
    probabilities = torch.tensor(expected.logprobs).double().exp().tolist()
    assert listed == [(str(i), f"{p:.3f}") for i, p in enumerate(probabilities, 1) if p < 0.5] != []


@pytest.mark.slow
def test_in_a_pipe_there_is_text_alone_in_its_encoding(base_model):
    flags = to_words({"model": base_model, "prompt": "\u20ac\x1b", "logprobs": True, "engine": "torch"} | LENGTHS)
    command = [sys.executable, "inference/generate.py", *flags, "-n", "2"]
    shown = succeed(run(command, PYTHONIOENCODING="ascii")).stdout
    assert "\n\\u20ac\\x1b\n" in shown and "\x1b" not in shown
    assert len(responses_in(shown)) == 2 and shown.count("    mean log-probability -") == 2


def test_the_deepspeed_engine_says_greedily_what_ours_says(call, countdown_data):
    shown = {name: call(data=str(countdown_data), index=9, temperature=0.0, engine=name)
             for name in ("torch", "deepspeed")}
    assert "engine deepspeed (as --engine says)" in shown["deepspeed"]
    assert responses_in(shown["deepspeed"]) == responses_in(shown["torch"]) != []
    sampled = call(data=str(countdown_data), index=9, num_samples=3, engine="deepspeed")
    assert len({text for text, _ in responses_in(sampled)}) == 3 and "rounding" not in sampled


@pytest.mark.parametrize("name", ["torch", "deepspeed"])
def test_the_ends_that_are_given_end_responses(base_model, tokenizer, countdown_data, name):
    prompt = PromptBuilder(tokenizer, 64, True).build(load_problems(str(countdown_data), "test")[9])
    [[whole]] = engine_of(base_model, tokenizer, name).generate([prompt], Sampling(1, 48, 0.0))
    end = whole.response_ids[4]
    first = whole.response_ids.index(end)
    assert first < len(whole.response_ids) - 1
    [[cut]] = engine_of(base_model, tokenizer, name, end_ids=[end]).generate([prompt], Sampling(1, 48, 0.0))
    assert cut.response_ids == whole.response_ids[: first + 1] and cut.finish == "stop"


def test_the_ends_of_the_template_reach_the_engine(call, monkeypatch, tokenizer, tmp_path):
    def load(*_arguments, end_ids, **_settings):
        raise RuntimeError(sorted(end_ids))

    (tmp_path / "mine.jinja").write_text(chat.CHATML)
    monkeypatch.setattr(generate, "load_engine", load)
    for template, ends in (("none", []), (str(tmp_path / "mine.jinja"), [tokenizer.eos_token_id])):
        with pytest.raises(RuntimeError, match=re.escape(str(ends))):
            call(prompt="q", chat_template=template)


def test_a_chat_template_wraps_the_prompt(call, tmp_path):
    (tmp_path / "mine.jinja").write_text(chat.CHATML)
    shown = call(prompt="q <think> ", chat_template=str(tmp_path / "mine.jinja"), temperature=0.0)
    assert "\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think> \n" in shown


# ----- bad input -----


@pytest.mark.parametrize(("words", "flag", "rule"), [
    ("", "--data None", "either it or --prompt must be given"),
    ("--data DATA --prompt q", "--data DATA", "not both"),
    ("--data DATA --index 32", "--index 32", "must lie between 0 and 31: --data DATA has 32 test problems"),
    ("--data DATA --index -1", "--index -1", "must lie between 0 and 31"),
    ("--data DATA --index 200 --split train", "--index 200", "0 and 199: --data DATA has 200 train problems"),
    ("--data DATA --split dev", "--split", "test"),
    ("--data nowhere", "--data nowhere", "must be a built-in task"),
    ("--prompt q --index 3", "--index 3", "needs a problem of --data"),
    ("--prompt q --split train", "--split train", "needs a problem of --data"),
    ("--prompt q --hint_slices 1", "--hint_slices 1", "needs a problem of --data"),
    ("--data DATA --hint_slices 6", "--hint_slices 6", "has 2 (with --hint_slices_max 5)"),
    ("--data DATA --hint_slices -1", "--hint_slices -1", "must not be negative"),
    ("--data DATA --hint_slices_max 0", "--hint_slices_max 0", "greater than 0"),
    ("--data DATA --max_prompt_length 10", "--max_prompt_length 10", "the prompt has 11 tokens and the hint 0"),
    ("--data DATA --max_prompt_length 13 --hint_slices 1", "--max_prompt_length 13", "11 tokens and the hint 6"),
    ("--prompt=", "--prompt ''", "must have at least one token"),
    ("--prompt q --engine_memory_fraction 0", "--engine_memory_fraction 0.0", "greater than 0"),
    ("--prompt q -n 0", "--num_samples 0", "greater than 0"),
    ("--prompt q -n 2 --temperature 0", "--num_samples 2", "must be 1 at --temperature 0"),
    ("--prompt q --temperature -1", "--temperature -1", "must not be negative"),
    ("--prompt q --unsure_below 1.5", "--unsure_below 1.5", "between 0 and 1"),
    ("--prompt q --max_response_length 0", "--max_response_length 0", "greater than 0"),
    ("--prompt q --max_response_length 200", "--max_response_length 200", "exceeds the 192 positions"),
    ("--prompt q --model ./nowhere", "--model ./nowhere", "no such folder"),
    ("--prompt q --engine magic", "--engine", "deepspeed"),
    ("--prompt q --chat_template model", "--chat_template model", "the tokenizer of --model has no chat template"),
    ("--prompt q --system_prompt x", "--system_prompt 'x'", "needs a chat template"),
])
def test_bad_input_is_told_before_a_model_loads(monkeypatch, capsys, base_model, countdown_data, words, flag, rule):
    def too_late(*_arguments, **_settings):
        raise AssertionError("bad input was not found in time")

    for owner, name in ((AutoModelForCausalLM, "from_pretrained"), (processes, "join"), (generate, "load_engine")):
        monkeypatch.setattr(owner, name, too_late)
    monkeypatch.setattr(os, "_exit", sys.exit)
    defaults = to_words({"model": base_model} | LENGTHS)
    given = words.replace("DATA", str(countdown_data)).split()
    monkeypatch.setattr(sys, "argv", ["inference/generate.py", *defaults, *given])
    with pytest.raises(SystemExit) as ended:
        run_script(generate.main, Args)
    stderr = " ".join(capsys.readouterr().err.replace(str(countdown_data), "DATA").split())
    assert ended.value.code == 2 and flag in stderr and rule in stderr


def test_several_processes_are_refused(monkeypatch, capsys, call):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(generate.BadInput, match="one process, not on 2"):
        call(prompt="q")


# ----- vLLM -----


def _of_vllm(model, data):
    """In a process of its own: samples as they grow, and those of one call, as (ids, finish)."""
    processes.join()
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompt = PromptBuilder(tokenizer, 64, True).build(load_problems(data, "test")[9])
    engine = engine_of(model, tokenizer, "vllm")
    found = []
    for temperature, count in ((0.0, 1), (1.4, 4)):
        args = Args("", num_samples=count, temperature=temperature, seed=5, max_response_length=48)
        updates = list(growing(engine, prompt, args))
        [whole] = engine.generate([prompt], Sampling(count, 48, temperature, 5))
        found.append([[(one.response_ids, one.finish) for one in some]
                      for some in ([rollout for rollout, is_whole in updates if is_whole], whole)])
    return found


@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM")
def test_growing_is_exact_with_vllm(base_model, countdown_data):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for grown, whole in pool.apply(_of_vllm, (str(base_model), str(countdown_data))):
            assert grown == whole and max(len(ids) for ids, _ in whole) > generate.FIRST_LIMIT
