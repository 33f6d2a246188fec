"""Evaluation: pass@k and intervals by hand and by brute force, and eval.py on several models and data sets."""

import json
import math
import re
import shutil
import weakref
from itertools import combinations
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTJConfig, GPTJForCausalLM

from inference import hybrid_engine
from tests.helpers.chat import CHATML
from tests.helpers.float64 import IN_FLOAT64
from tests.helpers.launching import launch, start, succeed
from tests.helpers.models import byte_tokenizer, make_problem, with_noise
from training import eval as eval_script
from utils.data import load_problems
from utils.evaluation import Response, evaluate, summary, tokenizer_mismatch
from utils.prompts import PromptBuilder, encode
from utils.report.results import interval_over_problems, pass_at_k, pass_ks, results_of, results_table
from utils.report.runs import wilson_interval
from utils.run import processes, watchdog
from utils.run.errors import BadInput
from utils.setup.inputs import evaluation_chat, evaluation_lengths
from utils.types import Rollout, Sampling

SAMPLES = 3


# ----- pass@k -----


def test_pass_at_k_by_hand():
    assert pass_at_k(10, 3, 1) == 0.3
    assert pass_at_k(4, 1, 2) == 0.5  # 3 of the 6 pairs hold it
    assert pass_at_k(5, 2, 3) == 0.9  # 1 of the 10 triples misses both
    assert pass_at_k(5, 3, 3) == 1.0  # only two are wrong
    assert pass_at_k(2048, 1, 1024) == 0.5  # C(2048, 1024) is no float


