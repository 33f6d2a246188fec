// The page: what it shows of `shown`. utils/report/page_data.py says what that holds.

let shown = JSON.parse(document.getElementById("shown").textContent);
// What the reader has chosen: hidden runs, smoothing, filters of samples; which samples are drawn; why no news come.
const state = {
  hidden: new Set(), keep: null, open: false, verdict: "all", kind: "all", run: "all", words: "", most: MORE,
  drawn: "", lost: "",
};

function turnTheme() {
  const root = document.documentElement, isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = root.dataset.theme || (isDark ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
}

function bar() {
  const turn = (run) => {
    if (!state.hidden.delete(run.name)) state.hidden.add(run.name);
    if (!visible().length) state.hidden.clear();
    if (state.hidden.has(state.run)) state.run = "all";
    render();
  };
  const chip = (run) => el("button", { class: "run", title: "show or hide", onclick: () => turn(run),
    "aria-pressed": String(!state.hidden.has(run.name)) },
  el("i", { class: "dot", colour: shade(run) }), el("span", { class: "name" }, run.name));
  const node = document.getElementById("bar"), slider = node.querySelector("input") || el("input", {
    type: "range", min: 0, max: 0.98, step: 0.01, value: keep(), "aria-label": "smoothing",
    oninput: (event) => {
      state.keep = Number(event.target.value);
      render();
    } });
  if (state.keep === null) slider.value = keep();
  const whole = el("button", { onclick: () => {
    hover.zoom = null;
    render();
  } }, "whole run");
  const live = el("span", { class: `live ${state.lost ? "lost" : ""}` }, el("i", { class: "dot" }),
    state.lost || `live, ${shown.made.slice(11)}`);
  const parts = [...shown.runs.map(chip), el("span", { class: "space" }), hover.zoom ? whole : null,
    el("label", {}, "smoothing", slider), el("button", { onclick: turnTheme }, "light / dark"),
    shown.watch_seconds ? live : el("span", { class: "made" }, shown.made)].filter(Boolean);
  const focused = document.activeElement === slider;
  node.replaceChildren(...parts);
  if (focused) slider.focus();
}

// Samples are made anew only where they have changed: a reader may be in the middle of one.
function sampleSection() {
  const key = JSON.stringify(visible().map((run) => [run.name, run.samples])), old = document.getElementById("samples");
  const isDrawn = state.drawn === key && old;
  state.drawn = key;
  return isDrawn ? old : samples();
}

function render() {
  bar();
  hover.crosses.clear();
  const main = document.getElementById("main"), runs = visible(), focused = document.activeElement;
  const whatToLookAt = "Sampled responses of each step, with hints while there are any: they do most of the work at "
    + "first, so look at the accuracy above. Faint: each step; drag in a chart to zoom, double click to go back.";
  const [beside, about] = any(gradient("demonstration"))
    ? [" Beside a demonstration all that are not all right may.", "of the samples, demonstrations apart"]
    : ["", "no policy gradient"];
  const groupsThatTeach = `Only mixed groups teach, and groups that are all wrong but differ in format.${beside}`;
  const flat = single("flat_groups", "Groups with equal rewards", about, { percent: true, zero: true });
  const rate = single("tokens_per_second", "Tokens sampled a second", "in rollout", { zero: true });
  const parts = [
    section("Runs", "", wide(runs.map(header))), section("Health", "", runs.map(health)),
    section("Accuracy", "", accuracy()), section("Training", whatToLookAt, training()), hints(),
    section("Group outcomes", groupsThatTeach, grid(runs.map(outcomes), flat)), section("Lengths", "", lengths()),
    section("Engine", "How far the engine that samples is from the policy that is trained.", mismatch()),
    section("Time and tokens", "", wide(runs.flatMap(time)), grid(rate)), settings(), sampleSection()];
  main.style.minHeight = `${main.offsetHeight}px`; // so that the window keeps its place
  main.replaceChildren(...parts.filter(Boolean));
  main.querySelectorAll(".card").forEach((card) => card.draw?.());
  main.style.minHeight = "";
  if (focused?.isConnected) focused.focus();
}

async function look() {
  const before = state.lost;
  try {
    const answer = await fetch(`data.json?seen=${shown.stamp}`, { cache: "no-store" });
    state.lost = answer.ok ? "" : await answer.text();
    if (answer.status === 200) {
      shown = await answer.json();
      render();
    }
  } catch {
    state.lost = "the server is gone";
  }
  if (before !== state.lost) bar();
  setTimeout(look, 1000 * shown.watch_seconds);
}

let resized = null;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(render, 120);
});
if (FILTERS[location.hash.slice(1)]) state.verdict = location.hash.slice(1); // page.html#wrong
render();
document.documentElement.dataset.ready = "yes";
if (shown.watch_seconds) setTimeout(look, 1000 * shown.watch_seconds);
