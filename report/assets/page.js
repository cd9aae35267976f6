"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

// --- small helpers ---------------------------------------------------------------------------

function element(parent, name, attributes = {}, text = "") {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  parent.append(made);
  return made;
}

function shape(parent, name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  parent.append(made);
  return made;
}

/** The options of a <select>, keeping the choice where it is still there. */
function fill(select, names, wanted) {
  const before = select.value;
  select.replaceChildren();
  for (const name of names) element(select, "option", { value: name }, name);
  const choice = [before, wanted].find((name) => names.includes(name));
  if (choice !== undefined) select.value = choice;
}

/** Radio buttons in a <fieldset>; `chosen` is called with the value of the new one. */
function radios(fieldset, values, start, chosen) {
  for (const label of fieldset.querySelectorAll("label")) label.remove();
  for (const value of values) {
    const label = element(fieldset, "label");
    const input = element(label, "input", { type: "radio", name: fieldset.id, value });
    input.checked = value === start;
    input.addEventListener("change", () => chosen(value));
    label.append(value);
  }
}

function hide(section) {
  byId(section).hidden = true;
  document.querySelector(`nav a[href="#${section}"]`).hidden = true;
}

function showScores(box, scores, metrics) {
  box.replaceChildren();
  for (const metric of metrics) {
    const value = scores[metric.key];
    if (value) element(box, "b", { "data-metric": metric.key }, `${metric.name} ${value[2]}`);
  }
}

/** The pictures of one row of a contact sheet, each a window onto the sheet. */
function showPictures(box, pictures, steps, row) {
  box.replaceChildren();
  const sheet = pictures?.sheets[steps];
  const index = sheet ? sheet.rows.indexOf(row) : -1;
  if (index < 0) {
    element(box, "p", { class: "note" }, "No pictures are stored for this one.");
    return;
  }
  const count = pictures.count;
  const least = pictures.width <= 64 ? "2.6rem" : "7rem";
  box.style.gridTemplateColumns = `repeat(auto-fill, minmax(${least}, 1fr))`;
  // Left of the pictures and above them the sheet has words.
  const { width, height, left = 0, top = 0 } = pictures;
  const [wide, high] = [left + count * width, top + sheet.rows.length * height];
  const place = (start, size, whole) => (whole > size ? (100 * start) / (whole - size) : 0);
  for (let i = 0; i < count; i++) {
    const title = pictures.titles ? pictures.titles[i] : `sample ${i}`;
    const figure = element(box, "figure");
    const picture = element(figure, "div", { role: "img", "aria-label": `${title}, ${row}` });
    picture.style.aspectRatio = `${pictures.width} / ${pictures.height}`;
    picture.style.backgroundImage = `url(${sheet.image})`;
    picture.style.backgroundSize = `${(100 * wide) / width}% ${(100 * high) / height}%`;
    const [x, y] = [place(left + i * width, width, wide), place(top + index * height, height, high)];
    picture.style.backgroundPosition = `${x}% ${y}%`;
    if (pictures.width > 64) element(figure, "figcaption", {}, title);
  }
}

// --- charts ------------------------------------------------------------------------------------

/** "Nice" ticks within [low, high]. */
function ticksOf(low, high, log) {
  if (log) {
    const ticks = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
      for (const m of [1, 2, 5]) ticks.push(m * 10 ** e);
    return ticks.filter((t) => t >= low && t <= high);
  }
  const raw = (high - low) / 5 || 1;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * [1, 2, 5, 10].find((m) => m * unit >= raw);
  const ticks = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step / 1e6; t += step) ticks.push(t);
  return ticks;
}

const short = (value) => String(Number(value.toPrecision(4)));

function scale(low, high, from, to, log) {
  const f = log ? Math.log : (v) => v;
  const span = f(high) - f(low) || 1;
  return (v) => from + ((f(v) - f(low)) / span) * (to - from);
}

/** Range of all points and their intervals, with some room. */
function rangeOf(series, log) {
  const values = series.flatMap((s) => s.points.flatMap(([, y, half]) => [y - (half || 0), y + (half || 0), y]));
  const usable = log ? values.filter((v) => v > 0) : values;
  let [low, high] = [Math.min(...usable), Math.max(...usable)];
  if (log) {
    const least = Math.min(...series.flatMap((s) => s.points.map(([, y]) => y)).filter((y) => y > 0));
    low = Math.max(low, least / 2);  // an interval that reaches to 0 has no place on this axis
    return [low / 1.1, high * 1.1];
  }
  const room = (high - low) * 0.05 || 0.5;
  return [low - room, high + room];
}

