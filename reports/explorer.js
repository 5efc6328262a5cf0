// The model explorer: its data, the drawing of maps, the overview and the way between the stages.
const net = JSON.parse(document.getElementById("network").textContent);
const stages = net.stages;
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const floats = array => array.values ??= new Float32Array(bytes(array.data).buffer);
const ramps = { sequential: bytes(net.palettes.sequential), diverging: bytes(net.palettes.diverging) };
const $ = id => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");
const narrow = matchMedia("(max-width: 760px)");
const full = net.detail === "full";
const state = { stage: -1, unit: 0, y: 0, x: 0, part: 0, scope: "layer", open: new Set(), timer: 0 };

// --- elements: text is only ever set as text ---
function el(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const node = document.createElement(name || "div");
  if (classes.length) node.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === null || value === undefined) continue;
    else if (/^(aria|data)-/.test(key)) node.setAttribute(key, value);
    else if (value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
}
function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// --- numbers ---
function figure(v, digits = 3) {
  if (!Number.isFinite(v)) return "not finite";
  const size = Math.abs(v);
  const text = size !== 0 && size < 0.5 * 10 ** -digits ? v.toExponential(1)
    : size >= 10000 ? v.toPrecision(5) : size >= 1000 ? v.toFixed(1) : v.toFixed(digits);
  return text.replace(/^-/, "−").replace("e-", "e−").replace("e+", "e");
}
const num = (v, tag = "span.n", digits = 3) => el(tag, { "data-value": v, title: String(v) }, figure(v, digits));
const share = p => p > 0 && p < 0.0005 ? "<0.1 %" : p < 1 && p >= 0.9995 ? ">99.9 %" : (100 * p).toFixed(1) + " %";

// --- a stage's maps ---
const size = s => stages[s].values.shape.slice(1);
function map(s, u) {
  const [h, w] = size(s);
  return floats(stages[s].values).subarray(u * h * w, (u + 1) * h * w);
}
const at = (s, u, y, x) => map(s, u)[y * size(s)[1] + x];
function range(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) {
    if (v < low) low = v;
    if (v > high) high = v;
  }
  return [low, high];
}
const spread = ([low, high]) => low < 0 ? { kind: "diverging", low: -Math.max(-low, high), high: Math.max(-low, high) }
  : { kind: "sequential", low: 0, high: high || 1 };
