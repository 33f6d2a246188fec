// Decoded samples, with filters that outlive a look at the run.

const MORE = 48; // samples that are shown at once
const FILTERS = {
  all: () => true,
  wrong: (sample) => sample.reward !== 1,
  right: (sample) => sample.reward === 1,
  truncated: (sample) => Boolean(sample.truncated),
};
const KINDS = { all: "both kinds", evaluation: "evaluation", training: "training" };

// `before` is what stands above: a group's responses show their prompt once.
function sampleCard([run, sample], before) {
  const isSame = before && before[0] === run
    && ["step", "kind", "prompt", "hint"].every((name) => before[1][name] === sample[name]);
  const verdict = sample.reward === 1 ? "right" : sample.truncated ? "truncated" : "wrong";
  const facts = [
    `${sample.kind} · step ${sample.step}`,
    isNumber(sample.index) ? `problem ${sample.index}, response ${sample.sample + 1}` : null,
    sample.hint_slices ? `slices shown: ${sample.hint_slices}` : null,
    `reward ${format(sample.reward)}`, sample.reason, several() ? run.name : null,
  ];
  const text = (kind, content) => (content ? el("span", { class: kind }, content) : null);
  const given = isSame ? text("same", "… ") : [text("prompt", sample.prompt), text("hint", sample.hint)];
  return el("article", { class: `sample ${verdict}` },
    el("header", {}, el("b", {}, verdict), facts.filter(Boolean).map((fact) => el("span", {}, fact))),
    el("pre", {}, given, text("response", sample.response),
      sample.truncated ? text("end", " ▌cut at the length limit") : null));
}

function samples() {
  const pairs = visible().flatMap((run) => run.samples.map((sample) => [run, sample]));
  pairs.sort(([, a], [, b]) => b.step - a.step);
  const holds = (sample) => [sample.prompt, sample.hint, sample.response, sample.reason]
    .some((text) => (text || "").toLowerCase().includes(state.words));
  const isKept = ([run, sample]) => FILTERS[state.verdict](sample) && ["all", sample.kind].includes(state.kind)
    && ["all", run.name].includes(state.run) && (!state.words || holds(sample));
  const list = el("div"), choices = el("span", { class: "controls" });

  const choose = (changes) => {
    Object.assign(state, { most: MORE }, changes);
    refresh();
  };
  const choice = (key, value, label) => el("button", {
    "aria-pressed": String(state[key] === value), "data-filter": value, onclick: () => choose({ [key]: value }),
  }, label);
  const number = (name) => pairs.filter(([, sample]) => FILTERS[name](sample)).length;
  const gap = () => el("span", { class: "gap" });
  const refresh = () => {
    const kept = pairs.filter(isKept), left = kept.length - state.most;
    list.replaceChildren(...kept.slice(0, state.most).map((pair, place) => sampleCard(pair, kept[place - 1])));
    if (left > 0) list.append(el("button", { onclick: () => choose({ most: state.most + MORE }) }, `${left} more`));
    const none = pairs.length ? "no sample is like that" : "no samples yet";
    if (!kept.length) list.append(el("div", { class: "empty" }, none));
    choices.replaceChildren(
      ...Object.keys(FILTERS).map((name) => choice("verdict", name, `${name} ${number(name)}`)), gap(),
      ...Object.entries(KINDS).map(([name, label]) => choice("kind", name, label)), gap(),
      ...(several() ? [["all", "all runs"], ...visible().map(({ name }) => [name, name])] : [])
        .map(([name, label]) => choice("run", name, label)));
  };
  refresh();
  const search = el("input", { type: "search", placeholder: "words in the text", "aria-label": "words in the text",
    value: state.words, oninput: (event) => choose({ words: event.target.value.toLowerCase() }) });
  const legend = el("div", { class: "legend" }, el("span", { class: "prompt" }, "prompt"),
    el("span", { class: "hint" }, "hint"), "then the response, coloured by its verdict; the newest first");
  return el("section", { id: "samples" }, el("h2", {}, "Samples"), legend,
    el("div", { class: "controls" }, choices, search), list);
}