/**
 * Lines with bands. `series` are {name, colour, points: [[x, y, half width]], axis: 0|1, dashed, best}.
 * `options` are {label, x: {label, ticks, log, range}, axes: [{label, log}], here, shaded}.
 */
function draw(box, series, options) {
  box.replaceChildren();
  const known = series.filter((s) => s.points.length);
  const width = Math.max(280, Math.min(960, box.clientWidth));
  const height = Math.max(260, width / 2.1);
  const axes = options.axes;
  const inner = { left: 56, right: width - (axes.length > 1 ? 56 : 18), top: 14, bottom: height - 44 };
  const svg = shape(box, "svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": options.label });
  if (!known.length) {
    shape(svg, "text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "nothing is chosen");
    return;
  }
  const xs = known.flatMap((s) => s.points.map(([x]) => x));
  const [left, right] = options.x.range || [Math.min(...xs), Math.max(...xs)];
  const x = scale(left, right, inner.left, inner.right, options.x.log);
  if (options.shaded) {
    const [from, to] = options.shaded.map(x);
    shape(svg, "rect", { class: "range", x: from, y: inner.top, width: to - from, height: inner.bottom - inner.top });
  }
  for (const tick of options.x.ticks || ticksOf(left, right, options.x.log)) {
    shape(svg, "line", { class: "grid", x1: x(tick), x2: x(tick), y1: inner.top, y2: inner.bottom });
    shape(svg, "text", { class: "axis", x: x(tick), y: inner.bottom + 16, "text-anchor": "middle" }, short(tick));
  }
  shape(svg, "text", { class: "axis", x: (inner.left + inner.right) / 2, y: height - 8, "text-anchor": "middle" }, options.x.label);
  axes.forEach((axis, side) => {
    const mine = known.filter((s) => (s.axis || 0) === side);
    if (!mine.length) return;
    const log = axis.log && mine.some((s) => s.points.some(([, y]) => y > 0));
    const [low, high] = rangeOf(mine, log);
    const y = scale(low, high, inner.bottom, inner.top, log);
    const floor = (v) => y(log ? Math.max(v, low) : v);
    for (const tick of ticksOf(low, high, log)) {
      if (side === 0) shape(svg, "line", { class: "grid", x1: inner.left, x2: inner.right, y1: y(tick), y2: y(tick) });
      const at = side === 0 ? { x: inner.left - 6, "text-anchor": "end" } : { x: inner.right + 6 };
      shape(svg, "text", { class: "axis", ...at, y: y(tick) + 4 }, short(tick));
    }
    const middle = (inner.top + inner.bottom) / 2;
    const at = side === 0 ? 14 : width - 8;
    shape(svg, "text", { class: "axis", "text-anchor": "middle", transform: `translate(${at} ${middle}) rotate(-90)` }, axis.label);
    for (const one of mine) {
      const group = shape(svg, "g", { style: `color: var(--c${one.colour})` });
      const points = one.points.filter(([, v]) => !log || v > 0);
      const banded = points.filter(([, , half]) => half);
      if (banded.length > 1) {
        const up = banded.map(([a, b, half]) => `${x(a)},${y(b + half)}`);
        const down = banded.map(([a, b, half]) => `${x(a)},${floor(b - half)}`).reverse();
        shape(group, "polygon", { class: "band", points: [...up, ...down].join(" ") });
      }
      const line = points.map(([a, b]) => `${x(a)},${y(b)}`).join(" ");
      shape(group, "polyline", { class: "line", points: line, ...(one.dashed && { "stroke-dasharray": "5 4" }) });
      for (const [a, b, , text] of points) {
        const dot = shape(group, "circle", { class: "dot", cx: x(a), cy: y(b), r: 3 });
        shape(dot, "title", {}, `${one.name}, ${short(a)}: ${text || short(b)}`);
      }
      if (one.best) {
        const best = points.reduce((p, q) => (q[1] < p[1] ? q : p));
        shape(group, "circle", { class: "best", cx: x(best[0]), cy: y(best[1]), r: 7 });
      }
    }
  });
  if (options.here !== undefined)
    shape(svg, "line", { class: "here", x1: x(options.here), x2: x(options.here), y1: inner.top, y2: inner.bottom });
  if (options.names) {
    const names = element(box, "p", { class: "note" });
    for (const one of known) {
      const name = element(names, "span", { style: `color: var(--c${one.colour}); margin-right: 1.2rem; white-space: nowrap` });
      name.append(`${one.dashed ? "- -" : "—"} ${one.name}`);
    }
  }
}