let widest = null;
function scaleOf(s, u) {
  if (state.scope === "map") return spread(range(map(s, u)));
  if (state.scope === "layer" || s === 0) return spread([stages[s].low ?? 0, stages[s].high ?? 1]);
  const inner = stages.filter((t, i) => i && t.kind !== "softmax" && t.kind !== "answer");
  widest ??= [Math.min(...inner.map(t => t.low ?? 0)), Math.max(...inner.map(t => t.high ?? 1))];
  return spread(widest);
}
function colour(v, scale) {
  if (!Number.isFinite(v)) return 255;
  return Math.round(254 * Math.min(1, Math.max(0, (v - scale.low) / (scale.high - scale.low || 1))));
}
function paint(canvas, values, h, w, scale) {
  canvas.width = w;
  canvas.height = h;
  const pixels = new ImageData(w, h), ramp = ramps[scale.kind];
  for (let i = 0; i < h * w; i++) {
    const k = 3 * colour(values[i], scale);
    pixels.data.set([ramp[k], ramp[k + 1], ramp[k + 2], 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}
const picture = (s, u) => paint(el("canvas", { "aria-hidden": true }), map(s, u), ...size(s), scaleOf(s, u));

// --- names ---
const unitName = (s, u) => {
  const stage = stages[s], number = stage.units[u];
  if (stage.unit_names) return stage.unit_names[u];
  const label = ["linear", "softmax",
    "answer"].includes(stage.kind) && stages.at(-1).units ? net.labels[number] : undefined;
  return label !== undefined && (s >= stages.length - 2) ? label : `channel ${number}`;
};
const title = s => stages[s].group && !state.open.has(stages[s].group.name) ? stages[s].group.name : stages[s].name;
const shapeText = stage => stage.shape.join(" × ");
const operation = stage => ({ conv: `conv ${stage.kernel?.join("×")}`, maxpool: `max-pool ${stage.kernel?.join("×")}`,
  avgpool: `mean ${stage.kernel?.join("×")}`, batchnorm: "batch norm", relu: "ReLU",
    input: "pixels" })[stage.op] ?? stage.op;
const says = text => { $("live").textContent = text; };

// --- what a cell sees ---
function field(s, y, x) {
  const f = stages[s].field, step = stages[s].step, [H, W] = net.size;
  if (!f) return { top: 0, left: 0, height: H, width: W };
  const cut = (start, length, most) => [Math.max(0, start), Math.min(most, start + length)];
  const [top, bottom] = cut(f.start[0] + y * step * f.jump[0], f.size[0], H);
  const [left, right] = cut(f.start[1] + x * step * f.jump[1], f.size[1], W);
  return { top, left, height: Math.max(0, bottom - top), width: Math.max(0, right - left) };
}
function lay(box, top, left, height, width, H, W) {
  Object.assign(box.style, { top: `${100 * top / H}%`, left: `${100 * left / W}%`,
    height: `${100 * height / H}%`, width: `${100 * width / W}%` });
  box.hidden = false;
}
const showField = (box, s, y, x) => {
  const f = field(s, y, x);
  lay(box, f.top, f.left, f.height, f.width, ...net.size);
  return f;
};
function cellAt(event, node, h, w) {
  const r = node.getBoundingClientRect();
  const clamp = (v, n) => Math.min(n - 1, Math.max(0, Math.floor(v * n)));
  return [clamp((event.clientY - r.top) / r.height, h), clamp((event.clientX - r.left) / r.width, w)];
}

// --- the overview ---
const visible = () => stages.map((_, i) => i).filter(i => {
  const g = stages[i].group;
  return !g || state.open.has(g.name) || g.number === g.count;
});
const units = new Map();  // "stage.unit" -> its button
let links = null, seenBox = null;

function overview() {
  units.clear();
  const columns = visible(), root = $("overview");
  const flow = el("div.flow", { role: "group", "aria-label": "Stages in order; arrow keys move, Enter opens" });
  links = svg("svg", { class: "links", "aria-hidden": "true" }, svg("path", { class: "all" }), svg("path",
    { class: "lit" }));
  flow.append(links, ...columns.map(column));
  root.replaceChildren(el("div.scroll", { tabindex: -1 }, flow), legend());
  const first = [...units.values()][0];
  if (first) first.tabIndex = 0;
  requestAnimationFrame(drawLinks);
}
function column(s) {
  const stage = stages[s], group = stage.group, list = el("div.units");
  const head = el("div.head", {}, el("b", { title: stage.name }, title(s)), el("span", {}, operation(stage)),
    el("span", {}, shapeText(stage)));
  if (group && (group.number === group.count || state.open.has(group.name))) {
    const open = state.open.has(group.name);
    if (!open || group.number === 1) head.append(el("button.fold", { "aria-expanded": open, onclick: () => {
      open ? state.open.delete(group.name) : state.open.add(group.name);
      overview();
    } }, open ? "− fold" : `+ ${group.count} blocks`));
  }
  if (s === 0) list.append(photograph("thumb", box => { seenBox = box; }));
  stage.units.forEach((_, u) => list.append(unitButton(s, u)));
  return el(`section.stage-column.${stage.kind}`, { "aria-label": `${stage.name}: ${stage.what}` }, head, list);
}
function photograph(kind, take) {
  const box = el("span.box", { hidden: true });
  take(box);
  return el(`div.map.photograph.${kind}`, {}, el("img", { src: net.photograph,
    alt: `The picture ${net.image.name} as the network takes it` }), box);
}
function unitButton(s, u) {
  const stage = stages[s], [h, w] = size(s), last = s === stages.length - 1 && stage.kind !== "block";
  const label = unitName(s, u), value = h * w === 1 ? at(s, u, 0, 0) : null;
  const shown = stage.kind === "softmax" || stage.kind === "answer"
    ? share(value) : value === null ? "" : figure(value, 2);
  const button = el("button.unit", { tabindex: -1, "data-stage": s, "data-unit": u,
    "aria-label": value === null ? `${stage.name}, ${label}` : null, onclick: () => go(s, u) });
  if (value === null) button.append(picture(s, u));
  else {
    const scored = stage.kind === "linear" || last;
    const bar = el("i.bar"), span = last ? 1 : Math.max(Math.abs(stage.low), Math.abs(stage.high)) || 1;
    bar.style.width = `${100 * Math.abs(value) / span}%`;
    if (value < 0) bar.classList.add("against");
    button.classList.add("scored");
    if (stage.units[u] === net.target && scored) button.classList.add("target");
    button.append(el("span.unseen", {}, `${stage.name} `),
      el("span.name", {}, scored ? label : label.replace("channel ", "#")), el("span.n", {}, shown), bar);
  }
  button.addEventListener("pointerenter", () => light(s, u));
  button.addEventListener("focus", () => { rove(button); light(s, u); });
  button.addEventListener("pointermove", e => seenBox && showField(seenBox, s, ...cellAt(e, button, h, w)));
  button.addEventListener("pointerleave", () => { light(-1); if (seenBox) seenBox.hidden = true; });
  units.set(`${s}.${u}`, button);
  return button;
}
function rove(button) {
  for (const other of units.values()) other.tabIndex = -1;
  button.tabIndex = 0;
}
/** The units of the stages before that a unit reads, as [stage, unit]. */
function sources(s, u) {
  const stage = stages[s];
  return stage.sources.flatMap(t => {
    const all = stages[t].units.map((_, i) => [t, i]);
    if (!full && stage.kind !== "softmax" && stage.kind !== "answer") return [];
    if (stage.kind === "linear" || stage.kind === "softmax") return all;
    if (stage.kind === "conv") return channelsOf(stage, u).map(c => [t, c]);
    return [[t, u]];
  });
}
function channelsOf(stage, u) {
  const per = stage.weight.shape[1], first = Math.floor(u / (stage.units.length / stage.groups)) * per;
  return Array.from({ length: per }, (_, i) => first + i);
}
function curve(a, b, origin) {
  const p = a.getBoundingClientRect(), q = b.getBoundingClientRect();
  const [x, y, u, v] = [p.right - origin.left, p.top + p.height / 2 - origin.top, q.left - origin.left,
    q.top + q.height / 2 - origin.top];
  const middle = (x + u) / 2;
  return `M${x} ${y}C${middle} ${y} ${middle} ${v} ${u} ${v}`;
}
function paths(pairs) {
  const origin = links.getBoundingClientRect();
  return pairs.map(([one, two]) => {
    const [a, b] = [units.get(one.join(".")), units.get(two.join("."))];
    return a && b ? curve(a, b, origin) : "";
  }).join("");
}
function drawLinks() {
  if (!links?.isConnected || narrow.matches) return;
  const every = [...units.keys()].map(k => k.split(".").map(Number));
  links.querySelector(".all").setAttribute("d", paths(every.flatMap(([s, u]) => sources(s, u).map(from => [from, [s,
    u]]))));
}
function light(s, u = 0) {
  for (const node of document.querySelectorAll(".unit.source")) node.classList.remove("source");
  if (!links) return;
  const lit = s < 0 ? [] : sources(s, u);
  for (const from of lit) units.get(from.join("."))?.classList.add("source");
  links.querySelector(".lit").setAttribute("d", narrow.matches ? "" : paths(lit.map(from => [from, [s, u]])));
}
function legend() {
  return el("div.legends", {}, ...["sequential", "diverging"].map(kind => el(`div.scale.${kind}`, {}, el("div.ramp"),
    el("div.ticks", {}, el("span", {}, kind === "diverging" ? "negative" : "0"), el("span", {},
      kind === "diverging" ? "0" : ""),
      el("span", {}, kind === "diverging" ? "positive" : "largest")))));
}

// --- the way between the views ---
function go(s, u, y, x) {
  const mark = s < 0 ? "#overview" : `#s${s}u${u}` + (y === undefined ? "" : `y${y}x${x}`);
  if (location.hash === mark) show();
  else location.hash = mark;
}
function show() {
  const found = /^#s(\d+)u(\d+)(?:y(\d+)x(\d+))?$/.exec(location.hash)?.slice(1).map(Number);
  const before = [state.stage, state.unit];
  stop();
  if (found && stages[found[0]]?.units[found[1]] !== undefined) {
    const [h, w] = size(found[0]), [y, x] = [found[2], found[3]];
    Object.assign(state, { stage: found[0], unit: found[1], part: -1 });
    const given = Number.isFinite(y) && Number.isFinite(x), cells = map(state.stage, state.unit);
    if (given) Object.assign(state, { y: Math.min(h - 1, y), x: Math.min(w - 1, x) });
    else if (before[0] !== state.stage) {  // begin where the map is strongest
      const best = cells.reduce((b, v, i) => Math.abs(v) > Math.abs(cells[b]) ? i : b, 0);
      Object.assign(state, { y: Math.floor(best / w), x: best % w });
    }
  } else state.stage = -1;
  draw(before);
}
function draw(before = [-1, 0]) {
  const inside = state.stage >= 0;
  $("overview").hidden = inside;
  $("detail").hidden = !inside;
  bar();
  if (inside) {
    detail(state.stage, state.unit);
    $("detail").querySelector("h2").focus({ preventScroll: true });
    if ($("walk").getBoundingClientRect().top < 0) $("walk").scrollIntoView({ behavior: "instant" });
  } else {
    if (stages[before[0]]?.group) state.open.add(stages[before[0]].group.name);
    overview();
    units.get(before.join("."))?.focus();
  }
}
function bar() {
  const s = state.stage;
  const step = (d, words) => {
    const to = s + d, there = to >= 0 && to < stages.length, name = there ? stages[to].name : "";
    return el("button", { disabled: !there, "aria-label": `${words} ${name}`,
      onclick: () => go(to, Math.min(state.unit, stages[to].units.length - 1)) },
    d < 0 ? `← ${name}` : `${name} →`);
  };
  const spans = [["map", "each map"], ["layer", "each layer"], ["net", "the whole network"]];
  const scope = el("select", { id: "scope", onchange: event => {
    state.scope = event.target.value;
    draw([s, state.unit]);
    $("scope").focus();
  } }, ...spans.map(([value, text]) => el("option", { value, selected: value === state.scope }, text)));
  const hint = narrow.matches ? "Tap a map to see how it is made."
    : "Point at a map to see what it is made from, click it to see how. Arrow keys, Enter and Escape work too.";
  const overview_ = el("button", { id: "back", onclick: () => go(-1) }, "Overview");
  $("bar").replaceChildren(...(s < 0 ? [el("p.hint", {}, hint)] : [overview_, step(-1, "Back to"), step(1, "On to")]),
    el("label.scope", {}, "colours span ", scope));
}
function keys(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "Escape" && state.stage >= 0) {
    event.preventDefault();
    return go(-1);
  }
  const from = event.target.closest?.(".unit");
  if (!from || state.stage >= 0) return;
  const turned = narrow.matches ? { ArrowLeft: "ArrowUp", ArrowRight: "ArrowDown", ArrowUp: "ArrowLeft",
    ArrowDown: "ArrowRight" } : {};
  const key = turned[event.key] ?? event.key, row = visible();
  let [s, u] = [Number(from.dataset.stage), Number(from.dataset.unit)], i = row.indexOf(s);
  if (key === "ArrowLeft") i--;
  else if (key === "ArrowRight") i++;
  else if (key === "ArrowUp") u--;
  else if (key === "ArrowDown") u++;
  else if (key === "Home") i = 0;
  else if (key === "End") i = row.length - 1;
  else return;
  event.preventDefault();
  i = Math.min(row.length - 1, Math.max(0, i));
  u = Math.min(stages[row[i]].units.length - 1, Math.max(0, u));
  units.get(`${row[i]}.${u}`).focus();
}
