// Charts as SVG, drawn when they are in the page: a card has a method `draw`.

const DASHES = { dashed: "6 4", dotted: "2 3" };
const hover = { step: null, zoom: null, crosses: new Set() }; // shared by all charts

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((some) => some >= rough * 0.999);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
  return found;
}

function powersOfTen(low, high) {
  const found = [];
  for (let power = Math.ceil(low); power <= Math.floor(high); power++) found.push(power);
  return found.length < 2 ? ticks(low, high, 3) : found.filter((_, n) => n % Math.ceil(found.length / 5) === 0);
}

// From the lowest to the highest of the values, intervals and lines, and of raw values all but the rarest.
function rangeOf(spec, inside) {
  const values = (spec.lines || []).map((line) => line.y), raw = [];
  for (const one of spec.series) {
    one.x.forEach((x, place) => {
      if (!inside(x)) return;
      for (const some of [one.y, one.low, one.high]) if (some && isNumber(some[place])) values.push(some[place]);
      if (one.raw && isNumber(one.raw[place])) raw.push(one.raw[place]);
    });
  }
  raw.sort((a, b) => a - b);
  const rare = spec.log ? 0.05 : 0.02, at = (share) => raw[Math.round(share * (raw.length - 1))];
  if (raw.length) values.push(at(rare), at(1 - rare));
  const usable = spec.log ? values.filter((value) => value > 0).map(Math.log10) : values;
  if (!usable.length) return [0, 1];
  let low = Math.min(...usable), high = Math.max(...usable);
  if (spec.zero) low = Math.min(0, low);
  if (high - low < 1e-12) {
    low -= spec.zero ? 0 : Math.abs(low) * 0.1 || 1;
    high += Math.abs(high) * 0.1 || 1;
  }
  const margin = 0.05 * (high - low);
  return [spec.zero && low === 0 ? 0 : low - margin, high + margin];
}

// Where steps and values are in a picture of a size.
function frameOf(width, height, [from, to], [low, high], log = false) {
  const left = 52, right = width - 10, top = 8, bottom = height - 22;
  const px = (x) => left + ((x - from) / Math.max(to - from, 1e-9)) * (right - left);
  const at = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
  const py = (value) => at(!log ? value : value > 0 ? Math.log10(value) : low - 1);
  const point = (x, y) => `${px(x).toFixed(1)} ${py(y).toFixed(1)}`;
  const line = (xs, ys) => {
    let text = "";
    xs.forEach((x, n) => { if (isNumber(ys[n])) text += (n && isNumber(ys[n - 1]) ? "L" : "M") + point(x, ys[n]); });
    return text;
  };
  const area = (xs, under, over) => {
    const kept = xs.map((_, n) => n).filter((n) => isNumber(under[n]) && isNumber(over[n]));
    if (kept.length < 2) return "";
    const back = [...kept].reverse().map((n) => point(xs[n], under[n]));
    return `M${kept.map((n) => point(xs[n], over[n])).join("L")}L${back.join("L")}Z`;
  };
  return { width, height, from, to, low, high, left, right, top, bottom, px, py, at, line, area };
}

function yAxis(frame, values, text) {
  return values.flatMap((value) => [
    svg("line", { class: "grid-line", x1: frame.left, x2: frame.right, y1: frame.at(value), y2: frame.at(value) }),
    svg("text", { x: frame.left - 7, y: frame.at(value) + 4, "text-anchor": "end" }, text(value)),
  ]);
}
const percents = (value) => `${Number((100 * value).toPrecision(3))} %`;

function axes(frame, spec) {
  const values = spec.log ? powersOfTen(frame.low, frame.high) : ticks(frame.low, frame.high, 4);
  const steps = ticks(frame.from, frame.to, frame.width > 500 ? 8 : 6).filter(Number.isInteger);
  return svg("g", {},
    yAxis(frame, values, (value) => spec.percent ? percents(value) : format(spec.log ? 10 ** value : value)),
    steps.map((step) => svg("text", { x: frame.px(step), y: frame.height - 6, "text-anchor": "middle" }, `${step}`)));
}

