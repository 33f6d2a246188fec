"""The page of runs: nothing in it can act, it needs nothing else, and a browser shows it. Chromium is used if there."""

import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request

import pytest

from tests.report.test_page_data import write
from utils.report import __main__ as report_command
from utils.report import page as module
from utils.report.page import fingerprint, page, server, write_page
from utils.report.page_data import page_data

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
EVIL = "</script><script>document.title='caught'</script><img src=x onerror=\"document.title='caught'\"><!--<script>"


def training(step, **more):
    line = {"step": step, "loss": 1 / step, "reward": 0.5, "accuracy": 0.4, "format": 1.0, "truncated": 0.1,
            "flat_groups": 0.3, "sft_loss": 2.0, "hint_tokens": 9.0, "hint_slices": 1.5, "hint_share": 0.5,
            "response_tokens": 30, "groups_all_right": 0.2, "groups_all_wrong": 0.3, "logprob_mismatch": 1e-6,
            "state_grad_norm/hint": 0.02, "state_grad_norm/response": 0.01, "seconds/rollout": 1.0,
            "seconds/update": 2.0, "accuracy/slices_1": 0.4, "rollouts/slices_1": 20}
    return line | more


def make_run(folder, num_steps=6):
    lines = [{"step": 0, "eval/accuracy": 0.25, "eval/n": 100}, *map(training, range(1, num_steps + 1)),
             {"step": num_steps, "eval/accuracy": 0.5, "eval/n": 100}]
    sample = {"step": 2, "kind": "training", "index": 3, "sample": 0, "hint_slices": 1}
    samples = [sample | {"prompt": f"p{EVIL}", "hint": f"h{EVIL}", "response": f"the right one {EVIL}", "reward": 1.0,
                         "reason": "correct", "truncated": False},
               sample | {"prompt": "p", "hint": "", "response": "the cut one \ud800\u2028\u202e", "reward": 0.0,
                         "reason": f"no answer {EVIL}", "truncated": True}]
    return write(folder, lines, samples, args={"model": EVIL, "data": "d", "max_logprob_mismatch": 0.1},
                 environment={"command": ["training/uft.py", EVIL], "date": "2026-01-01 00:00:00 +0000"})


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "<script>document.title='caught'")


@pytest.fixture
def serving(run):
    """(address, run) of a server that watches it."""
    with server([run], port=0) as it:
        thread = threading.Thread(target=it.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{it.server_address[1]}", run
        it.shutdown()
        thread.join()


def seen(address, tmp_path, *options):
    """(the document as the browser has it after its scripts, what it logged)."""
    result = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}",
         "--enable-logging=stderr", "--virtual-time-budget=5000", "--window-size=1200,900", *options, "--dump-dom",
         address], capture_output=True, timeout=60)
    logged = [line for line in result.stderr.decode(errors="replace").splitlines() if ":CONSOLE" in line]
    return result.stdout.decode(errors="replace"), logged


# ----- the file -----


def test_no_text_of_a_run_can_end_the_data_or_begin_an_element(run):
    text = page(page_data([run]))
    assert re.findall(r"<(?:/?script|img|!--)[^>]*>", text) == [
        '<script type="application/json" id="shown">', "</script>", "<script>", "</script>"]
    assert "<title>&lt;script&gt;document.title=&#x27;caught&#x27;</title>" in text
    data = re.search(r'id="shown">(.*?)</script>', text, re.DOTALL)[1]
    assert not set("<>&") & set(data) and data.isascii()
    [told] = json.loads(data)["runs"]
    assert [one["response"] for one in told["samples"]] == [f"the right one {EVIL}", "the cut one \ufffd\u2028\u202e"]


