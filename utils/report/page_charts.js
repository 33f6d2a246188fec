"use strict";
// Charts as SVG. Texts become text nodes, never markup.

const SVG = "http://www.w3.org/2000/svg";
const colour = (number) => `var(--series-${number % 7})`;

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "colour") node.style.color = value; // the policy allows no style attributes
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}
const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

function format(value, percent = false) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (percent) return `${(100 * value).toFixed(1)} %`;
  const size = Math.abs(value);
  if (size >= 10000) return Math.round(value).toLocaleString("en");
  if (size !== 0 && size < 0.001) return value.toExponential(1);
  return String(Number(value.toPrecision(size >= 1000 ? 4 : 3)));
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor((seconds % 3600) / 60)];
  if (hours) return `${hours} h ${minutes} min`;
  return seconds >= 100 ? `${minutes} min ${Math.round(seconds % 60)} s` : `${format(seconds)} s`;
}

// Exponential moving average in both directions, so that it does not lag behind; gaps stay gaps.
function smooth(values, keep) {
  const oneWay = (some) => {
    let sum = 0, weight = 0;
    return some.map((value) => {
      const before = [keep * sum, keep * weight];
      if (value !== null && value !== undefined) [sum, weight] = [before[0] + value, before[1] + 1];
      return before;
    });
  };
  const left = oneWay(values), right = oneWay([...values].reverse()).reverse();
  return values.map((value, place) => value === null || value === undefined ? null
    : (value + left[place][0] + right[place][0]) / (1 + left[place][1] + right[place][1]));
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((some) => some >= rough * 0.999);
  const found = [];
  for (let number = Math.ceil(low / step - 1e-9); number * step <= high + step * 1e-9; number++) found.push(number * step);
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.ceil(low); power <= Math.floor(high); power++) found.push(power);
  const sparse = Math.ceil(found.length / 5);
  if (found.length > 1) return found.filter((_, place) => place % sparse === 0);
  return ticks(low, high, 3);
}

// The range of y: all smoothed values, whiskers and lines, and of the raw values all but the rarest.
function rangeOf(spec, inside) {
  const values = spec.lines ? spec.lines.map((line) => line.y) : [], raw = [];
  for (const one of spec.series) {
    one.x.forEach((x, place) => {
      if (!inside(x)) return;
      for (const some of [one.y, one.low, one.high]) if (some && some[place] !== null && some[place] !== undefined) values.push(some[place]);
      if (one.raw && one.raw[place] !== null && one.raw[place] !== undefined) raw.push(one.raw[place]);
    });
  }
  raw.sort((a, b) => a - b);
  if (raw.length) values.push(raw[Math.floor(0.01 * (raw.length - 1))], raw[Math.ceil(0.99 * (raw.length - 1))]);
  const usable = spec.log ? values.filter((value) => value > 0).map(Math.log10) : values;
  if (!usable.length) return [0, 1];
  let low = Math.min(...usable), high = Math.max(...usable);
  if (spec.zero) low = Math.min(0, low);
  if (high - low < 1e-12) [low, high] = [low - (Math.abs(low) * 0.1 || (spec.zero ? 0 : 1)), high + (Math.abs(high) * 0.1 || 1)];
  const margin = 0.05 * (high - low);
  return [spec.zero && low === 0 ? 0 : low - margin, high + margin];
}

const hover = { step: null, draw: new Set(), zoom: null };

function tip(event, title, rows) {
  let box = document.getElementById("tip");
  if (!box) document.body.append((box = el("div", { id: "tip" })));
  box.replaceChildren(el("b", {}, title), ...rows.map(([shade, name, value]) =>
    el("div", {}, el("i", { class: "dot", colour: shade }), el("span", {}, name), el("span", { class: "value" }, value))));
  const [width, height] = [box.offsetWidth, box.offsetHeight];
  box.style.left = `${Math.max(4, Math.min(innerWidth - width - 8, event.clientX + (event.clientX > innerWidth / 2 ? -width - 16 : 16)))}px`;
  box.style.top = `${Math.max(4, Math.min(innerHeight - height - 8, event.clientY - height / 2))}px`;
}
const noTip = () => document.getElementById("tip")?.remove();