// --- figure 4 ----------------------------------------------------------------------------------

function figureFour() {
  if (!data.ablations.length) return hide("cutoff");
  const select = byId("cutoff-data");
  const slider = byId("cutoff-slider");
  fill(select, data.ablations.map((a) => a.name));
  select.closest("label").hidden = data.ablations.length < 2;
  let steps;
  const current = () => data.ablations.find((a) => a.name === select.value);

  function show() {
    const ablation = current();
    const panel = ablation.panels[steps];
    const index = Math.min(Number(slider.value), panel.cutoffs.length - 1);
    const cutoff = panel.cutoffs[index];
    const what = { 0: " (Skipped-Step)", 1000: " (DDIM)" }[cutoff] || "";
    byId("cutoff-value").textContent = `${cutoff}${what}`;
    slider.setAttribute("aria-valuetext", `cutoff ${cutoff}${what}`);
    showScores(byId("cutoff-scores"), panel.scores[index], ablation.metrics);
    showPictures(byId("cutoff-pictures"), ablation.pictures, steps, panel.rows[index]);
    const drawn = ["fid", "is"].map((key) => ablation.metrics.find((m) => m.key === key)).filter(Boolean);
    const series = drawn.map((metric, side) => ({
      name: metric.title, colour: side ? 0 : 1, axis: side,
      points: panel.cutoffs.map((c, i) => [c, ...(panel.scores[i][metric.key] || [])]).filter((p) => p.length > 1),
    }));
    draw(byId("cutoff-chart"), series, {
      label: `${drawn.map((m) => m.name).join(" and ")} against the cutoff at ${steps} steps`,
      x: { label: "cutoff (0: Skipped-Step, 1000: DDIM)", range: [0, 1000] },
      axes: drawn.map((m) => ({ label: m.title })), here: cutoff, shaded: [100, 400], names: true,
    });
    byId("cutoff-note").textContent = `${steps} steps, N = ${panel.n}. Shaded: the range that the paper calls best. ${ablation.protocol}`;
  }

  function change() {
    const all = Object.keys(current().panels);
    if (!all.includes(steps)) steps = all[0];
    radios(byId("cutoff-steps"), all, steps, (value) => { steps = value; limit(); });
    limit();
  }

  function limit() {
    const cutoffs = current().panels[steps].cutoffs;
    slider.max = cutoffs.length - 1;
    show();
  }

  slider.addEventListener("input", show);
  select.addEventListener("change", change);
  change();
  slider.value = Math.max(0, current().panels[steps].cutoffs.indexOf(291));
  show();
  return show;
}

// --- quality against network calls -------------------------------------------------------------

function quality() {
  if (!data.curves.length) return hide("quality");
  const select = byId("quality-data");
  const metric = byId("quality-metric");
  const legend = byId("quality-legend");
  const drawn = {};  // by sampler, kept from one set of results to the next
  fill(select, data.curves.map((c) => c.name));
  const current = () => data.curves.find((c) => c.name === select.value);

  function change() {
    const curves = current();
    fill(metric, curves.metrics.map((m) => m.name), "FID");
    for (const label of legend.querySelectorAll("label")) label.remove();
    curves.samplers.forEach((sampler, i) => {
      drawn[sampler.name] ??= sampler.drawn;
      const label = element(legend, "label");
      const input = element(label, "input", { type: "checkbox" });
      input.checked = drawn[sampler.name];
      input.addEventListener("change", () => { drawn[sampler.name] = input.checked; show(); });
      element(label, "span", { class: "swatch", style: `color: var(--c${i % 12})` });
      label.append(sampler.name);
    });
    show();
  }

  function show() {
    const curves = current();
    const chosen = curves.metrics.find((m) => m.name === metric.value);
    const series = curves.samplers.map((sampler, i) => ({
      name: sampler.name, colour: i % 12,
      points: drawn[sampler.name]
        ? sampler.points.filter((p) => p.scores[chosen.key]).map((p) => [p.nfe, ...p.scores[chosen.key]])
        : [],
    }));
    const floor = Object.entries(curves.floor).filter(([, s]) => s[chosen.key]);
    if (series.some((s) => s.points.length))
      series.push({ name: "real", colour: 6, dashed: true, points: floor.map(([s, v]) => [Number(s), v[chosen.key][0], 0, v[chosen.key][2]]) });
    const ticks = [...new Set(curves.samplers.flatMap((s) => s.points.map((p) => p.steps)))].sort((a, b) => a - b);
    draw(byId("quality-chart"), series, {
      label: `${chosen.title} against network calls`,
      x: { label: "network calls", ticks, log: true, range: [ticks[0], ticks[ticks.length - 1]] },
      axes: [{ label: chosen.title, log: ["fid", "sfid"].includes(chosen.key) }],
    });
    byId("quality-note").textContent = `${curves.protocol} ${curves.verdicts[chosen.key]}`;
  }

  select.addEventListener("change", change);
  metric.addEventListener("change", show);
  change();
  return show;
}

