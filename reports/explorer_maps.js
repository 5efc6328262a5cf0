// Maps, number tables and the stepper of the model explorer's cards, and the frame that the cards share.

// --- a map in a card: its cells, a box over some of them ---
function mapView(values, h, w, scale, { label, size: width, onpick, note, quiet } = {}) {
  const canvas = paint(el("canvas", { "aria-hidden": true }), values, h, w, scale);
  const frame = el("span.box", { hidden: true });
  const node = el("div.map", onpick ? { tabindex: 0, role: "application", "aria-roledescription": "map",
    "aria-label": `${label}. Arrow keys move the cell.` } : quiet ? { "aria-hidden": true }
    : { role: "img", "aria-label": label }, canvas, frame);
  node.style.maxWidth = `${width}px`;
  if (onpick) {
    node.classList.add("live");
    const pick = event => onpick(...cellAt(event, node, h, w));
    node.addEventListener("pointerdown", event => { stop(); pick(event); });
    node.addEventListener("pointermove", event => {
      if (event.pointerType === "mouse" || event.buttons) pick(event);
    });
    node.addEventListener("keydown", event => {
      const [dy, dx] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0,
        1] }[event.key] ?? [0, 0];
      if (!dy && !dx) return;
      event.preventDefault();
      stop();
      onpick(Math.min(h - 1, Math.max(0, state.y + dy)), Math.min(w - 1, Math.max(0, state.x + dx)));
    });
  }
  const caption = el("figcaption", {}, label, note ? el("span.sub", {}, note) : null);
  return { node: el("figure", {}, caption, node), area: node, frame, h, w };
}
const boxOn = (view, top, left, height = 1, width = 1) => lay(view.frame, top, left, height, width, view.h, view.w);
const weightScale = values => spread([-Math.max(...range(values).map(Math.abs)), 0]);