function marksOf(frame, one) {
  if (one.under) return [svg("path", { d: frame.area(one.x, one.under, one.over), fill: one.colour, opacity: 0.82 })];
  const stroke = { fill: "none", stroke: one.colour, "stroke-linejoin": "round" };
  const dots = one.dots ? one.x.map((x, n) => !isNumber(one.y[n]) ? null
    : svg("circle", { cx: frame.px(x), cy: frame.py(one.y[n]), r: 3, fill: one.colour })) : [];
  return [
    one.low ? svg("path", { d: frame.area(one.x, one.low, one.high), fill: one.colour, opacity: 0.14 }) : null,
    one.raw ? svg("path", { d: frame.line(one.x, one.raw), ...stroke, opacity: 0.22 }) : null,
    svg("path", { d: frame.line(one.x, one.y), ...stroke, opacity: one.faint ? 0.4 : 1,
      "stroke-width": one.faint ? 1.1 : 2, "stroke-dasharray": DASHES[one.pattern] }),
    ...dots,
  ];
}

function referenceLine(frame, { y, name }) {
  const place = frame.py(y);
  return [
    svg("line", { x1: frame.left, x2: frame.right, y1: place, y2: place, class: "reference" }),
    svg("text", { x: frame.right - 3, y: place - 4, "text-anchor": "end" }, name),
  ];
}

// What the series have nearest to a step: rows for `tip`, and the steps these are at.
function valuesAt(step, series, percent, reach) {
  const rows = [], steps = [];
  for (const one of series) {
    const places = one.x.map((_, n) => n).filter((n) => isNumber(one.y[n]));
    const distance = (n) => Math.abs(one.x[n] - step);
    if (!places.length || Math.max(one.x[0] - step, step - one.x.at(-1)) > reach) continue; // it is not there (yet)
    const n = places.reduce((best, place) => (distance(place) < distance(best) ? place : best));
    steps.push(one.x[n]);
    const interval = one.low && isNumber(one.low[n])
      ? ` (${format(one.low[n], percent)} to ${format(one.high[n], percent)})` : "";
    rows.push([one.colour, one.name, `${format(one.y[n], percent)}${interval} ${one.about ? one.about[n] : ""}`]);
  }
  return [rows, steps];
}

// The pointer shows values, and its step in all charts; dragging zooms all, a double click ends that.
function follow(picture, frame, spec, series, redraw) {
  const { from, to, px, top, bottom } = frame, height = bottom - top;
  const cross = svg("line", { class: "cross", y1: top, y2: bottom, visibility: "hidden" });
  const band = svg("rect", { class: "zoom", y: top, height, visibility: "hidden" });
  picture.append(band, cross);
  const stepAt = (event) => {
    const box = picture.getBoundingClientRect(), x = ((event.clientX - box.left) * frame.width) / box.width;
    return Math.max(from, Math.min(to, from + ((x - frame.left) / (frame.right - frame.left)) * (to - from)));
  };
  const put = (node, values) => Object.entries(values).forEach(([name, value]) => node.setAttribute(name, value));
  const show = (step) => {
    hover.step = step;
    hover.crosses.forEach((move) => move());
  };
  hover.crosses.add(() => hover.step === null ? put(cross, { visibility: "hidden" })
    : put(cross, { visibility: "visible", x1: px(hover.step), x2: px(hover.step) }));
  let start = null;
  const zoom = (range) => {
    hover.zoom = range;
    noTip();
    redraw();
  };
  picture.addEventListener("pointermove", (event) => {
    show(stepAt(event));
    if (start !== null) {
      const [a, b] = [start, hover.step].map(px);
      put(band, { visibility: "visible", x: Math.min(a, b), width: Math.abs(b - a) });
    }
    const [rows, steps] = valuesAt(hover.step, series, spec.percent, 0.03 * (to - from));
    if (!rows.length) return noTip();
    const least = Math.min(...steps), most = Math.max(...steps);
    tip(event, `step ${least === most ? format(most) : `${format(least)} to ${format(most)}`}`, rows);
  });
  picture.addEventListener("pointerdown", (event) => {
    start = stepAt(event);
    picture.setPointerCapture(event.pointerId);
  });
  picture.addEventListener("pointerup", () => {
    const range = [Math.min(start, hover.step), Math.max(start, hover.step)];
    start = null;
    if (range[1] - range[0] > 0.02 * (to - from)) zoom(range);
  });
  picture.addEventListener("dblclick", () => zoom(null));
  picture.addEventListener("pointerleave", () => {
    show(null);
    noTip();
  });
}

function cardOf(spec, ...content) {
  const unit = spec.unit ? el("span", { class: "unit" }, spec.unit) : null;
  return el("div", { class: "card" }, el("h3", {}, spec.title, unit), ...content);
}
const pictureOf = (width, height, name, ...content) =>
  svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": name }, ...content);
const widthOf = (card) => Math.max(220, card.clientWidth - 28);

