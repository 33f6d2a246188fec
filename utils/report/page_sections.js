// The sections of the page but for the samples: each is made of `shown`, or null where there is nothing to show.

const AREAS = ["var(--right)", "var(--mixed)", "var(--wrong)"];

const groups = () => [...new Set(shown.runs.map((run) => run.group))];
const shade = (run) => colour(groups().indexOf(run.group));
const visible = () => shown.runs.filter((run) => !state.hidden.has(run.name));
const several = () => visible().length > 1;
const isAlone = (run) => visible().filter((other) => other.group === run.group).length === 1;
const logged = (run, name) => (run.curves[name] || []).some((value) => value);
const any = (name) => visible().some((run) => logged(run, name));
const limits = () => [0, Math.max(1, ...visible().map((run) => run.steps))];
const draw = (spec) => chart(spec, limits(), render);

// How much of the average stays from one step to the next.
function keep() {
  if (state.keep !== null) return state.keep;
  const longest = Math.max(0, ...shown.runs.map((run) => (run.curves.step || []).length));
  return longest > 400 ? 0.92 : longest > 100 ? 0.82 : longest > 25 ? 0.65 : 0;
}

// A metric of all runs that are seen, where `isThere`; runs that differ in their seed get their mean too.
function series(name, { isThere = () => true, smoothed = true, pattern = "", label = "" } = {}) {
  const found = [];
  for (const run of visible()) {
    if (!run.curves[name]) continue;
    const values = run.curves[name].map((value, place) => (isThere(run, place) ? value : null));
    if (!values.some(isNumber)) continue;
    const named = !label ? run.name : several() ? `${run.name}: ${label}` : label;
    found.push({
      name: named, group: run.group, colour: shade(run), pattern, faint: !isAlone(run), x: run.curves.step,
      y: smoothed ? smooth(values, keep()) : values, raw: smoothed && isAlone(run) && keep() ? values : null,
    });
  }
  return found.concat(means(found, pattern));
}

// Of the runs of each group of several, where all have the step.
function means(found, pattern = "") {
  return groups().flatMap((group) => {
    const members = found.filter((one) => one.group === group);
    if (members.length < 2) return [];
    const at = members.map((one) => new Map(one.x.map((x, place) => [x, one.y[place]])));
    const x = members[0].x.filter((step) => at.every((values) => isNumber(values.get(step))));
    const y = x.map((step) => at.reduce((sum, values) => sum + values.get(step), 0) / at.length);
    return [{ name: `${group}: mean of ${members.length}`, colour: members[0].colour, pattern, x, y }];
  });
}

// One chart of one metric, null where no run has another number than 0.
function single(name, title, unit, { isThere, smoothed, ...options } = {}) {
  return any(name) ? draw({ title, unit, series: series(name, { isThere, smoothed }), ...options }) : null;
}

function section(title, about, ...content) {
  const cards = content.flat().filter(Boolean);
  const text = about ? el("p", { class: "about" }, about) : null;
  return cards.length ? el("section", {}, el("h2", {}, title), text, cards) : null;
}

function grid(...cards) {
  const inside = cards.flat().filter(Boolean);
  return inside.length ? el("div", { class: "grid" }, inside) : null;
}
const wide = (cards) => (cards.length ? el("div", { class: "grid wide" }, cards) : null);

function header(run) {
  const first = run.evaluations[0], last = run.evaluations.at(-1);
  const number = (value, about) => el("div", { class: "number" }, el("b", {}, value), el("small", {}, about));
  const interval = last && isNumber(last.low) ? `, ${format(last.low, true)} to ${format(last.high, true)}` : "";
  const done = el("i");
  done.style.background = shade(run);
  done.style.width = `${Math.min(100, (100 * run.steps) / (run.total_steps || run.steps || 1))}%`;
  const what = [run.script, run.model && `model ${run.model}`, run.data && `data ${run.data}`];
  const facts = Object.entries({
    script: what.filter(Boolean).join(", "), commit: run.commit,
    hardware: [run.hardware, run.processes].filter(Boolean).join("; "), versions: run.versions,
    started: run.started, folder: run.folder,
  }).filter(([, value]) => value);
  return el("div", { class: "card" },
    el("div", { class: "title" }, el("i", { class: "dot", colour: shade(run) }), el("span", {}, run.name)),
    el("div", { class: "numbers" },
      last ? number(format(last.accuracy, true), `accuracy at step ${last.step}${interval}`)
        : number("–", "no evaluation yet"),
      last !== first ? number(format(first.accuracy, true), first.step ? `step ${first.step}` : "base, step 0") : null,
      number(run.total_steps ? `${run.steps} / ${run.total_steps}` : `${run.steps}`, "steps"),
      number(duration(run.seconds), "start to last line")),
    el("div", { class: "progress" }, done),
    el("dl", { class: "facts" }, facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]),
      run.command ? [el("dt", {}, "command"), el("dd", { class: "code" }, run.command)] : []));
}

