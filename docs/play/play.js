// The page: what is chosen, what the worker says, and the tables beside it.
import { SampleNoise, sampleLabel } from "./noise.js";
import { calls, splice } from "./sampler.js";

const byId = (id) => document.getElementById(id);
const COUNT = 16;
const CLASSES = 10;
const ACROSS = 4; // digits in a row of the mosaic
const SIDE = 28;
const SIZE = SIDE * SIDE;
const YOURS = "yours"; // the sampler that is a file of the visitor's

const index = await read("play.json").catch((error) => {
  complain(`This folder is not built (${error.message}): run make play, and open build/play through a server.`);
  throw error;
});
const samplers = index.samplers;
const files = new Map(); // name -> the promise of a stored plan
const sides = ["left", "right"].map(sideOf);
let worker = null;
let run = 0; // the newest
let labels = [];
let loaded = 0; // bytes
let ready = false; // whether the network is there
let shown = 0; // the row that is looked at; 0 is the noise before the first
let timer = null; // of the replay

// --- small helpers -----------------------------------------------------------------------------

function element(parent, name, attributes = {}, text = "") {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  parent.append(made);
  return made;
}

/** The line and the marker by which a sampler is known in every figure. */
function sign(parent, { dash, mark }) {
  const made = byId("sign").content.cloneNode(true);
  const [line, marker] = made.querySelectorAll("path");
  line.setAttribute("stroke-dasharray", dash.map((length) => 1.5 * length).join(" "));
  marker.setAttribute("d", mark);
  parent.append(made);
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const say = (text) => (byId("status").textContent = text);
/** Of a seed: not 1e3 or 1.0, which an input of numbers lets pass. */
const whole = (text) => /^\d{1,16}$/.test(text) && Number(text) <= Number.MAX_SAFE_INTEGER;
const rowsOf = (side) => side.plan?.rows.length ?? 0;

/** A JSON file of this folder. */
async function read(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name}: the server says ${answer.status}`);
  return answer.json();
}

function complain(error) {
  byId("error").textContent = error;
  byId("error").hidden = false;
  byId("progress").hidden = true;
  say("");
}

// --- one side ----------------------------------------------------------------------------------

function sideOf(id) {
  const box = byId(id);
  const name = id === "left" ? "Left" : "Right";
  const side = { id, name, plan: null, given: null, cutoff: 291, states: [] };
  side.pick = element(box, "select", { class: "pick", "aria-label": `${name} sampler`, id: `${id}-sampler` });
  for (const [value, { title }] of Object.entries(samplers)) element(side.pick, "option", { value }, title);
  element(side.pick, "option", { value: YOURS }, "A plan of yours…");
  side.slot = element(box, "div", { class: "slot" });
  const pictures = element(box, "div", { class: "pictures" });
  side.canvases = ["x", "x0"].map((what) => {
    const figure = element(pictures, "figure");
    const frame = element(figure, "div", { class: "frame" });
    const size = { width: ACROSS * SIDE, height: ACROSS * SIDE };
    const canvas = element(frame, "canvas", { ...size, role: "img", id: `${id}-${what}` });
    return { canvas, caption: element(figure, "figcaption") };
  });
  side.pick.addEventListener("change", () => (drawSlot(side), start()));
  return side;
}

/** The nodes at which a cutoff makes a difference, from 0, noise in every row, to none at all. */
const cutoffs = (side) => [...side.head.rows.map((row) => row.t).reverse(), 1000];

/** What stands below a sampler's name: its cutoff, its file or a sentence. */
function drawSlot(side) {
  side.slot.replaceChildren();
  side.slider = null;
  const choice = samplers[side.pick.value];
  if (side.pick.value === YOURS) {
    const label = element(side.slot, "label", {}, "A file that sample.py show_plan=FILE.json writes");
    const input = element(label, "input", { type: "file", accept: ".json", id: `${side.id}-file` });
    input.addEventListener("change", () => input.files[0] && take(side, input.files[0]));
  } else if (choice.head) {
    const label = element(side.slot, "label", { for: `${side.id}-cutoff` }, "Cutoff ");
    side.said = element(label, "span");
    side.slider = element(side.slot, "input", { type: "range", min: 0, max: 1, step: 1, id: `${side.id}-cutoff` });
    side.slider.addEventListener("input", () => {
      side.cutoff = cutoffs(side)[side.slider.value];
      start();
    });
  } else {
    side.slot.textContent = choice.note;
  }
}

/** A plan of the visitor's own. */
async function take(side, file) {
  try {
    side.given = checked(JSON.parse(await file.text()));
    start();
  } catch (error) {
    complain(`${file.name} is no plan that can run here (${error.message}): write one with python sample.py show_plan=FILE.json`);
  }
}

function checked(plan) {
  if (plan?.format !== "skipped_step.plan" || plan.version !== 1) throw new Error("its format is another");
  const numbers = ["t", "s", "x", "noise", "alpha", "sigma"];
  const right = (row, k, rows) => {
    const before = rows.slice(0, k).filter(calls).length; // as far back as it may look
    const lists = [row.x0, row.eps].every((list) => list.every(Number.isFinite) && list.length <= before + 1);
    return numbers.every((key) => Number.isFinite(row[key])) && lists;
  };
  let good = false;
  try {
    good = Number.isFinite(plan.start) && typeof plan.name === "string" && plan.rows.length > 0 && plan.rows.every(right);
  } catch {} // not even lists and rows
  if (!good) throw new Error("its rows are not whole");
  if (plan.rows.at(-1).s !== -1 || plan.rows.some((row) => row.t > 999)) throw new Error("it is for another model");
  return plan;
}

/** A stored plan, which Python made. */
function stored(name, steps) {
  const path = `plans/${name}-${steps}.json`;
  const again = (error) => {
    files.delete(path); // the next time it may come
    throw error;
  };
  if (!files.has(path)) files.set(path, read(path).catch(again));
  return files.get(path);
}

/** The plan that a side asks for; null where a file is wanted and not yet there. */
async function planOf(side, steps) {
  const choice = samplers[side.pick.value];
  if (side.pick.value === YOURS) return side.given;
  if (!choice.head) return stored(side.pick.value, steps);
  const [head, tail] = await Promise.all([stored(choice.head, steps), stored(choice.tail, steps)]);
  side.head = head;
  const nodes = cutoffs(side);
  const at = nodes.findIndex((t) => t >= side.cutoff);
  const plan = splice(head, tail, nodes[at], choice.plan.replace("CUTOFF", nodes[at]));
  const end = [choice.head, ...Array(nodes.length - 2), choice.tail][at];
  const noisy = plan.rows.filter((row) => row.noise).length;
  side.slider.max = nodes.length - 1;
  side.slider.value = at;
  side.said.textContent = `t ≥ ${nodes[at]}: ${end ? samplers[end].title : `noise in ${noisy} of ${plan.rows.length} rows`}`;
  side.slider.setAttribute("aria-valuetext", side.said.textContent);
  return plan;
}

// --- sampling ------------------------------------------------------------------------------------

/** Begin anew with what is chosen now. */
async function start() {
  const mine = ++run;
  stopReplay();
  byId("error").hidden = true;
  try {
    if (!whole(byId("seed").value)) throw new Error(`The seed must be a whole number, 0 to ${Number.MAX_SAFE_INTEGER}.`);
    const steps = byId("steps").value;
    const plans = await Promise.all(sides.map((side) => planOf(side, steps)));
    if (mine !== run) return;
    remember();
    if (plans.includes(null)) return say("Choose the file of a plan.");
    const seed = byId("seed").value;
    labels = [...Array(COUNT).keys()].map((i) => labelOf(byId("digits").value, seed, i));
    const noise = new SampleNoise(seed, [...labels.keys()], SIZE).start();
    sides.forEach((side, i) => {
      side.plan = plans[i];
      side.states = [{ x: noise.map((value) => value * plans[i].start), x0: null }];
      drawTable(side);
    });
    byId("asked").textContent = `Digits asked for: ${labels.join(" ")}`;
    byId("row").max = Math.max(...sides.map(rowsOf));
    show(0);
    ask({ run: mine, plans, seed, labels });
  } catch (error) {
    if (mine === run) complain(error.message);
  }
}

function labelOf(choice, seed, i) {
  if (choice === "random") return sampleLabel(seed, i, CLASSES);
  return choice === "balanced" ? i % CLASSES : Number(choice);
}

function ask(what) {
  if (!worker) {
    worker = new Worker("worker.js", { type: "module" });
    worker.onmessage = ({ data }) => hear(data);
    worker.onerror = (event) => complain(`This browser cannot run the network (${event.message || "no module workers"}): try a newer one.`);
  }
  say("Sampling.");
  if (!ready) {
    byId("progress").hidden = false;
    say(`Loading the network and its runtime, ${megabytes(index.bytes)}.`);
  }
  worker.postMessage({ ...what, files: index.files });
}

/** What the worker says: bytes that have come, a state, the end of a run, or an error. */
function hear(data) {
  if (data.loaded) {
    loaded += data.loaded;
    byId("progress").value = loaded / index.bytes;
    if (loaded >= index.bytes) say("Preparing the network.");
    return;
  }
  if (data.run !== run) return;
  if (data.error) {
    loaded = 0;
    ready = false;
    return complain(`The network cannot run: ${data.error}. Check the connection and sample again, or try a newer browser.`);
  }
  if (!ready) say("Sampling.");
  ready = true;
  byId("progress").hidden = true;
  if (data.seconds) return ended(data);
  const side = sides[data.side];
  side.states[data.k + 1] = data;
  const done = Math.min(...sides.map(({ states }) => states.length)) - 1;
  if (done === data.k + 1 || sides.some((one) => one.states.length > rowsOf(one))) show(data.k + 1);
}

function ended({ seconds, called }) {
  const asked = sides.map((side) => side.plan.rows.filter(calls).length);
  const saved = asked[0] + asked[1] - called;
  const shared = saved ? `, ${saved} of them shared` : "";
  say(`${COUNT} digits on each side in ${seconds.toFixed(1)} s: ${asked.join(" and ")} network calls${shared}.`);
  show(Number(byId("row").max));
  document.body.dataset.done = run;
}

// --- what is seen --------------------------------------------------------------------------------

/** Draw the state after row k on both sides; 0 is the noise. */
function show(k) {
  shown = k;
  byId("row").value = k;
  byId("where").textContent = k ? `row ${k} of ${byId("row").max}` : "the first noise";
  byId("row").setAttribute("aria-valuetext", byId("where").textContent);
  for (const side of sides) {
    const at = Math.min(k, side.states.length - 1);
    const { x, x0 } = side.states[at];
    const row = at ? side.plan.rows[at - 1] : null;
    const [noisy, clean] = side.canvases;
    const where = !row ? "x, noise alone" : row.s === -1 ? "x, the sample" : `x at t = ${Number(row.s.toFixed(2))}`;
    const seen = !row ? "x̂₀: no call yet" : x0 ? `x̂₀ seen from t = ${Number(row.t.toFixed(2))}` : "x̂₀: no call in this row";
    draw(noisy, x, where, side);
    draw(clean, x0, seen, side);
    mark(side, at);
  }
}

/** [-1, 1] -> 0..255 by truncation, as the commands save it. */
function draw({ canvas, caption }, values, text, side) {
  const context = canvas.getContext("2d", { willReadFrequently: true }); // it is only ever written whole
  const image = context.createImageData(canvas.width, canvas.height);
  for (let i = 0; values && i < values.length; i++) {
    const [n, pixel] = [Math.floor(i / SIZE), i % SIZE];
    const across = (n % ACROSS) * SIDE + (pixel % SIDE);
    const down = Math.floor(n / ACROSS) * SIDE + Math.floor(pixel / SIDE);
    const grey = Math.trunc(Math.min(255, Math.max(0, (values[i] + 1) * 127.5)));
    image.data.set([grey, grey, grey, 255], 4 * (down * canvas.width + across));
  }
  context.putImageData(image, 0, 0);
  caption.textContent = text;
  canvas.setAttribute("aria-label", `${side.name}, ${side.plan.name}: ${text}. Digits ${labels.join(" ")}`);
}

function drawTable(side) {
  const box = side.table ?? element(byId("pair"), "div");
  side.table = box;
  box.replaceChildren();
  const { plan } = side;
  const title = samplers[side.pick.value]?.title ?? "Your plan";
  const heading = element(box, "h3", { id: `${side.id}-title` });
  const look = samplers[side.pick.value]?.look;
  for (const part of [box, byId(side.id)]) {
    for (const ground of ["light", "dark"]) part.style.setProperty(`--${ground}`, look?.[ground] ?? "currentcolor");
  }
  if (look) sign(heading, look);
  heading.append(`${title} `);
  element(heading, "span", {}, plan.name);
  side.scroll = element(box, "div", { class: "scroll", tabindex: 0, role: "region", "aria-labelledby": heading.id });
  const table = element(side.scroll, "table", { "aria-labelledby": heading.id });
  const past = (key) => [...Array(Math.max(...plan.rows.map((row) => row[key].length))).keys()].slice(1);
  const columns = [
    ["x", (row) => row.x],
    ["x0", (row) => row.x0[0]],
    ...past("x0").map((j) => [`x0[${j}]`, (row) => row.x0[j] ?? 0]),
    ...past("eps").map((j) => [`eps[${j}]`, (row) => row.eps[j] ?? 0]),
    ["noise", (row) => row.noise],
  ];
  const head = element(element(table, "thead"), "tr");
  for (const name of ["t", "s", ...columns.map(([name]) => name)]) element(head, "th", { scope: "col" }, name);
  const body = element(table, "tbody");
  plan.rows.forEach((row, k) => {
    const line = element(body, "tr", row.noise ? { class: "noisy" } : {});
    element(line, "th", { scope: "row" }, String(Number(row.t.toFixed(2))));
    element(line, "td", {}, row.s === -1 ? "clean" : String(Number(row.s.toFixed(2))));
    for (const [name, value] of columns) {
      const learned = name === "noise" && Number.isFinite(row.noise_high);
      const text = value(row).toFixed(3) + (learned ? `–${row.noise_high.toFixed(3)}` : "");
      element(line, "td", value(row) ? {} : { class: "zero" }, value(row) ? text : "0");
    }
    line.addEventListener("click", () => (stopReplay(), show(k + 1)));
  });
  side.lines = [...body.children];
  const saved = URL.createObjectURL(new Blob([JSON.stringify(plan)], { type: "application/json" }));
  if (side.saved) URL.revokeObjectURL(side.saved);
  side.saved = saved;
  const name = plan.name.replace(/[^a-z0-9]+/gi, "-").replace(/^-|-$/g, "");
  element(box, "a", { class: "save", href: saved, download: `${name}.json` }, "Save this plan (JSON, for sampler=plan)");
}

function mark(side, at) {
  for (const line of side.lines) line.removeAttribute("aria-current");
  const line = side.lines[at - 1];
  line?.setAttribute("aria-current", "step");
  // A long table moves inside its own box, not the page.
  side.scroll.scrollTop = line ? line.offsetTop - side.scroll.clientHeight / 2 : 0;
}

function stopReplay() {
  clearInterval(timer);
  timer = null;
  byId("replay").textContent = "Replay";
}

function replay() {
  if (timer) return stopReplay();
  const last = Number(byId("row").max);
  if (shown >= last) show(0);
  byId("replay").textContent = "Pause";
  timer = setInterval(() => (shown < last ? show(shown + 1) : stopReplay()), Math.max(60, 3000 / last));
}

// --- the address holds what is chosen ---------------------------------------------------------------

function remember() {
  const chosen = { steps: byId("steps").value, digits: byId("digits").value, seed: byId("seed").value };
  for (const side of sides) {
    chosen[side.id] = side.pick.value;
    if (side.slider) chosen[`${side.id}_cutoff`] = side.cutoff;
  }
  history.replaceState(null, "", `#${new URLSearchParams(chosen)}`);
}

