// The page: what it shows of `shown`, in sections. utils/report/page_data.py says what that holds.

let shown = JSON.parse(document.getElementById("shown").textContent);
const state = { hidden: new Set(), keep: null, verdict: "all", kind: "all", run: "all", words: "", most: 24, drawn: "", lost: "" };
const NAMES = { "state_grad_norm/hint": "hint tokens", "state_grad_norm/response": "response tokens" };
const AREAS = ["var(--right)", "var(--mixed)", "var(--wrong)"];

const groups = () => [...new Set(shown.runs.map((run) => run.group))];
const shade = (run) => colour(groups().indexOf(run.group));
const visible = () => shown.runs.filter((run) => !state.hidden.has(run.name));
const several = () => visible().length > 1;
const logged = (run, name) => (run.curves[name] || []).some((value) => value);
const any = (name) => visible().some((run) => logged(run, name));

function keep() {
  if (state.keep !== null) return state.keep;
  const longest = Math.max(0, ...shown.runs.map((run) => (run.curves.step || []).length));
  return longest > 400 ? 0.92 : longest > 100 ? 0.82 : longest > 25 ? 0.65 : 0;
}

// A metric of all runs that are seen; runs that differ in their seed get their mean, where all have the step.
function series(name, { keepGap = () => true, smoothed = true, scale = () => 1, dashed = false, label = "" } = {}) {
  const found = [];
  const put = (run) => label ? (several() ? `${run.name}: ${label}` : label) : run.name;
  for (const run of visible()) {
    if (!run.curves[name]) continue;
    const x = run.curves.step, factor = scale(run);
    const raw = run.curves[name].map((value, place) => value === null || !keepGap(run, place) ? null : value * factor);
    const alone = visible().filter((other) => other.group === run.group).length === 1;
    found.push({ name: put(run), colour: shade(run), dashed, x, raw: smoothed && alone && keep() ? raw : null, faint: !alone, y: smoothed ? smooth(raw, keep()) : raw, group: run.group });
  }
  return found.concat(means(found, dashed));
}

function means(found, dashed = false) {
  return groups().flatMap((group) => {
    const members = found.filter((one) => one.group === group);
    if (members.length < 2) return [];
    const at = members.map((one) => new Map(one.x.map((x, place) => [x, one.y[place]])));
    const x = members[0].x.filter((step) => at.every((map) => map.get(step) !== undefined && map.get(step) !== null));
    const y = x.map((step) => at.reduce((sum, map) => sum + map.get(step), 0) / at.length);
    return [{ name: `${group}: mean of ${members.length}`, colour: members[0].colour, dashed, x, y }];
  });
}

function limits() {
  return [0, Math.max(1, ...visible().map((run) => run.steps))];
}

const draw = (spec) => chart(spec, limits(), render);
const single = (name, title, unit, options = {}) => any(name) || options.always
  ? draw({ title, unit, series: series(name, options), percent: options.percent, zero: options.zero, log: options.log, lines: options.lines }) : null;

function section(title, about, ...content) {
  const cards = content.flat().filter(Boolean);
  return cards.length ? el("section", {}, el("h2", {}, title), about ? el("p", { class: "about" }, about) : null, cards) : null;
}
const grid = (...cards) => {
  const inside = cards.flat().filter(Boolean);
  return inside.length ? el("div", { class: "grid" }, inside) : null;
};
const wide = (...cards) => el("div", { class: "grid wide" }, cards.flat().filter(Boolean));

function header(run) {
  const last = run.evaluations.at(-1), first = run.evaluations[0];
  const number = (value, about) => el("div", { class: "number" }, el("b", {}, value), el("small", {}, about));
  const bar = el("i", { colour: shade(run) });
  bar.style.background = shade(run);
  bar.style.width = `${Math.min(100, (100 * run.steps) / (run.total_steps || run.steps || 1))}%`;
  const facts = [["script", [run.script, run.model && `model ${run.model}`, run.data && `data ${run.data}`].filter(Boolean).join(", ")], ["commit", run.commit],
    ["hardware", [run.hardware, run.processes].filter(Boolean).join("; ")], ["versions", run.versions], ["started", run.started], ["folder", run.folder]];
  return el("div", { class: "card" },
    el("div", { class: "title" }, el("i", { class: "dot", colour: shade(run) }), el("span", {}, run.name)),
    el("div", { class: "numbers" },
      last ? number(format(last.accuracy, true), `accuracy at step ${last.step}` + (last.low === null ? "" : `, ${format(last.low, true)} to ${format(last.high, true)}`)) : number("–", "no evaluation yet"),
      first && last !== first ? number(format(first.accuracy, true), first.step === 0 ? "base, step 0" : `step ${first.step}`) : null,
      number(run.total_steps ? `${run.steps} / ${run.total_steps}` : String(run.steps), "steps"), number(duration(run.seconds), "start to last line")),
    el("div", { class: "progress" }, bar),
    el("dl", { class: "facts" }, facts.filter(([, value]) => value).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]),
      run.command ? [el("dt", {}, "command"), el("dd", { class: "code" }, run.command)] : []));
}