function health(run) {
  const when = ({ first, last, count }) => (first === last ? `step ${first}` : `${count} steps, ${first} to ${last}`);
  const note = (one) => el("div", { class: "note" }, one.text, " ", el("small", {}, when(one)));
  const begun = (run.curves.step || []).length > 0;
  const nothing = el("div", { class: "note good" }, begun ? "no warning in any step" : "no training step yet");
  return el("div", {}, several() ? el("h3", {}, run.name) : null,
    run.notes.length ? run.notes.map(note) : nothing);
}

function accuracy() {
  const found = visible().map((run) => {
    const column = (name) => run.evaluations.map((line) => line[name]);
    return {
      name: run.name, group: run.group, colour: shade(run), faint: !isAlone(run), dots: isAlone(run),
      x: column("step"), y: column("accuracy"), low: isAlone(run) ? column("low") : null, high: column("high"),
      about: run.evaluations.map((line) => (line.n ? `of ${line.n}` : "")),
    };
  });
  const bases = visible().map((run) => run.evaluations[0]).filter((line) => line && line.step === 0);
  const base = Math.min(...bases.map((line) => line.accuracy));
  return draw({
    title: "Accuracy on held-out problems", unit: "greedy, no hint; 95 % interval", series: found.concat(means(found)),
    lines: bases.length ? [{ y: base, name: `base ${format(base, true)}` }] : [],
    percent: true, zero: true, height: 270, empty: "no evaluation yet",
  });
}

function training() {
  const tokens = "nats per response token";
  return grid(
    single("reward", "Reward", "mean per response, after the hint", { zero: true }),
    single("accuracy", "Accuracy of sampled responses", "after the hint", { percent: true, zero: true }),
    single("format", "Responses that hold an answer", "", { percent: true }),
    single("loss", "Loss", "what was minimised"), single("pg_loss", "pg_loss", "near 0 by construction"),
    single("kl_loss", "kl_loss", tokens), single("entropy", "Entropy", tokens, { zero: true }),
    single("grad_norm", "Gradient norm", "all parameters, before clipping", { zero: true }),
    single("lr", "Learning rate", "", { zero: true, smoothed: false }));
}

// A colour for each number of slices, from red to blue.
function ramp(slices, most) {
  const share = slices / Math.max(1, most);
  return `oklch(${0.62 + 0.1 * share} 0.15 ${Math.round(25 + 235 * share)})`;
}

function accuracyBySlices(run) {
  const most = run.slices.at(-1).slices;
  return draw({
    title: "Accuracy by number of slices shown", unit: several() ? run.name : "95 % interval",
    percent: true, zero: true, legend: true,
    series: run.slices.map(({ slices, spans }) => ({
      name: `${slices}`, colour: ramp(slices, most), dots: true, x: spans.map((span) => (span.from + span.to) / 2),
      y: spans.map((span) => span.accuracy), low: spans.map((span) => span.low), high: spans.map((span) => span.high),
      about: spans.map((span) => `of ${span.n}`),
    })),
  });
}

function accuracyOfWholeRuns(runs) {
  const bar = (run, { slices, all }) => ({
    label: slices, value: all.accuracy, low: all.low, high: all.high, about: `of ${all.n}`,
    colour: several() ? null : ramp(slices, run.slices.at(-1).slices),
  });
  return bars({
    title: "Accuracy by slices, whole run", unit: "95 % interval", category: "slices shown",
    groups: runs.map((run) => ({ name: run.name, colour: shade(run), bars: run.slices.map((one) => bar(run, one)) })),
  });
}

// Kinds of tokens that have a loss: number of the colour, and pattern of the line.
const TOKENS = { hint: [4, "dashed"], response: [0, ""], demonstration: [2, "dotted"] };
const gradient = (kind) => `state_grad_norm/${kind}`;

function gradients() {
  const parts = Object.entries(TOKENS).flatMap(([kind, [number, pattern]]) => {
    const isThere = (run, place) => run.curves[gradient(kind)][place] !== 0;
    return series(gradient(kind), { label: `${kind} tokens`, pattern, isThere })
      .map((one) => (several() ? one : { ...one, colour: colour(number) }));
  });
  return draw({ title: "Gradient norm by kind of token", unit: "log", log: true, legend: true, series: parts });
}

