// The cards of the model explorer: how one cell of one map is made, with the real numbers, step by step.

function inputWindow(stage, y, x) {
  const [top, left] = [y, x].map((v, a) => v * stage.stride[a] - stage.padding[a]);
  return [top, left, (stage.kernel[0] - 1) * stage.dilation[0] + 1, (stage.kernel[1] - 1) * stage.dilation[1] + 1];
}
/** The cells of a map under a window; `outside` stands for padding. */
function patch(values, h, w, stage, y, x, outside) {
  const [top, left] = inputWindow(stage, y, x), found = [];
  for (let i = 0; i < stage.kernel[0]; i++) for (let j = 0; j < stage.kernel[1]; j++) {
    const [r, c] = [top + i * stage.dilation[0], left + j * stage.dilation[1]];
    found.push(r >= 0 && r < h && c >= 0 && c < w ? values[r * w + c] : outside);
  }
  return found;
}
const products = (a, b) => Array.from(a, (v, i) => v * b[i]);
const sum = values => values.reduce((a, b) => a + b, 0);

/** Input map, kernel, product map and sum of each source channel; the formula of the chosen one. */
function parts(card, stage, s, u, { channels, kernel, input, window }) {
  const [t] = stage.sources, [h, w] = size(t), [oh, ow] = size(s), bias = floats(stage.bias)[u], whole = oh * ow === 1;
  const [per, kh, kw] = stage.weight.shape.slice(1), kernels = channels.map((_, i) => kernel(i));
  const made = channels.map((c, i) => {
    const source = map(t, c), found = new Float32Array(whole ? h * w : oh * ow);
    if (whole) found.set(products(source, kernels[i]));
    else for (let y = 0; y < oh; y++) for (let x = 0; x < ow; x++) found[y * ow + x] = input(source, kernels[i], y, x);
    return found;
  });
  const scale = weightScale(floats(stage.weight)), largest = Math.max(...made.map(one => weightScale(one).high));
  const formula = el("div.formula", { id: "formula" }), total = el("div.total", { id: "total" });
  const rows = channels.map((c, i) => {
    const views = [mapView(map(t, c), h, w, scaleOf(t, c), { label: unitName(t, c), size: 84, quiet: true }),
      mapView(kernels[i], kh, kw, scale, { label: "weights", size: whole ? 84 : 48, quiet: true }),
      mapView(made[i], ...(whole ? [h, w] : [oh, ow]), spread([-largest, largest]),
        { label: whole ? "products" : "their sums", size: 84, quiet: true })];
    const value = el("output.part-sum"), sign = text => el("span.sign", { "aria-hidden": true }, text);
    const button = el("button.part", { onclick: () => choose(i) }, views[0].node, sign(whole ? "⊙" : "∗"),
      views[1].node, sign("="), views[2].node, value);
    return { button, views, value };
  });
  if (state.part < 0) {  // begin with the source that matters most
    const here = rows.map((_, i) => Math.abs(input(map(t, channels[i]), kernels[i], state.y, state.x)));
    state.part = here.indexOf(Math.max(...here));
  }
  const list = el("div.parts", { role: "group", "aria-label": "One source a row: map, weights, product" },
    ...rows.map(row => row.button));
  frameOf(card, s, u, el("div.middle", {}, list, formula), total, moved);
  if (whole) tick = d => choose((state.part + d + rows.length) % rows.length);
  function choose(i) {
    state.part = i;
    moved(state.y, state.x);
    if (whole && !state.timer) says(`${unitName(t, channels[i])} adds ${rows[i].value.textContent}`);
  }
  function moved(y, x) {
    const sums = rows.map((row, i) => {
      const v = input(map(t, channels[i]), kernels[i], y, x);
      if (!whole) {
        boxOn(row.views[0], ...window(y, x));
        boxOn(row.views[2], y, x);
      }
      row.value.replaceChildren(num(v));
      row.button.setAttribute("aria-pressed", i === state.part);
      return v;
    });
    const c = channels[state.part], recorded = at(s, u, y, x), all = sum(sums);
    if (whole) $("where").textContent = `source ${state.part + 1} of ${rows.length}`;
    formula.replaceChildren(...(whole ? flattened(c, sums[state.part])
      : terms(patch(map(t, c), h, w, stage, y, x, 0), kernels[state.part], c)));
    total.replaceChildren(el("p", {}, `${rows.length} sources `, num(all), " + bias ", num(bias), " = ",
      el("b", { id: "result" }, num(recorded))));
    total.dataset.computed = all + bias;
    return `${figure(all)} plus bias ${figure(bias)} gives ${figure(recorded)}`;
  }
  function flattened(c, v) {
    return [el("p", {}, `The ${kh * kw} products of ${unitName(t, c)} add up to `, num(v),
      ". Flattened, the cell (row, column) of channel c is element ",
      el("code", {}, `c · ${kh * kw} + row · ${kw} + column`), ` of the ${per * kh * kw} that each unit reads.`)];
  }
  function terms(values, weights, c) {
    const product = products(values, weights), sign = text => el("span.sign", {}, text);
    const table = (name, cells, span) => el("figure", {}, el("figcaption", {}, name),
      grid(cells, kh, kw, span, { label: name }));
    return [table(unitName(t, c), values, scaleOf(t, c)), sign("⊙"),
      table("kernel", weights, scale), sign("="), table("products", product, weightScale(product)),
      el("p", {}, "their sum ", num(sum(product)))];
  }
}
cards.conv = (card, stage, s, u) => {
  const channels = channelsOf(stage, u), [kh, kw] = stage.kernel, n = kh * kw, [h, w] = size(stage.sources[0]);
  const kernel = i => floats(stage.weight).subarray((u * channels.length + i) * n, (u * channels.length + i + 1) * n);
  parts(card, stage, s, u, { channels, kernel, window: (y, x) => inputWindow(stage, y, x),
    input: (source, weights, y, x) => {
      const [top, left] = inputWindow(stage, y, x);
      let total = 0;
      for (let i = 0; i < kh; i++) for (let j = 0; j < kw; j++) {
        const [r, c] = [top + i * stage.dilation[0], left + j * stage.dilation[1]];
        if (r >= 0 && r < h && c >= 0 && c < w) total += source[r * w + c] * weights[i * kw + j];
      }
      return total;
    } });
};
cards.linear = (card, stage, s, u) => {
  const [, channels, kh, kw] = stage.weight.shape, n = kh * kw, base = u * channels * n;
  if (n === 1) return contributions(card, stage, s, u);
  const kernel = i => floats(stage.weight).subarray(base + i * n, base + (i + 1) * n);
  parts(card, stage, s, u, { channels: Array.from({ length: channels }, (_, i) => i), kernel,
    window: () => [0, 0, kh, kw], input: (source, weights) => {
      let total = 0;
      for (let i = 0; i < n; i++) total += source[i] * weights[i];
      return total;
    } });
};
/** A linear map of a vector: the largest terms, the others together, the bias. */
function contributions(card, stage, s, u) {
  const read = stage.read ? floats(stage.read) : floats(stages[stage.sources[0]].values), n = read.length;
  const weights = floats(stage.weight).subarray(u * n, (u + 1) * n), bias = floats(stage.bias)[u];
  const terms = products(read, weights), most = Math.min(n, 12), all = sum(terms);
  const order = terms.map((_, i) => i).sort((a, b) => Math.abs(terms[b]) - Math.abs(terms[a])).slice(0, most);
  const listed = sum(order.map(i => terms[i])), top = Math.max(...order.map(i => Math.abs(terms[i]))) || 1;
  const rows = order.map(i => [`#${i}`, num(read[i]), num(weights[i]), num(terms[i]), barOf(terms[i], top)]);
  const rest = n > most ? [` + the other ${n - most} `, num(all - listed)] : [];
  card.append(el("div.middle", {},
    table(`The ${most} largest of ${n} terms`, ["input", "value", "weight", "product", ""], rows.map(row => tr(row))),
    el("div.total", { id: "total", "data-computed": all + bias }, el("p", {}, "these ", num(listed), ...rest,
      " + bias ", num(bias), " = ", el("b", { id: "result" }, num(at(s, u, 0, 0)))))));
}
/** A row whose first cell names it; numbers stand right. */
function tr(cells, attributes = {}) {
  return el("tr", attributes, ...cells.map((cell, i) => i === 0 ? el("th", { scope: "row" }, cell)
    : el(cell.className === "bar" || cell.className === "bar against" ? "td.bar-cell" : "td.number", {}, cell)));
}
function table(caption, head, rows) {
  const top = head.map((text, i) => text ? el(i ? "th.number" : "th", { scope: "col" }, text) : el("td"));
  return el("div.wide", {}, el("table", {}, caption ? el("caption", {}, caption) : null,
    el("thead", {}, el("tr", {}, ...top)), el("tbody", {}, ...rows)));
}
function barOf(value, top) {
  const bar = el("i.bar");
  bar.style.width = `${100 * Math.abs(value) / top}%`;
  if (value < 0) bar.classList.add("against");
  return bar;
}
cards.activation = (card, stage, s, u) => {
  const [t] = stage.sources, [h, w] = size(t);
  const view = mapView(map(t, u), h, w, scaleOf(t, u), { label: `${stages[t].name}, ${unitName(t, u)}`, size: 260 });
  const xs = floats(stage.curve.x), ys = floats(stage.curve.y), [low, high] = range(ys), dot = svg("circle", { r: 5,
    class: "dot s0" });
  const end = xs.at(-1), X = v => 10 + 220 * (v + end) / (2 * end), Y = v => 130 - 120 * (Math.min(high, Math.max(low,
    v)) - low) / (high - low || 1);
  const plot = svg("svg", { viewBox: "0 0 240 140", class: "chart", role: "img",
    "aria-label": `${operation(stage)} as a curve` },
    svg("path", { class: "base", d: `M10 ${Y(0)}H230M${X(0)} 10V130` }), svg("path", { class: "line s1",
      d: "M" + Array.from(xs, (x, i) => `${X(x).toFixed(1)} ${Y(ys[i]).toFixed(1)}`).join("L") }), dot);
  const total = el("div.total", { id: "total" });
  frameOf(card, s, u, el("div.middle.pair", {}, view.node, el("figure", {}, el("figcaption", {}, operation(stage)),
    plot)), total, (y, x) => {
    const [a, b] = [at(t, u, y, x), at(s, u, y, x)];
    boxOn(view, y, x);
    dot.setAttribute("cx", X(a));
    dot.setAttribute("cy", Y(b));
    total.replaceChildren(el("p", {}, stage.op === "relu" ? "max(0, " : `${operation(stage)}(`, num(a), ") = ", el("b",
      { id: "result" }, num(b))));
    if (stage.op === "relu") total.dataset.computed = Math.max(0, a);
  });
};
cards.norm = (card, stage, s, u) => {
  const [t] = stage.sources, view = mapView(map(t, u), ...size(t), scaleOf(t, u),
    { label: `${stages[t].name}, ${unitName(t, u)}`, size: 260 });
  const [mean, variance, scale, shift] = ["mean", "var", "scale", "shift"].map(key => floats(stage[key])[u]),
    total = el("div.total", { id: "total" });
  frameOf(card, s, u, el("div.middle.pair", {}, view.node), total, (y, x) => {
    const a = at(t, u, y, x);
    boxOn(view, y, x);
    total.replaceChildren(el("p", {}, "(", num(a), " − mean ", num(mean), ") ÷ √(variance ", num(variance),
      ` + ${stage.eps}) × `, num(scale), " + ", num(shift), " = ", el("b", { id: "result" }, num(at(s, u, y, x)))));
    total.dataset.computed = (a - mean) / Math.sqrt(variance + stage.eps) * scale + shift;
  });
};
cards.pool = (card, stage, s, u) => {
  const [t] = stage.sources, [h, w] = size(t), largest = stage.op === "maxpool", [kh, kw] = stage.kernel;
  const view = mapView(map(t, u), h, w, scaleOf(t, u), { label: `${stages[t].name}, ${unitName(t, u)}`, size: 260 });
  const formula = el("div.formula"), total = el("div.total", { id: "total" });
  const under = el("figure", {}, el("figcaption", {}, "Under the window"), formula);
  frameOf(card, s, u, el("div.middle.pair", {}, view.node, under),
    total, (y, x) => {
    const values = patch(map(t, u), h, w, stage, y, x, largest ? -Infinity : 0),
      made = largest ? Math.max(...values) : sum(values) / values.length;
    boxOn(view, ...inputWindow(stage, y, x));
    formula.replaceChildren(kh * kw <= 64 ? grid(values, kh, kw, scaleOf(t, u), { label: "The cells under the window",
      mark: largest ? values.indexOf(made) : -1 }) : el("p", {}, `${kh * kw} cells`));
    total.replaceChildren(el("p", {}, largest ? "the largest is " : "their mean is ", el("b", { id: "result" },
      num(at(s, u, y, x)))));
    total.dataset.computed = made;
  });
};
cards.add = (card, stage, s, u) => {
  const views = stage.sources.map(t => mapView(map(t, u), ...size(t), scaleOf(t, u),
    { label: `${stages[t].name}, ${unitName(t, u)}`, size: 200 })), total = el("div.total", { id: "total" });
  frameOf(card, s, u, el("div.middle.pair", {}, ...views.map(v => v.node)), total, (y, x) => {
    const [a, b] = stage.sources.map(t => at(t, u, y, x));
    views.forEach(v => boxOn(v, y, x));
    total.replaceChildren(el("p", {}, num(a), " + ", num(b), " = ", el("b", { id: "result" }, num(at(s, u, y, x)))));
    total.dataset.computed = a + b;
  });
};
cards.input = (card, stage, s, u) => {
  const total = el("div.total", { id: "total" }), made = stage.normalised;
  frameOf(card, s, u, el("div.middle"), total, (y, x) => {
    const v = at(s, u, y, x);
    const parts_ = made ? ["(", num(v * made.std[u] + made.mean[u]), " − ", num(made.mean[u]), ") ÷ ",
      num(made.std[u]), " = "] : ["the network reads "];
    total.replaceChildren(el("p", {}, ...parts_, el("b", { id: "result" }, num(v))), made ? el("p.note", {},
      `The pixel's ${unitName(s, u)} between ${made.range.join(" and ")}, minus a mean, divided by a spread.`) : "");
    total.dataset.computed = v;
  });
};
cards.block = (card, stage, s, u) => {
  const near = el("div.formula"), total = el("div.total", { id: "total" });
  const [h, w] = size(s), reach = Math.min(2, h - 1, w - 1);
  const from = stage.sources[0], maps = size(from)[0] * size(from)[1] > 1, k = 2 * reach + 1;
  const plain = text => el("span", {}, text);
  const inside = (stage.inside ?? []).map(part => tr([el("code", {}, part.name), plain(part.op),
    plain(part.shape?.join(" × ") ?? ""), plain(part.parameters.toLocaleString("en"))]));
  const came = el("div.chooser.came", { role: "group", "aria-label": "What goes in" },
    el("span.note", {}, `goes in: ${stages[from].name}`), ...stages[from].units.map((_, i) => el("button", {
      "aria-label": maps ? `${stages[from].name}, ${unitName(from, i)}` : null, title: unitName(from, i),
      onclick: () => go(from, i) },
    maps ? picture(from, i) : unitName(from, i))));
  const others = stage.tokens === 1 ? "One more token, of no place (the class), stands beside these cells. "
    : stage.tokens ? `${stage.tokens} more tokens, of no place (class, registers), stand beside these cells. ` : "";
  const middle = el("div.middle", {}, near,
    el("p.note", {}, `${others}This stage is shown as a whole: its channels, not its kernels.`), came,
    inside.length ? el("details.card", {}, el("summary", {}, `${stage.op}: ${inside.length} parts inside`),
      table("", ["part", "kind", "shape", "parameters"], inside)) : null);
  frameOf(card, s, u, middle, total, (y, x) => {
    const values = [];
    for (let i = 0; i < k * k; i++) {
      const [r, c] = [y - reach + Math.floor(i / k), x - reach + i % k];
      values.push(r >= 0 && r < h && c >= 0 && c < w ? at(s, u, r, c) : NaN);
    }
    const caption = stage.step > 1 ? `The cell and every ${stage.step}. around it` : "The cell and those around it";
    near.replaceChildren(h * w > 1 ? el("figure", {}, el("figcaption", {}, caption),
      grid(values, k, k, scaleOf(s, u), { label: "Values around the cell", mark: (k * k - 1) / 2 })) : "");
    total.replaceChildren(el("p", {}, "the cell holds ", el("b", { id: "result" }, num(at(s, u, y, x)))));
    total.dataset.computed = at(s, u, y, x);
  });
};
cards.softmax = (card, stage, s, u) => {
  const z = floats(stage.logits), top = Math.max(...z), e = Float64Array.from(z, v => Math.exp(v - top)), all = sum(e);
  const p = i => at(s, i, 0, 0), order = stage.units.map((_, i) => i).sort((a, b) => p(b) - p(a));
  const others = z.length - order.length, own = stage.units[u], rows = order.map(i => {
    const c = stage.units[i], chance = el("span.share", { "data-value": p(i), title: String(p(i)) }, share(p(i)));
    return tr([unitName(s, i), num(z[c]), num(z[c] - top), num(e[c], "span.n", 4), chance, barOf(p(i), 1)],
      { "aria-current": i === u ? "true" : null, "data-unit": i, onclick: () => go(s, i) });
  });
  const total = el("div.total", { id: "total" });
  let reached = order.length;
  function walk() {
    const running = sum(order.slice(0, reached).map(i => e[stage.units[i]])), end = reached === order.length;
    rows.forEach((row, i) => row.classList.toggle("ahead", i >= reached));
    $("where").textContent = `${reached} of ${order.length} terms`;
    const rest = end && others ? [` + the other ${others} classes `, num(all - running, "span.n", 4)] : [];
    total.replaceChildren(el("p", {}, `sum of ${reached} term${reached === 1 ? "" : "s"} `, num(running, "span.n", 4),
      ...rest),
      el("p", {}, `${unitName(s, u)}: `, num(e[own], "span.n", 4), " ÷ ", num(end ? all : running, "span.n", 4), " = ",
        el("b", { id: "result" }, num(end ? p(u) : e[own] / running, "span.n", 4)), end ? "" : " so far"));
    total.dataset.computed = e[own] / all;
    if (!state.timer) says(`${reached} terms, their sum ${figure(running, 4)}`);
  }
  tick = d => {
    reached = (reached + d + order.length) % order.length || order.length;
    walk();
  };
  card.append(el("div.middle", {}, stepper("terms"), table("From scores to shares",
    ["class", "score z", "z − largest", "e to that", "÷ their sum", ""], rows), total));
  walk();
};
cards.answer = (card, stage, s, u) => {
  const z = floats(stage.logits)[stage.units[u]];
  card.append(el("div.middle", {}, el("div.total", { id: "total", "data-computed": 1 / (1 + Math.exp(-z)) }, el("p", {},
    "1 ÷ (1 + e to the ", num(-z), ") = ", el("b", { id: "result" }, num(at(s, u, 0, 0), "span.n", 4))))));
};

// --- start ---
addEventListener("hashchange", show);
document.addEventListener("keydown", keys);
addEventListener("resize", () => state.stage < 0 && requestAnimationFrame(drawLinks));
narrow.addEventListener("change", () => draw([state.stage, state.unit]));
$("walk").hidden = false;
$("table").open = false;
show();