function recall() {
  const said = new URLSearchParams(location.hash.slice(1));
  const choose = (select, value) => {
    if ([...select.options].some((option) => option.value === value)) select.value = value;
  };
  choose(byId("steps"), said.get("steps") ?? "10");
  choose(byId("digits"), said.get("digits") ?? "random");
  if (whole(said.get("seed"))) byId("seed").value = said.get("seed");
  sides.forEach((side, i) => {
    choose(side.pick, said.get(side.id) ?? ["mix", "ddim"][i]);
    const cutoff = Number(said.get(`${side.id}_cutoff`) ?? 291);
    side.cutoff = cutoff >= 0 && cutoff <= 1000 ? cutoff : 291;
    drawSlot(side);
  });
}

async function begin() {
  for (const steps of index.steps) element(byId("steps"), "option", { value: steps }, steps);
  for (let digit = 0; digit < CLASSES; digit++) element(byId("digits"), "option", { value: digit }, `only ${digit}`);
  byId("sizes").textContent = `Loaded once: ${megabytes(index.bytes)}; the whole folder has ${megabytes(index.all_bytes)}.`;
  for (const id of ["steps", "digits", "seed"]) byId(id).addEventListener("change", start);
  byId("controls").addEventListener("submit", (event) => (event.preventDefault(), start()));
  byId("another").addEventListener("click", () => {
    byId("seed").value = Math.floor(Math.random() * 1e6);
    start();
  });
  byId("row").addEventListener("input", () => (stopReplay(), show(Number(byId("row").value))));
  byId("replay").addEventListener("click", replay);
  byId("loop").addEventListener("toggle", async () => (byId("source").textContent = await (await fetch("sampler.js")).text()), { once: true });
  window.addEventListener("hashchange", () => (recall(), start()));
  // Where the page does not stand in the site, its neighbours are not there.
  if (!/\/play\/(index.html)?$/.test(location.pathname)) for (const link of document.querySelectorAll("a.site")) link.removeAttribute("href");
  recall();
  await start();
}

await begin().catch((error) => complain(error.message));