function hints() {
  const counted = visible().filter((run) => logged(run, "hint_tokens") && run.slices.length);
  const areDemonstrations = any(gradient("demonstration"));
  if (!any("hint_tokens") && !any("sft_loss") && !areDemonstrations) return null;
  const about = "What is shown of the solution, what it is worth, and how hard each loss pulls. Accuracy by slices is "
    + "of the sampled responses of training; its intervals take responses for independent, though those of a group "
    + "share a problem. Gradients are those of the loss with its coefficients (hints: sft_coef · sft_loss, unless they "
    + "have a pg_loss; responses: pg_loss with the KL and entropy terms; demonstrations beside the responses: all that "
    + "the script makes of them), with respect to the states that enter the LM head.";
  const [title, nll] = areDemonstrations ? ["Hints and demonstrations", "sft_loss"]
    : ["Hints", "Negative log-likelihood of the hint"];
  return section(title, about, grid(
    single("hint_share", "Share of the solution shown", "of its characters", { percent: true, zero: true }),
    single("hint_slices", "Slices shown", "per problem", { zero: true }),
    single("sft_loss", nll, "nats per token", { isThere: (run, place) => run.curves.sft_loss[place] !== 0, zero: true }),
    counted.map(accuracyBySlices), counted.length ? accuracyOfWholeRuns(counted) : null,
    any(gradient("response")) ? gradients() : null));
}

function outcomes(run) {
  const { step, groups_all_right: right, groups_all_wrong: wrong } = run.curves;
  if (!right || !wrong) return null;
  const mixed = right.map((value, place) => (isNumber(value) ? Math.max(0, 1 - value - wrong[place]) : null));
  const parts = Object.entries({ "all right": right, mixed, "all wrong": wrong });
  return draw({ title: several() ? run.name : "Groups", unit: "of a step", stack: true, percent: true, legend: true,
    series: parts.map(([name, values], n) => ({ name, colour: AREAS[n], x: step, y: smooth(values, keep()) })) });
}

function lengths() {
  return grid(
    single("response_tokens", "Response", "tokens, end included", { zero: true }),
    single("truncated", "Cut at the length limit", "of the responses", { percent: true, zero: true }),
    single("prompt_tokens", "Prompt", "tokens, without the hint", { zero: true }),
    single("hint_tokens", "Hint", "tokens", { zero: true }));
}

function mismatch() {
  const limit = visible().map((run) => run.args.max_logprob_mismatch).find(Boolean);
  const isNear = visible().some((run) => (run.curves.logprob_mismatch || []).some((value) => value > limit / 30));
  return grid(
    single("logprob_mismatch", "Engine against actor", "mean |difference|, nats; log scale",
      { log: true, lines: isNear ? [{ y: limit, name: "the run stops" }] : [] }),
    single("logprob_mismatch_max", "Largest of them", "nats; log scale", { log: true }),
    single("engine_ratio_max", "Largest importance weight", "against the engine"),
    single("engine_ratio_capped", "Importance weights that are capped", "", { percent: true, zero: true }));
}

function time(run) {
  if (!run.phases.length) return [];
  const total = run.phases.reduce((sum, phase) => sum + phase.seconds, 0), named = several() ? run.name : null;
  const curves = draw({ title: named || "Seconds of a step", unit: "by phase", stack: true, legend: true, height: 220,
    series: run.phases.map(({ name }, n) => ({ name, colour: colour(n), x: run.curves.step,
      y: smooth(run.curves[`seconds/${name}`], keep()) })) });
  const row = ({ name, seconds, amount, unit }, n) => el("tr", {},
    el("td", {}, el("i", { class: "dot", colour: colour(n) }), ` ${name}`), el("td", {}, duration(seconds)),
    el("td", {}, format(seconds / total, true)), el("td", {}, amount ? `${format(amount)} ${unit}` : ""),
    el("td", {}, amount ? `${format(amount / seconds)} / s` : ""));
  const heads = ["phase", "time", "share", "work", "rate"].map((name) => el("th", {}, name));
  const unit = `${duration(total)} in steps, without evaluations and checkpoints`;
  const table = el("table", {}, el("tr", {}, heads), run.phases.map(row));
  return [curves, cardOf({ title: named || "All steps", unit }, table)];
}

function settings() {
  const runs = visible(), names = [...new Set(runs.flatMap((run) => Object.keys(run.args)))];
  if (!names.length) return null;
  const text = (run, name) => (name in run.args ? JSON.stringify(run.args[name]) : "");
  const differs = (name) => runs.some((run) => text(run, name) !== text(runs[0], name));
  const row = (name) => el("tr", {}, el("td", {}, `--${name}`),
    runs.map((run) => el("td", { class: "text" }, text(run, name))));
  const heads = el("tr", {}, el("th", {}, "flag"), runs.map((run) => el("th", { class: "text" }, run.name)));
  const table = (some) => el("div", { class: "card" }, el("table", {}, heads.cloneNode(true), some.map(row)));
  const [others, equal] = [names.filter(differs), names.filter((name) => !differs(name))];
  const remember = (event) => (state.open = event.target.open);
  return section("Settings", several() && others.length ? "What differs between the runs." : "",
    others.length ? table(others) : null, el("details", { open: state.open, ontoggle: remember },
      el("summary", {}, `${equal.length} flags${several() ? " that are equal" : ""}`), table(equal)));
}