@given(st.data(), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_correct_sample(data, n):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(combinations(range(n), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(min(subset) < c for subset in subsets) / len(subsets), abs=1e-15)


@given(st.data(), st.integers(1, 1000))
@settings(max_examples=60, deadline=None)
def test_pass_at_1_is_the_mean_and_pass_at_n_whether_any_is_correct(data, n):
    c = data.draw(st.integers(0, n))
    assert pass_at_k(n, c, 1) == c / n
    assert pass_at_k(n, c, n) == (c > 0)


def test_the_ks_are_powers_of_two_and_the_number_of_samples():
    assert [pass_ks(n) for n in (0, 1, 2, 5, 8)] == [[], [1], [1, 2], [1, 2, 4, 5], [1, 2, 4, 8]]


# ----- intervals -----


@given(st.lists(st.booleans(), min_size=1, max_size=200))
@example([False])
@example([True] * 30)
@settings(max_examples=60, deadline=None)
def test_interval_is_wilsons_with_one_response_a_problem(correct):
    expected = pytest.approx(wilson_interval(sum(correct), len(correct)), abs=1e-12)
    assert interval_over_problems([float(one) for one in correct], 1) == expected


def test_interval_by_hand():
    rates = [0.25, 0.75, 0.25, 0.75]  # s^2 = 4 / 16 / 3 = 1 / 12, m = 4 * 0.25 / s^2 = 12
    assert interval_over_problems(rates, 4) == pytest.approx(wilson_interval(6, 12))
    assert interval_over_problems(rates, 2) == pytest.approx(wilson_interval(4, 8))  # no more than the responses
    assert interval_over_problems([0.0, 1.0, 1.0], 16) == pytest.approx(wilson_interval(2, 3))  # samples that agree
    assert interval_over_problems([0.5, 0.5], 16) == pytest.approx(wilson_interval(1, 2))
    assert interval_over_problems([0.0] * 9, 16) == pytest.approx(wilson_interval(0, 9))
    assert interval_over_problems([0.75], 4) == pytest.approx(wilson_interval(0.75, 1))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_interval_holds_the_mean_and_lies_between_all_alike_and_all_independent(counts):
    rates, num_problems = [c / 6 for c in counts], len(counts)
    low, high = interval_over_problems(rates, 6)
    assert 0 <= low <= fmean(rates) + 1e-12 and fmean(rates) - 1e-12 <= high <= 1
    widths = [end - start for start, end in (wilson_interval(fmean(rates) * n, n)
                                             for n in (6 * num_problems, num_problems))]
    assert widths[0] - 1e-12 <= high - low <= widths[1] + 1e-12


def test_interval_covers_the_truth_19_times_of_20_where_counting_responses_does_not():
    """40 problems of rate Beta(0.4, 0.6), whose mean is 0.4, 8 samples each."""
    random, problems, samples, trials = np.random.default_rng(0), 40, 8, 400
    covered = {"over problems": 0, "over responses": 0}
    for _ in range(trials):
        rates = random.binomial(samples, random.beta(0.4, 0.6, problems)) / samples
        low, high = interval_over_problems(rates.tolist(), samples)
        covered["over problems"] += low <= 0.4 <= high
        low, high = wilson_interval(rates.sum() * samples, problems * samples)
        covered["over responses"] += low <= 0.4 <= high
    assert 0.93 <= covered["over problems"] / trials <= 0.97
    assert covered["over responses"] / trials < 0.8


# ----- the numbers and the table -----


def response(index: int, sample: int, reason: str, tokens: int = 5) -> Response:
    correct = reason == "correct"
    return Response(index, sample, "countdown", "p", "r", tokens, False, float(correct), correct, reason)


SAMPLED = [response(7, i, reason) for i, reason in enumerate(["correct", *["wrong result"] * 2, "no answer"])]
SAMPLED += [response(2, i, "correct", tokens=9) for i in range(4)]


def test_results_of_samples_by_hand():
    results = results_of(SAMPLED, 4)
    assert results["n"] == 2 and results["accuracy"] == 5 / 8 and results["format"] == 7 / 8
    assert [results[f"pass@{k}"] for k in (1, 2, 4)] == [5 / 8, 3 / 4, 1.0]
    assert results["reasons"] == {"correct": 5, "wrong result": 2, "no answer": 1}
    assert results["response_tokens"] == 7.0
    assert (results["pass@4_low"], results["pass@4_high"]) == pytest.approx(wilson_interval(2, 2))
    assert (results["accuracy_low"], results["accuracy_high"]) == interval_over_problems([0.25, 1.0], 4)
    assert (results["pass@2_low"], results["pass@2_high"]) == interval_over_problems([0.5, 1.0], 4)


def test_results_of_greedy_responses_count_each_and_have_no_pass_at_k():
    results = results_of([response(index, 0, "correct" if index else "no answer") for index in range(4)], 0)
    assert results["n"] == 4 and results["accuracy"] == 0.75
    assert (results["accuracy_low"], results["accuracy_high"]) == pytest.approx(wilson_interval(3, 4))
    assert not any(name.startswith("pass@") for name in results)


def test_table_names_the_models_and_data_that_differ():
    results = {"countdown": results_of(SAMPLED, 4)}
    runs = [{"model": model, "data": "D", "results": results} for model in ("A", "B")]
    lines = results_table(runs, 4).splitlines()
    low, high = (f"{end:.1%}" for end in wilson_interval(2, 2))
    assert lines[0] == ("| model | data source | n | mean@4 | 95 % interval | pass@2 | pass@4 | format | "
                        "response tokens | verdicts |")
    assert [line[:30] for line in lines[2:]] == ["| A | countdown | 2 | 62.5% | ", "| B | countdown | 2 | 62.5% | "]
    assert f"| 100.0% ({low} to {high}) | 87.5% | 7.0 | correct 5, wrong result 2, no answer 1 |" in lines[2]
    assert results_table(runs[:1], 4).startswith("| data source | n |")
    assert results_table([*runs[:1], runs[0] | {"data": "E"}], 4).startswith("| data | data source | n |")


def test_tokenizer_mismatch_is_told_where_tokens_do_not_give_the_text_back():
    tokenizer = byte_tokenizer()
    assert tokenizer_mismatch("Numbers: 3, \u00e9\n", tokenizer) == ""
    assert tokenizer_mismatch("e\u0301", tokenizer).endswith("decode to '\u00e9'")  # Qwen2 composes characters
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert tokenizer_mismatch("Numbers: 3\n", tokenizer).endswith("decode to 'numbers: 3\\n'")


def test_accuracy_counts_right_answers_and_not_rewards():
    right = Response(0, 0, "countdown", "p", "r", 4, False, 1.0, True, "correct")
    wrong = Response(1, 0, "countdown", "p", "r", 8, True, 0.1, False, "wrong result")
    silent = Response(2, 0, "countdown", "p", "r", 6, False, 0.0, False, "no answer")
    expected = {"n": 3, "accuracy": 1 / 3, "format": 2 / 3, "reward": 1.1 / 3, "response_tokens": 6, "truncated": 1 / 3}
    assert summary([right, wrong, silent]) == pytest.approx(expected, rel=1e-12)


def test_samples_are_drawn_with_the_seed_at_step_0():
    class Recorder:
        def generate(self, prompts, sampling, step=0):
            assert (sampling, step) == (Sampling(2, 4, 0.7, 5), 0)
            return [[Rollout(prompt, [60 + sample], [0.0], "length") for sample in range(2)] for prompt in prompts]

    problems = [make_problem(index) for index in (9, 4)]
    responses = evaluate(Recorder(), problems, PromptBuilder(byte_tokenizer(), 64, True), Sampling(2, 4, 0.7, 5))
    assert [(one.index, one.sample, one.truncated) for one in responses] == [
        (9, 0, True), (9, 1, True), (4, 0, True), (4, 1, True)]
    assert responses[0].response == responses[2].response != responses[1].response


# ----- eval.py -----


@pytest.fixture(scope="module")
def models(base_model, tmp_path_factory):
    """The base model, and a worse one."""
    worse = tmp_path_factory.mktemp("worse") / "hf"
    with_noise(AutoModelForCausalLM.from_pretrained(base_model), 0.03, seed=1).save_pretrained(worse)
    AutoTokenizer.from_pretrained(base_model).save_pretrained(worse)
    return str(base_model), str(worse)


@pytest.fixture(scope="module")
def data_sets(countdown_data, tmp_path_factory):
    """Countdown, and its test problems in reverse: the same data_source, other problems at the same indices."""
    other = tmp_path_factory.mktemp("other")
    test = pq.read_table(countdown_data / "test.parquet")
    pq.write_table(test.take(list(reversed(range(test.num_rows)))), other / "test.parquet")
    return str(countdown_data), str(other)


@pytest.fixture
def call(monkeypatch, capsys):
    """call(model=.., data=.., output_dir=..) -> results.json, the lines of responses.jsonl, stdout of main, alone."""
    monkeypatch.setattr(processes, "start", lambda _output_dir, _minutes, _precision: torch.device("cpu"))
    monkeypatch.setattr(processes, "end", lambda: None)

    def run(output_dir, **settings):
        flags = {"eval_problems": 12, "max_prompt_length": 64, "max_response_length": 48} | settings
        eval_script.main(eval_script.Args(output_dir=str(output_dir), **flags))
        return *read(output_dir), capsys.readouterr().out

    return run


def read(output_dir):
    lines = (output_dir / "responses.jsonl").read_text().splitlines()
    return json.loads((output_dir / "results.json").read_text()), [json.loads(line) for line in lines]


def test_several_models_and_data_sets_are_what_each_pair_is_alone(tmp_path, call, models, data_sets):
    report, lines, shown = call(tmp_path / "all", model=models, data=data_sets)
    pairs = [(model, data) for model in models for data in data_sets]
    assert [(run["model"], run["data"]) for run in report["runs"]] == pairs
    assert report["results"] == report["runs"][0]["results"]
    assert len({json.dumps(run["results"]) for run in report["runs"]}) == 4  # else this would show little
    for (model, data), run in list(zip(pairs, report["runs"], strict=True))[::3]:  # of each model, of each data set
        alone, own, _ = call(tmp_path / "alone", model=(model,), data=(data,), overwrite=True)
        assert alone["results"] == run["results"]
        assert own == [line for line in lines if (line["model"], line["data"]) == (model, data)]
        assert [line["index"] for line in own] == list(range(12))
        assert [line["prompt"] for line in own] == [problem.prompt for problem in load_problems(data, "test")[:12]]
    first = load_problems(data_sets[1], "test")[0].prompt
    num_tokens = len(encode(first, AutoTokenizer.from_pretrained(models[1])))
    assert f"{models[1]} on {data_sets[1]}: first prompt, {num_tokens} tokens: {first!r}\n" in shown
    assert shown.count("first prompt") == 4 and "mismatch" not in shown
    assert "| model | data | data source | n | accuracy |" in shown


def test_samples_differ_and_are_reported_by_problem(tmp_path, call, models, data_sets):
    settings = {"num_samples": SAMPLES, "seed": 5, "temperature": 1.2}
    report, lines, shown = call(tmp_path / "one", model=models[:1], data=data_sets[:1], **settings)
    assert [(line["index"], line["sample"]) for line in lines] == [(i, s) for i in range(12) for s in range(SAMPLES)]
    assert len({line["response"] for line in lines}) > 12
    results = report["results"]["countdown"]
    counts = [sum(line["correct"] for line in lines if line["index"] == index) for index in range(12)]
    assert results["pass@1"] == pytest.approx(sum(counts) / 12 / SAMPLES)
    assert 0 < results["pass@1"] < results["pass@2"] < 1  # else this would show little
    assert results["pass@3"] == sum(count > 0 for count in counts) / 12
    assert results["n"] == 12 and sum(results["reasons"].values()) == 12 * SAMPLES
    assert "| mean@3 | 95 % interval | pass@2 | pass@3 |" in shown
    *_, others, _ = call(tmp_path / "seed", model=models[:1], data=data_sets[:1], **settings | {"seed": 6})
    assert [line["response"] for line in others] != [line["response"] for line in lines]


@pytest.mark.slow
@pytest.mark.numerics
def test_samples_and_report_are_the_same_on_any_number_of_processes(tmp_path, exact_base_model, data_sets):
    flags = {"model": exact_base_model, "data": data_sets[0], "eval_problems": 12,
             "max_prompt_length": 64, "max_response_length": 48, "num_samples": SAMPLES, "seed": 5, "temperature": 1.2}
    reports, tables = [], []
    for number in (1, 2):
        output_dir = tmp_path / str(number)
        own = ("training/eval.py", flags | {"output_dir": output_dir})
        result = succeed(launch(*own, 2, **IN_FLOAT64) if number == 2 else start(*own, **IN_FLOAT64))
        report, lines = read(output_dir)
        reports.append((report["results"], lines))
        tables.append([line for line in result.stdout.splitlines() if line.startswith("|")])
        assert result.stdout.count("first prompt") == 1 and len(lines) == 12 * SAMPLES
    assert reports[0] == reports[1] and tables[0] == tables[1] != []


def test_a_model_is_freed_before_the_next_loads_and_what_is_done_is_kept(
        tmp_path, call, monkeypatch, models, data_sets):
    loaded = []

    def from_pretrained(model, dtype, **_):
        assert all(earlier() is None for earlier in loaded)
        if loaded:
            raise MemoryError
        whole = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        loaded.append(weakref.ref(whole))
        return whole

    monkeypatch.setattr(hybrid_engine, "AutoModelForCausalLM", SimpleNamespace(from_pretrained=from_pretrained))
    with pytest.raises(MemoryError):
        call(tmp_path, model=models, data=data_sets)
    report, lines = read(tmp_path)
    assert [(run["model"], run["data"]) for run in report["runs"]] == [(models[0], data) for data in data_sets]
    assert len(lines) == 24


def test_overwriting_leaves_nothing_of_the_last_time(tmp_path, call, monkeypatch, models, data_sets):
    call(tmp_path, model=models[:1], data=data_sets[:1])
    monkeypatch.setattr(eval_script, "load_engine", lambda *_, **__: math.nan.no_such_thing)
    with pytest.raises(AttributeError):
        call(tmp_path, model=models[:1], data=data_sets[:1], overwrite=True)
    files = [path for path in tmp_path.iterdir() if path.name != watchdog.FOLDER]
    assert [(path.name, path.read_text()) for path in files] == [("responses.jsonl", "")]


# ----- lengths that are not given -----


def test_a_checkpoint_is_evaluated_with_the_lengths_of_its_run(tmp_path):
    model = tmp_path / "run" / "checkpoints" / "step_4" / "hf"
    model.mkdir(parents=True)
    assert evaluation_lengths(str(model), 0, 0)[:2] == (1024, 1024)  # no run
    (tmp_path / "run" / "args.json").write_text('{"max_prompt_length": 96, "max_response_length": 64}')
    assert evaluation_lengths(str(model), 0, 0)[:2] == (96, 64)
    assert "run/args.json" in evaluation_lengths(str(model), 0, 0)[2]
    assert evaluation_lengths(str(model), 0, 32)[:2] == (96, 32)
    assert evaluation_lengths(str(model), 8, 32) == (8, 32, "as the flags say")
    (tmp_path / "run" / "args.json").write_text('{"max_prom')
    with pytest.raises(BadInput, match="args.json cannot be read"):
        evaluation_lengths(str(model), 0, 0)


def test_other_models_have_the_defaults_or_half_of_their_positions(tmp_path):
    assert evaluation_lengths("Qwen/Qwen2.5-3B", 0, 0) == (1024, 1024, "the defaults")
    for positions, length in ((192, 96), (2048, 1024), (32_768, 1024)):
        (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": positions}))
        assert evaluation_lengths(str(tmp_path), 0, 0)[:2] == (length, length)


def test_without_lengths_the_number_is_that_of_training(call, tmp_path, models, data_sets):
    given, _, _ = call(tmp_path / "given", model=models[:1], data=data_sets[:1])
    model = tmp_path / "run" / "checkpoints" / "step_4" / "hf"
    shutil.copytree(models[0], model)
    (tmp_path / "run" / "args.json").write_text('{"max_prompt_length": 64, "max_response_length": 48}')
    report, _, shown = call(tmp_path / "not given", model=(str(model),), data=data_sets[:1], max_prompt_length=0,
                            max_response_length=0)
    assert report["results"] == given["results"]
    assert (report["runs"][0]["max_prompt_length"], report["runs"][0]["max_response_length"]) == (64, 48)
    assert "prompts of 64 tokens at most, responses of 48 (those of its training, " in shown


def test_problems_left_out_are_counted_aloud(call, tmp_path, models, data_sets):
    tokenizer = AutoTokenizer.from_pretrained(models[0])
    lengths = sorted(len(encode(problem.prompt, tokenizer)) for problem in load_problems(data_sets[0], "test"))
    limit = lengths[16]
    count = sum(length > limit for length in lengths)
    report, _, shown = call(tmp_path, model=models[:1], data=data_sets[:1], eval_problems=0, max_prompt_length=limit,
                            skip_long_prompts=True)
    assert 0 < count < 32 and report["runs"][0]["left_out"] == count
    assert report["results"]["countdown"]["n"] == 32 - count
    assert f"{count} of 32 test problems left out: longer than --max_prompt_length" in shown


# ----- chat templates -----


def test_a_checkpoint_is_evaluated_with_the_chat_of_its_run(tmp_path):
    model = tmp_path / "run" / "checkpoints" / "step_4" / "hf"
    model.mkdir(parents=True)
    none = {"chat_template": "none", "system_prompt": "", "think": True}
    assert evaluation_chat(str(model), "run", "", True) == none  # no run
    (tmp_path / "run" / "args.json").write_text('{"max_prompt_length": 96}')
    assert evaluation_chat(str(model), "run", "", True) == none  # of an earlier version
    for own, expected in (("none", "none"), ("model", "model"), ("gone/mine.jinja", "model")):
        settings = {"chat_template": own, "system_prompt": "Be brief.", "think": False}
        (tmp_path / "run" / "args.json").write_text(json.dumps(settings))
        assert evaluation_chat(str(model), "run", "", True) == settings | {"chat_template": expected}
        assert evaluation_chat(str(model), "run", "Be kind.", True)["system_prompt"] == "Be kind."
        assert evaluation_chat(str(model), "none", "", True) == none
        assert evaluation_chat(str(model), "mine.jinja", "", False) == {
            "chat_template": "mine.jinja", "system_prompt": "", "think": False}


def test_the_ends_of_the_template_reach_the_engine(call, monkeypatch, tmp_path, models, data_sets):
    def load(*_arguments, end_ids, **_settings):
        raise RuntimeError(sorted(end_ids))

    (tmp_path / "mine.jinja").write_text(CHATML)
    monkeypatch.setattr(eval_script, "load_engine", load)
    eos = AutoTokenizer.from_pretrained(models[0]).eos_token_id
    for name, template, ends in (("a", "none", []), ("b", str(tmp_path / "mine.jinja"), [eos])):
        with pytest.raises(RuntimeError, match=re.escape(str(ends))):
            call(tmp_path / name, model=models[:1], data=data_sets[:1], chat_template=template, max_prompt_length=128)


# ----- engines -----


def test_the_deepspeed_engine_gives_the_greedy_responses_of_ours(call, tmp_path, models, data_sets):
    ours, our_lines, _ = call(tmp_path / "torch", model=models, data=data_sets[:1], engine="torch")
    theirs, their_lines, shown = call(tmp_path / "deepspeed", model=models, data=data_sets[:1], engine="deepspeed")
    assert [run["results"] for run in theirs["runs"]] == [run["results"] for run in ours["runs"]]
    assert their_lines == our_lines and len(our_lines) == 24
    assert "engine deepspeed (as --engine says)" in shown
    assert ours["runs"][0]["results"] != ours["runs"][1]["results"]  # else this would show little


def test_a_model_with_an_attention_of_its_own_can_be_evaluated(call, tmp_path, base_model, data_sets):
    """No other engine runs it here."""
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    torch.manual_seed(0)
    model = GPTJForCausalLM(GPTJConfig(vocab_size=len(tokenizer), n_positions=128, n_embd=16, n_layer=2, n_head=2,
                                       rotary_dim=4, bos_token_id=None, eos_token_id=None)).eval()
    model.save_pretrained(tmp_path / "gptj")
    tokenizer.save_pretrained(tmp_path / "gptj")
    settings = {"model": (str(tmp_path / "gptj"),), "data": data_sets[:1], "eval_problems": 3,
                "max_response_length": 16}
    with pytest.raises(BadInput, match="flag --engine torch: cannot run"):
        call(tmp_path / "torch", engine="torch", **settings)
    _, lines, _ = call(tmp_path / "deepspeed", engine="deepspeed", **settings)
    for line in lines:
        ids = torch.tensor([encode(line["prompt"], tokenizer)])
        expected = model.generate(ids, max_new_tokens=16, do_sample=False, eos_token_id=tokenizer.eos_token_id,
                                  pad_token_id=tokenizer.eos_token_id)
        assert line["response"] == tokenizer.decode(expected[0, ids.shape[1]:])
    assert len(lines) == 3