function health(run) {
  const steps = (note) => note.first === note.last ? `step ${note.first}` : `${note.count} steps, ${note.first} to ${note.last}`;
  const title = several() ? [el("h3", {}, run.name)] : [];
  return el("div", {}, title, run.notes.length ? run.notes.map((note) => el("div", { class: "note" }, note.text, " ", el("small", {}, steps(note))))
    : el("div", { class: "note good" }, run.curves.step?.length ? "nothing to say: no warning in any step" : "no training step yet"));
}

function accuracy() {
  const found = visible().map((run) => {
    const alone = visible().filter((other) => other.group === run.group).length === 1, column = (name) => run.evaluations.map((line) => line[name]);
    return { name: run.name, group: run.group, colour: shade(run), faint: !alone, dots: alone, x: column("step"), y: column("accuracy"),
      low: alone ? column("low") : null, high: alone ? column("high") : null, about: run.evaluations.map((line) => line.n ? `of ${line.n}` : "") };
  });
  const bases = visible().map((run) => run.evaluations[0]).filter((line) => line && line.step === 0).map((line) => line.accuracy);
  const lines = bases.length ? [{ y: Math.min(...bases), name: `base ${format(Math.min(...bases), true)}` }] : [];
  return draw({ title: "Accuracy on held-out problems", unit: "greedy, no hint; 95 % interval", series: found.concat(means(found)), lines, percent: true, zero: true, height: 270, empty: "no evaluation yet" });
}

const hinted = (run, place) => run.curves.hint_tokens ? run.curves.hint_tokens[place] > 0 : true;

function hints() {
  const ran = visible().filter((run) => logged(run, "hint_tokens") || logged(run, "hint_slices"));
  const losses = visible().filter((run) => logged(run, "sft_loss"));
  if (!ran.length && !losses.length) return null;
  const named = (run) => several() ? run.name : "";
  const ramp = (slices, most) => `oklch(${0.62 + 0.1 * (slices / Math.max(1, most))} 0.15 ${Math.round(25 + 235 * (slices / Math.max(1, most)))})`;
  const bySlices = ran.filter((run) => run.slices.length).map((run) => {
    const most = run.slices.at(-1).slices;
    return draw({ title: "Accuracy by number of slices shown", unit: named(run) || "sampled, spans of steps", percent: true, zero: true, legend: true,
      series: run.slices.map((one) => ({ name: `${one.slices}`, colour: ramp(one.slices, most), dots: true, x: one.spans.map((span) => (span.from + span.to) / 2),
        y: one.spans.map((span) => span.accuracy), low: one.spans.map((span) => span.low), high: one.spans.map((span) => span.high), about: one.spans.map((span) => `of ${span.n}`) })) });
  });
  const whole = ran.filter((run) => run.slices.length).map((run) => ({ name: run.name, colour: shade(run), bars: run.slices.filter((one) => one.all).map((one) =>
    ({ label: one.slices, value: one.all.accuracy, low: one.all.low, high: one.all.high, about: `of ${one.all.n}`, colour: several() ? null : ramp(one.slices, run.slices.at(-1).slices) })) }));
  const gradients = any("state_grad_norm/response") ? draw({ title: "Gradient norm at hint and at response tokens", unit: "log scale", log: true, legend: true,
    series: ["state_grad_norm/hint", "state_grad_norm/response"].flatMap((name) => series(name, { label: NAMES[name], dashed: name.endsWith("hint"), keepGap: name.endsWith("hint") ? hinted : undefined })).map((one) =>
      several() ? one : { ...one, colour: one.dashed ? "var(--series-4)" : "var(--series-0)" }) }) : null;
  return section("Hints", "What is shown of the solution, what it is worth, and how hard each loss pulls. Accuracy by slices is of the sampled responses of training; intervals count responses as independent, "
    + "though those of a group share a problem. Gradients are those of the loss with its coefficients (hints: sft_coef · sft_loss; responses: pg_loss with the KL and entropy terms), with respect to the states that enter the LM head.",
  grid(single("hint_share", "Share of the solution shown", "of its characters", { percent: true, zero: true }), single("hint_slices", "Slices shown", "per problem", { zero: true }),
    single("sft_loss", "Negative log-likelihood of the hint", "sft_loss, nats per token", { keepGap: (run, place) => run.curves.sft_loss[place] !== 0, zero: true }), bySlices,
    whole.length ? bars({ title: "Accuracy by slices, whole run", unit: "95 % interval", groups: whole }) : null, gradients));
}

