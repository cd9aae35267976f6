// Runs the network, and two plans row by row, away from the page, which stays quick.
import * as ort from "./ort.wasm.bundle.min.mjs";
import { SampleNoise } from "./noise.js";
import { impliedX0, iterate } from "./sampler.js";

const SIDE = 28;
const SIZE = SIDE * SIDE;
let network = null; // a promise of it, once it is asked for
let newest = 0; // the run that is wanted; those before end at their next row

/** A file of this folder as bytes; the page is told how many have come. */
async function fetched(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name}: the server says ${answer.status}`);
  const parts = [];
  for (const reader = answer.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    postMessage({ loaded: value.length });
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function load({ runtime, graph, weights }) {
  const files = await Promise.all([runtime, graph, weights].map(fetched));
  ort.env.wasm.numThreads = 1; // more would need headers that a plain server does not send
  ort.env.wasm.wasmBinary = files[0].buffer;
  return ort.InferenceSession.create(files[1], {
    executionProviders: ["wasm"],
    externalData: [{ path: weights, data: files[2] }],
  });
}

/** eps and v of the network, [digits * 784] each */
async function predicted(session, x, t, labels) {
  const n = labels.length;
  const { out } = await session.run({
    x: new ort.Tensor("float32", x, [n, 1, SIDE, SIDE]),
    t: new ort.Tensor("float32", new Float32Array(n).fill(t), [n]),
    y: new ort.Tensor("int64", BigInt64Array.from(labels, BigInt), [n]),
  });
  const half = (part) => {
    const values = new Float32Array(n * SIZE);
    for (let i = 0; i < n; i++) values.set(out.data.subarray((2 * i + part) * SIZE, (2 * i + part + 1) * SIZE), i * SIZE);
    return values;
  };
  return { eps: half(0), v: half(1) };
}

/** Both plans from the same noise, in turns; rows that they begin with alike call the network once. */
async function sample(session, { run, plans, seed, labels }) {
  const noise = new SampleNoise(seed, [...labels.keys()], SIZE);
  const said = new Map();
  const begun = performance.now();
  const denoiser = (plan) => async (x, row, k) => {
    const path = JSON.stringify([plan.start, plan.rows.slice(0, k), row.t]); // x is a function of it
    if (!said.has(path)) said.set(path, await predicted(session, x, row.t, labels));
    const { eps, v } = said.get(path);
    return { x0: impliedX0(row, x, eps), v };
  };
  const sides = plans.map((plan) => iterate(plan, denoiser(plan), noise));
  const going = new Set(sides.keys());
  for (let k = 0; going.size; k++) {
    for (const side of going) {
      await new Promise((resume) => setTimeout(resume)); // lets a newer run be heard of
      if (run !== newest) return;
      const { done, value } = await sides[side].next();
      if (done) going.delete(side);
      else postMessage({ run, side, k, x: value.x, x0: value.x0 });
    }
  }
  postMessage({ run, seconds: (performance.now() - begun) / 1000, called: said.size });
}

onmessage = async ({ data }) => {
  newest = data.run;
  try {
    network ??= load(data.files);
    const session = await network;
    if (data.run === newest && data.plans) await sample(session, data);
  } catch (error) {
    network = null;
    postMessage({ run: data.run, error: error.message || String(error) });
  }
};