/** The relative luminance of an sRGB colour (WCAG). */
function luminance(...rgb) {
  const [r, g, b] = rgb.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function brief(v) {
  if (!Number.isFinite(v)) return "·";
  return (Math.abs(v) < 100 ? v.toFixed(2) : v.toPrecision(3)).replace(/^-/, "−");
}
/** A table of numbers, each cell in the colour of its value. */
function grid(values, rows, columns, scale, { label, mark = -1 } = {}) {
  const body = el("tbody");
  for (let i = 0; i < rows; i++) {
    const row = el("tr");
    for (let j = 0; j < columns; j++) {
      const v = values[i * columns + j], k = 3 * colour(v, scale), ramp = ramps[scale.kind];
      const cell = el("td", { "data-value": v, title: String(v) }, brief(v));
      cell.style.background = `rgb(${ramp[k]},${ramp[k + 1]},${ramp[k + 2]})`;
      cell.style.color = luminance(ramp[k], ramp[k + 1], ramp[k + 2]) > 0.18 ? "#000" : "#fff";
      if (i * columns + j === mark) cell.className = "mark";
      row.append(cell);
    }
    body.append(row);
  }
  return el("table.grid-numbers", { "aria-label": label }, body);
}

// --- stepping ---
let tick = () => {};
function stop() {
  clearInterval(state.timer);
  state.timer = 0;
  const button = $("play");
  if (button) Object.assign(button, { textContent: "▶ Play" }).setAttribute("aria-pressed", "false");
}
function stepper(what) {
  const play = el("button", { id: "play", "aria-pressed": false, onclick: () => {
    if (state.timer) return stop();
    state.timer = setInterval(() => tick(1), still.matches ? 1200 : 350);
    play.textContent = "❚❚ Pause";
    play.setAttribute("aria-pressed", "true");
  } }, "▶ Play");
  const by = d => () => { stop(); tick(d); };
  return el("div.stepper", { role: "group", "aria-label": `Walk over ${what}` },
    el("button", { id: "step-back", "aria-label": `${what}: one back`, onclick: by(-1) }, "◀"), play,
    el("button", { id: "step", "aria-label": `${what}: one on`, onclick: by(1) }, "▶"),
    el("output", { id: "where" }));
}

// --- one card ---
const cards = {};
function detail(s, u) {
  const stage = stages[s], [h, w] = size(s);
  const maps = h * w > 1, chooser = el("div.chooser", { role: "group", "aria-label": `Units of ${stage.name}` },
    ...stage.units.map((_, i) => el("button", { "aria-pressed": i === u, "aria-label": maps ? unitName(s, i) : null,
      title: unitName(s, i), onclick: () => go(s, i) },
    maps ? picture(s, i) : unitName(s, i).replace("channel ", "#"))));
  const facts = [`shape ${shapeText(stage)}`,
    stage.parameters ? `${stage.parameters.toLocaleString("en")} parameters` : "",
    stage.stride && stage.stride.some(v => v > 1) ? `stride ${stage.stride.join(" × ")}` : "",
    stage.padding && stage.padding.some(v => v) ? `padding ${stage.padding.join(" × ")}` : "",
    stage.group ? `block ${stage.group.number} of ${stage.group.count} in ${stage.group.name}` : "",
    stage.rule === "strongest"
      ? `the ${stage.units.length} strongest channels` : stage.rule === "likeliest" ? "the likeliest classes" : "",
    stage.step > 1 ? `every ${stage.step}. row and column` : ""].filter(Boolean);
  const card = el(`div.card-of.${stage.kind}`);
  $("detail").replaceChildren(el("header", {}, el("h2", { tabindex: -1 }, el("code", {}, stage.name),
    ` ${unitName(s, u)}`),
    el("p", {}, `${stage.what}. `, el("span.facts", {}, facts.join(" · ")))), chooser, card);
  (cards[stage.kind] ?? cards.block)(card, stage, s, u);
}
/** Photograph, output map and stepper, which most cards share; `moved(y, x)` draws the rest for a cell. */
function frameOf(card, s, u, middle, total, moved) {
  const [h, w] = size(s);
  let seen;
  const photo = photograph("large", box => { seen = box; });
  const said = el("p.note");
  const place = (y, x) => {
    Object.assign(state, { y, x });
    const f = showField(seen, s, y, x), whole = f.height >= net.size[0] && f.width >= net.size[1], k = stages[s].step;
    const span = (start, length, name) => `${name}${length > 1 ? "s" : ""} ${Math.floor(start)}${
      length > 1 ? ` to ${Math.ceil(start + length) - 1}` : ""}`;
    said.textContent = whole ? "The cell sees the whole picture." : !(f.height * f.width)
      ? "The cell sees nothing but padding." : `The cell sees ${Math.round(f.height)} × ${Math.round(f.width)} pixel${
        f.height * f.width > 1 ? "s" : ""}: ${span(f.top, f.height, "row")}, ${span(f.left, f.width, "column")}.`;
    boxOn(out, y, x);
    $("where").textContent = `row ${y * k}, column ${x * k}`;
    const told = moved(y, x);
    if (!state.timer) says(`row ${y * k}, column ${x * k}: ${told ?? figure(at(s, u, y, x))}`);
  };
  const out = mapView(map(s, u), h, w, scaleOf(s, u), { label: `${stages[s].name}, ${unitName(s, u)}`, size: 260,
    onpick: place, note: "point at a cell, or step" });
  out.area.id = "output";
  photo.classList.add("live");
  const pick = event => {
    const f = stages[s].field, [py, px] = cellAt(event, photo, ...net.size);
    if (!f) return;
    const cell = [py, px].map((p,
      a) => Math.round((p - f.start[a] - (f.size[a] - 1) / 2) / f.jump[a] / stages[s].step));
    place(Math.min(h - 1, Math.max(0, cell[0])), Math.min(w - 1, Math.max(0, cell[1])));
  };
  photo.addEventListener("pointerdown", event => { stop(); pick(event); });
  photo.addEventListener("pointermove", event => (event.pointerType === "mouse" || event.buttons) && pick(event));
  tick = d => {
    const i = (state.y * w + state.x + d + h * w) % (h * w);
    place(Math.floor(i / w), i % w);
  };
  card.append(el("div.from", {}, el("figure", {}, el("figcaption", {}, "What the cell sees"), photo), said), middle,
    el("div.to", {}, stepper(h * w > 1 ? "cells" : "sources"), h * w > 1 ? out.node : null, total));
  place(state.y, state.x);
}