def test_the_policy_allows_this_script_and_this_style_and_no_request(run):
    text = page(page_data([run]))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    style, script = (re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1] for tag in ("style", "script"))
    assert policy == (f"default-src 'none'; script-src '{fingerprint(script)}'; style-src '{fingerprint(style)}'; "
                      "connect-src 'none'; base-uri 'none'; form-action 'none'")
    assert set(re.findall(r"https?://[^\s\"'`]+", style + script)) == {"http://www.w3.org/2000/svg"}  # a name
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(", script)
    assert "connect-src 'self'" in page(page_data([run]), watch_seconds=3)


def test_names_of_places_in_the_template_are_only_filled_there(tmp_path):
    run = make_run(tmp_path / "@data@@script@")
    assert page(page_data([run])).count("<title>@data@@script@</title>") == 1


def test_command_line(run, tmp_path, capsys):
    page_of_two = tmp_path / "page.html"
    new = write(tmp_path / "new", [])  # no evaluation yet
    report_command.main(report_command.Args((run, new), html=page_of_two))
    assert capsys.readouterr().out == f"page: {page_of_two}\n"
    assert page_of_two.read_text().count('"group":') == 2
    with pytest.raises(SystemExit, match="nowhere must be the output_dir"):
        report_command.main(report_command.Args((tmp_path / "nowhere",), html=page_of_two))
    with pytest.raises(SystemExit, match="nowhere must be a folder"):
        report_command.main(report_command.Args((tmp_path / "nowhere",), watch=True))


# ----- the server -----


def get(address, **headers):
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
        return answer.status, answer.read().decode()


def test_the_server_tells_what_is_new_also_of_half_a_line(serving):
    address, run = serving
    assert get(address)[1].startswith("<!doctype html>")
    told = json.loads(get(f"{address}/data.json")[1])
    assert get(f"{address}/data.json?seen={told['stamp']}") == (204, "")
    line = json.dumps(training(7)) + "\n"
    for part, step in ((line[:50], 6), (line[50:], 7)):
        with (run / "metrics.jsonl").open("a") as file:
            file.write(part)
        status, text = get(f"{address}/data.json?seen={told['stamp']}")
        told = json.loads(text)
        assert status == 200 and told["runs"][0]["steps"] == step
    (run / "metrics.jsonl").write_text('{"st\n{"step": 1}\n')
    with pytest.raises(urllib.error.HTTPError, match="500") as error:
        get(f"{address}/data.json")
    assert "line 1: not a JSON object" in error.value.read().decode()


@pytest.mark.parametrize(("path", "host", "status"), [("/", "evil.example", 403), ("/data.json", "127.0.0.1", 403),
                                                      ("/../args.json", None, 404), ("/metrics.jsonl", None, 404)])
def test_the_server_shows_nothing_else_and_to_nobody_else(serving, path, host, status):
    address, _ = serving
    assert address.startswith("http://127.0.0.1:")
    with pytest.raises(urllib.error.HTTPError, match=str(status)):
        get(address + path, **({} if host is None else {"Host": host}))


# ----- in a browser -----


@pytest.mark.slow
@in_browser
def test_a_browser_draws_everything_and_runs_nothing_of_a_text(run, tmp_path):
    second = make_run(tmp_path / "second", num_steps=9)
    path = tmp_path / "page.html"
    write_page([run, second], path)
    planted = path.read_text().replace("</main>", "</main><script>document.title='caught'</script><img src=x>")
    path.write_text(planted)  # even what stood in the page itself would not run
    document, logged = seen(f"{path.as_uri()}#right", tmp_path)
    assert 'data-ready="yes"' in document
    assert "<title>caught</title>" not in document and "&lt;script&gt;document.title='caught'" in document
    assert len(logged) == 2 and all("Content Security Policy" in line for line in logged), logged  # script and image
    titles = set(re.findall(r"<h2>(.*?)</h2>", document))
    assert titles == {"Runs", "Health", "Accuracy", "Training", "Hints", "Group outcomes", "Lengths", "Engine",
                      "Time and tokens", "Settings", "Samples"}
    for title in ("Accuracy on held-out problems", "Share of the solution shown", "Accuracy by number of slices shown",
                  "Accuracy by slices, whole run", "Gradient norm by kind of token",
                  "Engine against actor"):
        assert f'aria-label="{title}"' in document, title
    assert not re.search(r'\sd="[^"]*(NaN|undefined|Infinity)', document)
    assert "[object" not in document.split("</main>")[0]
    samples = re.findall(r'<article class="sample (\w+)">(.*?)</article>', document, re.DOTALL)
    assert [verdict for verdict, _ in samples] == ["right", "right"]  # the filter in the address
    assert "the right one &lt;/script&gt;" in samples[0][1] and "the cut one" not in document.split("</main>")[0]


@pytest.mark.slow
@in_browser
def test_gradients_of_demonstrations_are_drawn_where_there_are_any(run, tmp_path):
    """A run without hints, and its fourth step without a demonstration; beside it one whose demonstrations are none."""
    def of(document):
        shown = document.split('aria-label="Gradient norm by kind of token"')[1].split("aria-label=")[0]
        return (re.findall(r'<i class="key (\w*)"[^>]*></i>([^<]*)', shown),
                [re.findall("[ML]", path) for path in re.findall(r'<path d="([^"]*)"[^>]*dasharray="2 3"', shown)])

    beside = {"hint_tokens": 0, "hint_slices": 0, "hint_share": 0, "state_grad_norm/hint": 0.0}
    lines = [training(step, **beside, **{"state_grad_norm/demonstration": 0.1 * (step != 4)}) for step in range(1, 8)]
    luffy = write(tmp_path / "luffy", [{name: value for name, value in line.items() if name != "sft_loss"}
                                       for line in lines])
    none = write(tmp_path / "none", [line | {"state_grad_norm/demonstration": 0.0} for line in lines])
    path = tmp_path / "page.html"
    write_page([luffy], path)
    document, _ = seen(path.as_uri(), tmp_path)
    assert "<h2>Hints and demonstrations</h2>" in document
    assert of(document) == ([("", "response tokens"), ("dotted", "demonstration tokens")],
                            [["M", "L", "L", "M", "L", "L"]])
    write_page([run, none], path)
    document, _ = seen(path.as_uri(), tmp_path)
    assert "<h2>Hints</h2>" in document and "demonstration tokens" not in document and of(document)[1] == []
    assert [kind for kind, _ in of(document)[0]] == ["dashed", "", ""]


# What a reader does. It stands in a copy of the page without the policy, which would not let it run.
READER = """<script>
const at = (title) => [...document.querySelectorAll("svg")].find((one) => one.getAttribute("aria-label") === title);
const point = (title, type, share) => {
  const node = at(title), box = node.getBoundingClientRect();
  node.dispatchEvent(new PointerEvent(type, { clientX: box.left + share * box.width, clientY: box.top + 50 }));
};
const press = (words) => [...document.querySelectorAll("button")].find((one) => one.textContent === words).click();
SVGElement.prototype.setPointerCapture = () => {};
const told = [], tell = (what) => told.push(what);
const REWARD = "Reward";
point("Accuracy on held-out problems", "pointermove", 0.99);
tell(document.getElementById("tip").innerText);
point(REWARD, "pointerdown", 0.5);
point(REWARD, "pointermove", 0.9);
point(REWARD, "pointerup", 0.9);
tell(hover.zoom[0] > 3 && hover.zoom[1] < 9);
press("whole run");
tell(hover.zoom);
press("truncated 2");
tell([...document.querySelectorAll(".sample b")].map((one) => one.textContent));
document.querySelector('[data-filter="second"]').click();
tell(document.querySelectorAll(".sample").length);
const search = document.querySelector("input[type=search]");
search.value = "RIGHT ONE";
search.dispatchEvent(new Event("input"));
tell(document.querySelectorAll(".sample").length);
document.querySelectorAll("#bar .run")[1].click();
tell(visible().length);
press("light / dark");
tell(document.documentElement.dataset.theme);
console.log(JSON.stringify(told));
</script>"""


@pytest.mark.slow
@in_browser
def test_a_reader_points_zooms_filters_and_hides_runs(run, tmp_path):
    text = page(page_data([run, make_run(tmp_path / "second", num_steps=9)]))
    path = tmp_path / "page.html"
    path.write_text(re.sub("<meta http-equiv=[^>]*>", "", text).replace("</body>", READER + "</body>"))
    _, [logged] = seen(path.as_uri(), tmp_path)
    told = json.loads(logged[logged.index('"[') + 1 : logged.rindex(']"') + 1])
    assert "50.0 % (40.4 % to 59.6 %) of 100" in told[0] and told[0].startswith("step 9")
    assert told[1:] == [True, None, ["truncated", "truncated"], 1, 0, 1, "dark"]


@pytest.mark.slow
@in_browser
def test_a_watching_page_follows_the_run(serving, tmp_path, monkeypatch):
    address, run = serving
    answer = module.Handler.do_GET

    def after_another_step(handler):
        if handler.path.startswith("/data.json") and "stop" not in (run / "metrics.jsonl").read_text():
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(training(17, stop=1)) + "\n" + '{"step": 18, "lo')
        answer(handler)

    monkeypatch.setattr(module.Handler, "do_GET", after_another_step)
    document, logged = seen(address, tmp_path)
    assert "<b>17</b><small>steps</small>" in document and "live, " in document and logged == []