// Each series on the sum of those before it.
function stacked(series) {
  let below = series[0].x.map(() => 0);
  return series.map((one) => {
    const under = below;
    below = one.y.map((value, place) => under[place] + (value || 0));
    return { ...one, under, over: below };
  });
}

let numCharts = 0;

// spec: title, unit, height; series [{name, colour, pattern, faint, x, y, raw, low, high, dots, about}]; lines [{y,
// name}]; percent, log, zero (is in sight), stack (series on one another), legend, empty (stands where nothing is).
function chart(spec, limits, redraw) {
  if (!spec.series.some((one) => one.y.some(isNumber)))
    return cardOf(spec, el("div", { class: "empty" }, spec.empty || "not logged"));
  const [from, to] = hover.zoom || limits, inside = (x) => x >= from && x <= to;
  const series = spec.stack ? stacked(spec.series) : spec.series;
  const highest = () => Math.max(...series.at(-1).over.filter((_, place) => inside(series[0].x[place])), 1e-9);
  const range = !spec.stack ? rangeOf(spec, inside) : [0, spec.percent ? 1 : 1.05 * highest()];
  const kind = (one) => (spec.stack ? "area" : one.pattern || "");
  const key = (one) => el("i", { class: `key ${kind(one)}`, colour: one.colour });
  const holder = el("div"), id = `clip-${numCharts++}`;
  const card = cardOf(spec, holder,
    spec.legend ? el("div", { class: "legend" }, series.map((one) => el("span", {}, key(one), one.name))) : null);
  card.draw = () => {
    const frame = frameOf(widthOf(card), spec.height || 190, [from, to], range, spec.log);
    const { left, right, top, bottom } = frame;
    const clip = svg("rect", { x: left - 4, y: top - 4, width: right - left + 8, height: bottom - top + 8 });
    const picture = pictureOf(frame.width, frame.height, spec.title, svg("clipPath", { id }, clip), axes(frame, spec),
      svg("g", { "clip-path": `url(#${id})` }, (spec.lines || []).flatMap((line) => referenceLine(frame, line)),
        series.flatMap((one) => marksOf(frame, one))));
    follow(picture, frame, spec, series, redraw);
    holder.replaceChildren(picture);
  };
  return card;
}

// Bars with intervals; spec: title, unit, category; groups [{name, colour, bars}], bars [{label, value, low, high,
// about, colour}].
function bars(spec) {
  const all = spec.groups.flatMap((group) => group.bars);
  const labels = [...new Set(all.map((bar) => bar.label))].sort((a, b) => a - b);
  const high = Math.min(1, 1.1 * Math.max(...all.map((bar) => bar.high), 0.01));
  const holder = el("div"), card = cardOf(spec, holder);
  card.draw = () => {
    const frame = frameOf(widthOf(card), 178, [0, labels.length], [0, high]);
    const room = frame.px(1) - frame.px(0), thick = Math.min(46, (0.72 * room) / spec.groups.length);
    const picture = pictureOf(frame.width, 190, spec.title, yAxis(frame, ticks(0, high, 4), percents),
      svg("text", { x: (frame.left + frame.right) / 2, y: 187, "text-anchor": "middle" }, spec.category));
    labels.forEach((label, n) =>
      picture.append(svg("text", { x: frame.px(n + 0.5), y: frame.bottom + 14, "text-anchor": "middle" }, `${label}`)));
    spec.groups.forEach((group, number) => group.bars.forEach((bar) => {
      const x = frame.px(labels.indexOf(bar.label) + 0.5) + (number - spec.groups.length / 2) * thick;
      const [y, low, top] = [bar.value, bar.low, bar.high].map(frame.py), shade = bar.colour || group.colour;
      const value = `${format(bar.value, true)} (${format(bar.low, true)} to ${format(bar.high, true)}) ${bar.about}`;
      const show = (event) => tip(event, `${bar.label} ${spec.category}`, [[shade, group.name, value]]);
      const middle = x + thick / 2, whisker = `M${middle} ${low}V${top}M${middle - 4} ${low}h8M${middle - 4} ${top}h8`;
      picture.append(
        svg("rect", { x: x + 1, y, width: thick - 2, height: frame.bottom - y, rx: 2, fill: shade, opacity: 0.85 }),
        svg("path", { d: whisker, stroke: "var(--text)", "stroke-width": 1.2, fill: "none" }),
        svg("rect", { x, y: frame.top, width: thick, height: frame.bottom - frame.top, fill: "transparent",
          onpointermove: show, onpointerleave: noTip }));
    }));
    holder.replaceChildren(picture);
  };
  return card;
}