function outcomes(run) {
  const { step, groups_all_right: right, groups_all_wrong: wrong } = run.curves;
  if (!right || !wrong) return null;
  const mixed = right.map((value, place) => value === null ? null : Math.max(0, 1 - value - wrong[place]));
  const at = [["all right", right], ["mixed", mixed], ["all wrong", wrong]];
  return draw({ title: several() ? run.name : "Groups", unit: "of a step", stack: true, percent: true, legend: true, height: 200,
    series: at.map(([name, values], place) => ({ name, colour: AREAS[place], x: step, y: smooth(values, keep()) })) });
}

function time(run) {
  const names = run.phases.map((phase) => phase.name), total = run.phases.reduce((sum, phase) => sum + phase.seconds, 0);
  if (!names.length) return [];
  const phaseShade = (place) => colour(place);
  const stacked = draw({ title: several() ? run.name : "Seconds of a step", unit: "seconds, by phase", stack: true, legend: true, height: 220,
    series: names.map((name, place) => ({ name, colour: phaseShade(place), x: run.curves.step, y: smooth(run.curves[`seconds/${name}`], keep()) })) });
  const rows = run.phases.map((phase, place) => el("tr", {}, el("td", {}, el("i", { class: "dot", colour: phaseShade(place) }), ` ${phase.name}`), el("td", {}, duration(phase.seconds)),
    el("td", {}, format(phase.seconds / total, true)), el("td", {}, phase.amount ? `${format(phase.amount)} ${phase.unit}` : ""), el("td", {}, phase.amount ? `${format(phase.amount / phase.seconds)} / s` : "")));
  const table = el("div", { class: "card" }, el("h3", {}, several() ? run.name : "All steps", el("span", { class: "unit" }, `${duration(total)} in steps; evaluations and checkpoints are not in it`)),
    el("table", {}, el("tr", {}, ["phase", "time", "share", "work", "rate"].map((name) => el("th", {}, name))), rows));
  return [stacked, table];
}

function settings() {
  const runs = visible(), names = [...new Set(runs.flatMap((run) => Object.keys(run.args)))];
  if (!names.length) return null;
  const text = (run, name) => name in run.args ? JSON.stringify(run.args[name]) : "";
  const differs = (name) => runs.some((run) => text(run, name) !== text(runs[0], name));
  const rows = [...names.filter(differs), ...names.filter((name) => !differs(name))].map((name) =>
    el("tr", { class: differs(name) ? "differs" : null }, el("td", {}, `--${name}`), runs.map((run) => el("td", { class: "text" }, text(run, name)))));
  return el("section", {}, el("h2", {}, "Settings"), el("details", { open: several() }, el("summary", {}, several() ? "what differs is marked" : `${names.length} flags`),
    el("div", { class: "card" }, el("table", {}, el("tr", {}, el("th", {}, "flag"), runs.map((run) => el("th", {}, run.name))), rows))));
}

const verdict = (sample) => sample.reward === 1 ? "right" : sample.truncated ? "cut" : "wrong";
const FILTERS = { all: () => true, wrong: (sample) => sample.reward !== 1, right: (sample) => sample.reward === 1, truncated: (sample) => Boolean(sample.truncated) };