// spec: title, unit, series [{name, colour, dashed, faint, x, y, raw, low, high, dots}], lines [{y, name}], percent, log,
// zero, stack (areas on one another, in the order of series), legend, height. Hover shows the step in every chart; dragging zooms all, a double click ends that.
function chart(spec, limits, redraw) {
  const card = el("div", { class: "card" }, el("h3", {}, spec.title, spec.unit ? el("span", { class: "unit" }, spec.unit) : null));
  if (!spec.series.some((one) => one.y.some((value) => value !== null && value !== undefined))) {
    card.append(el("div", { class: "empty" }, spec.empty || "not logged"));
    return card;
  }
  const height = spec.height || 190, left = 52, right = 10, top = 8, bottom = 22;
  const [from, to] = hover.zoom || limits, inside = (x) => x >= from && x <= to;
  let series = spec.series;
  if (spec.stack) {
    let below = series[0].x.map(() => 0);
    series = series.map((one) => {
      const under = below;
      below = one.y.map((value, place) => under[place] + (value || 0));
      return { ...one, under, over: below };
    });
  }
  const [low, high] = spec.stack
    ? [0, spec.percent ? 1 : 1.05 * Math.max(...series.at(-1).over.filter((_, place) => inside(series[0].x[place])), 1e-9)] : rangeOf(spec, inside);
  const holder = el("div");
  card.append(holder);
  card.draw = () => {
    const width = Math.max(220, card.clientWidth - 28), clip = `clip-${chart.count = (chart.count || 0) + 1}`;
    const px = (x) => left + ((x - from) / Math.max(to - from, 1e-9)) * (width - left - right);
    const py = (value) => {
      const at = spec.log ? (value > 0 ? Math.log10(value) : low - 1) : value;
      return height - bottom - ((at - low) / (high - low)) * (height - top - bottom);
    };
    const path = (xs, ys) => {
      let text = "", open = false;
      xs.forEach((x, place) => {
        const value = ys[place];
        if (value === null || value === undefined) { open = false; return; }
        text += `${open ? "L" : "M"}${px(x).toFixed(1)} ${py(value).toFixed(1)}`;
        open = true;
      });
      return text;
    };
    const area = (xs, under, over) => {
      const points = xs.map((x, place) => [x, under[place], over[place]]).filter(([, a, b]) => a !== null && b !== null && a !== undefined);
      return points.length < 2 ? "" : "M" + points.map(([x, , b]) => `${px(x).toFixed(1)} ${py(b).toFixed(1)}`).join("L")
        + "L" + points.reverse().map(([x, a]) => `${px(x).toFixed(1)} ${py(a).toFixed(1)}`).join("L") + "Z";
    };
    const axes = svg("g"), marks = svg("g", { "clip-path": `url(#${clip})` });
    for (const value of spec.log ? logTicks(low, high) : ticks(low, high, 4)) {
      const y = height - bottom - ((value - low) / (high - low)) * (height - top - bottom);
      axes.append(svg("line", { class: "grid-line", x1: left, x2: width - right, y1: y, y2: y }),
        svg("text", { x: left - 7, y: y + 4, "text-anchor": "end" }, spec.percent ? `${Math.round(1000 * value) / 10} %` : format(spec.log ? 10 ** value : value)));
    }
    for (const value of ticks(from, to, width > 500 ? 8 : 6).filter(Number.isInteger))
      axes.append(svg("text", { x: px(value), y: height - 6, "text-anchor": "middle" }, String(value)));
    for (const line of spec.lines || [])
      marks.append(svg("line", { x1: left, x2: width - right, y1: py(line.y), y2: py(line.y), stroke: "var(--soft)", "stroke-dasharray": "2 4" }),
        svg("text", { x: width - right - 3, y: py(line.y) - 4, "text-anchor": "end" }, line.name));
    for (const one of series) {
      if (spec.stack) {
        marks.append(svg("path", { d: area(one.x, one.under, one.over), fill: one.colour, opacity: 0.82 }));
        continue;
      }
      if (one.low) marks.append(svg("path", { d: area(one.x, one.low, one.high), fill: one.colour, opacity: 0.14 }));
      if (one.raw) marks.append(svg("path", { d: path(one.x, one.raw), fill: "none", stroke: one.colour, opacity: 0.22, "stroke-width": 1 }));
      marks.append(svg("path", { d: path(one.x, one.y), fill: "none", stroke: one.colour, opacity: one.faint ? 0.4 : 1, "stroke-linejoin": "round",
        "stroke-width": one.faint ? 1.1 : 2, "stroke-dasharray": one.dashed ? "6 4" : null }));
      if (one.dots) one.x.forEach((x, place) => one.y[place] === null || marks.append(svg("circle", { cx: px(x), cy: py(one.y[place]), r: 3, fill: one.colour })));
    }
    const cross = svg("line", { class: "cross", y1: top, y2: height - bottom, visibility: "hidden" }), band = svg("rect", { class: "zoom", y: top, height: height - top - bottom, visibility: "hidden" });
    const node = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": spec.title },
      svg("clipPath", { id: clip }, svg("rect", { x: left - 4, y: top - 4, width: width - left - right + 8, height: height - top - bottom + 8 })), axes, marks, band, cross);
    const stepAt = (event) => from + ((event.clientX - node.getBoundingClientRect().left) * (width / node.clientWidth || 1) - left) / (width - left - right) * (to - from);
    let start = null;
    node.addEventListener("pointermove", (event) => {
      hover.step = Math.max(from, Math.min(to, stepAt(event)));
      hover.draw.forEach((draw) => draw());
      if (start !== null) {
        const [a, b] = [Math.min(start, hover.step), Math.max(start, hover.step)];
        band.setAttribute("x", px(a)); band.setAttribute("width", px(b) - px(a)); band.setAttribute("visibility", "visible");
      }
      const rows = [], steps = [];
      for (const one of series) {
        let nearest = -1;
        one.x.forEach((x, place) => { if (one.y[place] !== null && one.y[place] !== undefined && (nearest < 0 || Math.abs(x - hover.step) < Math.abs(one.x[nearest] - hover.step))) nearest = place; });
        if (nearest < 0) continue;
        steps.push(one.x[nearest]);
        const shown = format(one.y[nearest], spec.percent);
        const about = one.low && one.low[nearest] !== null ? ` (${format(one.low[nearest], spec.percent)} to ${format(one.high[nearest], spec.percent)})` : "";
        rows.push([one.colour, one.name, shown + about + (one.about ? ` ${one.about[nearest]}` : "")]);
      }
      const most = Math.max(...steps), least = Math.min(...steps);
      tip(event, `step ${most === least ? most : `${format(least)} to ${format(most)}`}`, rows);
    });
    node.addEventListener("pointerdown", (event) => { start = stepAt(event); node.setPointerCapture(event.pointerId); });
    node.addEventListener("pointerup", () => {
      const width = Math.abs(hover.step - start);
      if (width > 0.02 * (to - from)) { hover.zoom = [Math.min(start, hover.step), Math.max(start, hover.step)]; noTip(); redraw(); }
      start = null;
    });
    node.addEventListener("dblclick", () => { hover.zoom = null; noTip(); redraw(); });
    node.addEventListener("pointerleave", () => { hover.step = null; hover.draw.forEach((draw) => draw()); noTip(); });
    hover.draw.add(() => {
      cross.setAttribute("visibility", hover.step === null ? "hidden" : "visible");
      if (hover.step !== null) { cross.setAttribute("x1", px(hover.step)); cross.setAttribute("x2", px(hover.step)); }
    });
    holder.replaceChildren(node);
  };
  if (spec.legend) card.append(el("div", { class: "legend" }, series.map((one) =>
    el("span", {}, el("i", { class: `key ${spec.stack ? "area" : ""} ${one.dashed ? "dashed" : ""}`, colour: one.colour }), one.name))));
  return card;
}