// --- side by side ------------------------------------------------------------------------------

function sideBySide() {
  const pictured = data.curves.filter((c) => c.pictures);
  if (!pictured.length) return hide("side");
  const select = byId("side-data");
  const steps = byId("side-steps");
  fill(select, pictured.map((c) => c.name));

  function change() {
    const curves = pictured.find((c) => c.name === select.value);
    const counts = Object.keys(curves.pictures.sheets);
    fill(steps, counts, counts[0]);
    const rows = curves.pictures.sheets[steps.value].rows;
    for (const [side, wanted] of [["left", "Mix"], ["right", "DDIM"]]) {
      const sampler = byId(`side-${side}`);
      fill(sampler, rows, wanted);
      const point = curves.samplers.find((s) => s.name === sampler.value)?.points.find((p) => String(p.steps) === steps.value);
      showScores(byId(`side-${side}-scores`), point ? point.scores : {}, curves.metrics.filter((m) => ["fid", "is"].includes(m.key)));
      showPictures(byId(`side-${side}-pictures`), curves.pictures, steps.value, sampler.value);
    }
  }

  for (const id of ["side-data", "side-steps", "side-left", "side-right"]) byId(id).addEventListener("change", change);
  change();
}

// --- undertrained networks ---------------------------------------------------------------------

function dial() {
  if (!data.dials.length) return hide("dial");
  const all = [...new Set(data.dials.map((d) => String(d.steps)))];
  let steps = all[all.length - 1];

  function show() {
    const mine = data.dials.filter((d) => String(d.steps) === steps);
    const series = mine.map((d, i) => ({
      name: d.checkpoint, colour: i, best: true,
      points: [...d.points].sort((a, b) => a.cutoff - b.cutoff).map((p) => [p.cutoff, ...p.scores.fid]),
    }));
    draw(byId("dial-chart"), series, {
      label: `FID against Mix's cutoff at ${steps} steps for networks of different error`,
      x: { label: "cutoff (0: Skipped-Step, 1000: DDIM)", range: [0, 1000] },
      axes: [{ label: "FID, lower is better", log: true }], names: true,
    });
  }

  radios(byId("dial-steps"), all, steps, (value) => { steps = value; show(); });
  show();
  return show;
}

// --- sorting -----------------------------------------------------------------------------------

function sortBy(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const down = heads[column].getAttribute("aria-sort") === "ascending";
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = table.tBodies[0];
  const key = (row) => row.cells[column].dataset.value;
  const numeric = [...body.rows].some((row) => key(row) !== undefined);
  const rows = [...body.rows].sort((a, b) => {
    if (!numeric) return (down ? -1 : 1) * a.cells[column].textContent.localeCompare(b.cells[column].textContent);
    const [p, q] = [key(a), key(b)];
    if (p === undefined || q === undefined) return (p === undefined) - (q === undefined);  // absent ones last
    return (down ? -1 : 1) * (Number(p) - Number(q));
  });
  body.append(...rows);
}

for (const table of document.querySelectorAll("table"))
  [...table.tHead.rows[0].cells].forEach((head, column) =>
    head.querySelector("button").addEventListener("click", () => sortBy(table, column)));

const redraw = [figureFour(), quality(), dial()];
sideBySide();
let drawnAt = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth === drawnAt) return;
  drawnAt = window.innerWidth;
  for (const show of redraw) show?.();
});