// `before` is what stands above: a group's responses show their prompt once.
function sampleCard([run, sample], before) {
  const isSame = before && before[0] === run && ["step", "kind", "prompt", "hint"].every((name) => before[1][name] === sample[name]);
  const facts = [`${sample.kind} · step ${sample.step}`, sample.index === undefined ? null : `problem ${sample.index}${sample.sample ? `, response ${sample.sample + 1}` : ""}`,
    sample.hint_slices ? `${sample.hint_slices} slices shown` : null, `reward ${format(sample.reward)}`, sample.reason, several() ? run.name : null];
  return el("article", { class: `sample ${verdict(sample)}` },
    el("header", {}, el("b", {}, { right: "right", wrong: "wrong", cut: "truncated" }[verdict(sample)]), facts.filter(Boolean).map((fact) => el("span", {}, fact))),
    el("pre", {}, isSame ? el("span", { class: "same" }, "… ") : [el("span", { class: "prompt" }, sample.prompt), sample.hint ? el("span", { class: "hint" }, sample.hint) : null], el("span", { class: "response" }, sample.response),
      sample.truncated ? el("span", { class: "end" }, " ▌cut at the length limit") : null));
}

function samples() {
  const pairs = visible().flatMap((run) => run.samples.map((sample) => [run, sample])).sort(([, a], [, b]) => b.step - a.step);
  const list = el("div"), controls = el("div", { class: "controls" });
  const refresh = () => {
    const kept = pairs.filter(([run, sample]) => FILTERS[state.verdict](sample) && (state.kind === "all" || sample.kind === state.kind)
      && (state.run === "all" || state.run === run.name) && (!state.words || [sample.prompt, sample.hint, sample.response, sample.reason].join("\n").toLowerCase().includes(state.words)));
    list.replaceChildren(...kept.slice(0, state.most).map((pair, place) => sampleCard(pair, kept[place - 1])),
      ...(kept.length > state.most ? [el("button", { onclick: () => { state.most += 48; refresh(); } }, `${kept.length - state.most} more`)] : []),
      ...(kept.length ? [] : [el("div", { class: "empty" }, pairs.length ? "no sample is like that" : "no samples yet")]));
    const choice = (key, value, label) => el("button", { "aria-pressed": String(state[key] === value), "data-filter": value, onclick: () => { state[key] = value; state.most = 24; refresh(); } }, label);
    const search = controls.querySelector("input") || el("input", { type: "search", placeholder: "words in the text", "aria-label": "words in the text", value: state.words,
      oninput: (event) => { state.words = event.target.value.toLowerCase(); refresh(); } });
    const number = (name) => pairs.filter(([, sample]) => FILTERS[name](sample)).length;
    const buttons = [Object.keys(FILTERS).map((name) => choice("verdict", name, `${name} ${number(name)}`)), el("span", { class: "gap" }),
      ["all", "evaluation", "training"].map((name) => choice("kind", name, name === "all" ? "both kinds" : name)), several() ? [el("span", { class: "gap" }), choice("run", "all", "all runs"), visible().map((run) => choice("run", run.name, run.name))] : []].flat(2);
    const focused = document.activeElement === search;
    controls.replaceChildren(...buttons, search);
    if (focused) search.focus();
  };
  refresh();
  return el("section", { id: "samples" }, el("h2", {}, "Samples"), el("div", { class: "legend" }, el("span", { class: "prompt" }, "prompt"), el("span", { class: "hint" }, "hint"), "then the response, coloured by its verdict; newest first"), controls, list);
}

function bar() {
  const chips = shown.runs.map((run) => el("button", { class: "run", "aria-pressed": String(!state.hidden.has(run.name)), title: "show or hide",
    onclick: () => { state.hidden.has(run.name) ? state.hidden.delete(run.name) : state.hidden.add(run.name); if (!visible().length) state.hidden.clear(); render(); } },
  el("i", { class: "dot", colour: shade(run) }), el("span", { class: "name" }, run.name)));
  const slider = el("input", { type: "range", min: 0, max: 0.98, step: 0.01, value: keep(), "aria-label": "smoothing", oninput: (event) => { state.keep = Number(event.target.value); render(); } });
  const theme = el("button", { onclick: () => { const dark = getComputedStyle(document.documentElement).colorScheme === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    document.documentElement.dataset.theme = dark ? "light" : "dark"; } }, "light / dark");
  const live = shown.watch_seconds ? el("span", { class: `live ${state.lost ? "lost" : ""}` }, el("i", { class: "dot" }), state.lost || `live, ${shown.made.slice(11)}`) : el("span", { class: "unit" }, shown.made);
  const reset = hover.zoom ? el("button", { onclick: () => { hover.zoom = null; render(); } }, "whole run") : null;
  const node = document.getElementById("bar");
  const old = node.querySelector("input[type=range]");
  node.replaceChildren(...[...chips, el("span", { class: "space" }), reset, el("label", {}, "smoothing", document.activeElement === old && old ? old : slider), theme, live].filter(Boolean));
}

