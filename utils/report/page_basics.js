"use strict";
// Elements, numbers as texts, smoothing, the box beside the pointer. Texts become text nodes, never markup.

const SVG = "http://www.w3.org/2000/svg";
const colour = (number) => `var(--series-${number % 7})`;
const isNumber = (value) => value !== null && value !== undefined;

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (!isNumber(value) || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "colour") node.style.color = value; // the policy allows no style attributes
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter(isNumber));
  return node;
}
const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

function format(value, percent = false) {
  if (!Number.isFinite(value)) return "–";
  if (percent) return `${(100 * value).toFixed(1)} %`;
  const size = Math.abs(value);
  if (size >= 10000) return Math.round(value).toLocaleString("en");
  if (size !== 0 && size < 0.001) return value.toExponential(1);
  return String(Number(value.toPrecision(size >= 1000 ? 4 : 3)));
}

function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  const hours = Math.floor(seconds / 3600), minutes = Math.floor((seconds % 3600) / 60);
  if (hours) return `${hours} h ${minutes} min`;
  return seconds >= 100 ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${format(seconds)} s`;
}

// Exponential moving average in both directions, so that it does not lag behind; gaps stay gaps.
function smooth(values, keep) {
  const before = (some) => {
    let sum = 0, weight = 0;
    return some.map((value) => {
      [sum, weight] = [keep * sum, keep * weight];
      const soFar = [sum, weight];
      if (isNumber(value)) [sum, weight] = [sum + value, weight + 1];
      return soFar;
    });
  };
  const left = before(values), right = before([...values].reverse()).reverse();
  return values.map((value, place) => !isNumber(value) ? null
    : (value + left[place][0] + right[place][0]) / (1 + left[place][1] + right[place][1]));
}

function tip(event, title, rows) {
  let box = document.getElementById("tip");
  if (!box) document.body.append((box = el("div", { id: "tip" })));
  box.replaceChildren(el("b", {}, title), ...rows.map(([shade, name, value]) => el("div", {},
    el("i", { class: "dot", colour: shade }), el("span", {}, name), el("span", { class: "value" }, value))));
  const within = (place, room) => `${Math.max(4, Math.min(room - 8, place))}px`;
  const beside = event.clientX > innerWidth / 2 ? -box.offsetWidth - 16 : 16;
  box.style.left = within(event.clientX + beside, innerWidth - box.offsetWidth);
  box.style.top = within(event.clientY - box.offsetHeight / 2, innerHeight - box.offsetHeight);
}
const noTip = () => document.getElementById("tip")?.remove();