// Bars with whiskers: spec.groups [{name, colour, bars [{label, value, low, high, about}]}].
function bars(spec) {
  const card = el("div", { class: "card" }, el("h3", {}, spec.title, spec.unit ? el("span", { class: "unit" }, spec.unit) : null));
  const labels = [...new Set(spec.groups.flatMap((group) => group.bars.map((bar) => bar.label)))].sort((a, b) => a - b);
  const holder = el("div");
  card.append(holder);
  card.draw = () => {
    const width = Math.max(220, card.clientWidth - 28), height = 190, left = 52, bottom = 34, top = 8;
    const high = Math.min(1, 1.1 * Math.max(...spec.groups.flatMap((group) => group.bars.map((bar) => bar.high)), 0.01));
    const py = (value) => height - bottom - (value / high) * (height - top - bottom);
    const node = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": spec.title });
    for (const value of ticks(0, high, 4)) node.append(svg("line", { class: "grid-line", x1: left, x2: width, y1: py(value), y2: py(value) }),
      svg("text", { x: left - 7, y: py(value) + 4, "text-anchor": "end" }, `${Math.round(1000 * value) / 10} %`));
    const room = (width - left) / labels.length, thick = Math.min(46, (room * 0.72) / spec.groups.length);
    labels.forEach((label, place) => {
      const middle = left + room * (place + 0.5);
      node.append(svg("text", { x: middle, y: height - bottom + 15, "text-anchor": "middle" }, String(label)));
      spec.groups.forEach((group, number) => {
        const bar = group.bars.find((one) => one.label === label);
        if (!bar) return;
        const x = middle + (number - spec.groups.length / 2) * thick, centre = x + thick / 2;
        node.append(svg("rect", { x: x + 1, width: thick - 2, y: py(bar.value), height: Math.max(0, py(0) - py(bar.value)), rx: 2, fill: bar.colour || group.colour, opacity: 0.85 }),
          svg("path", { d: `M${centre} ${py(bar.low)}V${py(bar.high)}M${centre - 4} ${py(bar.low)}h8M${centre - 4} ${py(bar.high)}h8`, stroke: "var(--text)", "stroke-width": 1.2, fill: "none" }),
          svg("rect", { x, width: thick, y: top, height: height - top - bottom, fill: "transparent",
            onpointermove: (event) => tip(event, `${label} slices shown`, [[bar.colour || group.colour, group.name,
              `${format(bar.value, true)} (${format(bar.low, true)} to ${format(bar.high, true)}) ${bar.about}`]]), onpointerleave: noTip }));
      });
    });
    node.append(svg("text", { x: left + (width - left) / 2, y: height - 3, "text-anchor": "middle" }, "slices shown"));
    holder.replaceChildren(node);
  };
  return card;
}