function render() {
  bar();
  hover.draw.clear();
  const main = document.getElementById("main"), runs = visible();
  main.style.minHeight = `${main.offsetHeight}px`; // the window keeps its place while all is drawn anew
  const words = document.activeElement?.type === "search", key = JSON.stringify([runs.map((run) => [run.name, run.samples])]);
  const oldSamples = document.getElementById("samples");
  const sampleSection = oldSamples && state.drawn === key ? oldSamples : samples();
  state.drawn = key;
  const training = any("loss") ? grid(
    single("reward", "Reward", "mean per response, after the hint", { zero: true }), single("accuracy", "Accuracy of sampled responses", "after the hint", { percent: true, zero: true }), single("format", "Responses that hold an answer", "", { percent: true }),
    single("loss", "Loss", "what was minimised"), single("pg_loss", "pg_loss", "near 0 by construction"), single("kl_loss", "kl_loss", "nats per response token"), single("entropy", "Entropy", "nats per response token", { zero: true }),
    single("grad_norm", "Gradient norm", "all parameters, before clipping", { zero: true }), single("lr", "Learning rate", "", { zero: true, smoothed: false })) : null;
  const limit = runs.map((run) => run.args.max_logprob_mismatch).find(Boolean);
  const mismatch = grid(single("logprob_mismatch", "Engine against actor", "mean |difference|, nats; log scale", { log: true, lines: limit && runs.some((run) => (run.curves.logprob_mismatch || []).some((value) => value > limit / 30)) ? [{ y: limit, name: "the run stops" }] : [] }),
    single("logprob_mismatch_max", "Largest of them", "nats; log scale", { log: true }), single("engine_ratio_max", "Largest importance weight", "against the engine"), single("engine_ratio_capped", "Importance weights that are capped", "", { percent: true, zero: true }));
  const parts = [
    section("Runs", "", wide(runs.map(header))), section("Health", "", runs.map(health)), section("Accuracy", "", accuracy()),
    section("Training", "Sampled responses of each step, with hints while there are any: they do most of the work at first, so look at the accuracy above. Faint: each step; drag in a chart to zoom, double click to go back.", training), hints(),
    section("Group outcomes", "Only mixed groups teach by their rewards (and groups that are all wrong but differ in format).", grid(runs.map(outcomes), single("flat_groups", "Groups with equal rewards", "no policy gradient", { percent: true, zero: true }))),
    section("Lengths", "", grid(single("response_tokens", "Response", "tokens, end included", { zero: true }), single("truncated", "Cut at the length limit", "of the responses", { percent: true, zero: true }),
      single("prompt_tokens", "Prompt", "tokens, without the hint", { zero: true }), single("hint_tokens", "Hint", "tokens", { zero: true }))),
    section("Engine", "How far the engine that samples is from the policy that is trained.", mismatch),
    section("Time and tokens", "", wide(runs.flatMap(time)), grid(single("tokens_per_second", "Tokens sampled a second", "in rollout", { zero: true }))), settings(), sampleSection];
  main.replaceChildren(...parts.filter(Boolean));
  main.querySelectorAll(".card").forEach((card) => card.draw?.());
  main.style.minHeight = "";
  if (words) document.querySelector("#samples input[type=search]")?.focus();
}

async function look() {
  try {
    const answer = await fetch(`data.json?seen=${shown.stamp}`, { cache: "no-store" });
    const was = state.lost;
    state.lost = answer.ok ? "" : await answer.text();
    if (answer.status === 200) { shown = await answer.json(); render(); } else if (was !== state.lost) bar();
  } catch {
    state.lost = "the server is gone";
    bar();
  }
  setTimeout(look, 1000 * shown.watch_seconds);
}

let resized = null;
addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(render, 120); });
if (FILTERS[location.hash.slice(1)]) state.verdict = location.hash.slice(1); // page.html#wrong
render();
document.documentElement.dataset.ready = "yes";
if (shown.watch_seconds) setTimeout(look, 1000 * shown.watch_seconds);
