// A sampler is a table of numbers, the plan, and this loop: sampling/plan.py and sampling/run.py.

/** Mix is a splice: the rows of `head` while t >= cutoff, then those of `tail`. */
export function splice(head, tail, cutoff, name) {
  const above = head.rows.filter((row) => row.t >= cutoff);
  const below = tail.rows.filter((row) => row.t < cutoff);
  return { ...(above.length ? head : tail), name, rows: [...above, ...below] };
}

/** Whether a row calls the network: all that go down do, and those that want what it says. */
export const calls = (row) => row.s < row.t || row.x0[0] !== 0;

/** Run a plan: the state {row, x, x0} after every row.  `denoise(x, row, k)` gives {x0, v}. */
export async function* iterate(plan, denoise, noise) {
  let x = noise.start().map((value) => value * plan.start);
  const before = []; // what the network said in the rows before, newest first
  for (const [k, row] of plan.rows.entries()) {
    const now = calls(row) ? await denoise(x, row, k) : null;
    const z = row.noise ? noise.at(row.t, visits(plan.rows, k)) : null;
    const next = advance(row, x, now, before, z);
    if (now) before.unshift({ x0: now.x0, eps: x.map((value, i) => (value - row.alpha * now.x0[i]) / row.sigma) });
    x = next;
    yield { row, x, x0: now?.x0 ?? null };
  }
}

/** x_s = x * x_t + sum_j x0[j] * x0_(k-j) + sum_j eps[j] * eps_(k-j) + noise * z */
function advance(row, x, now, before, z) {
  return x.map((value, i) => {
    let next = row.x * value + (now ? row.x0[0] * now.x0[i] : 0);
    for (let j = 1; j < row.x0.length; j++) next += row.x0[j] * before[j - 1].x0[i];
    for (let j = 1; j < row.eps.length; j++) next += row.eps[j] * before[j - 1].eps[i];
    return z ? next + deviation(row, now?.v, i) * z[i] : next;
  });
}

/** How much noise: a number, or where the network has learnt it, between two by its v, pixel by pixel. */
function deviation(row, v, i) {
  const learned = Number.isFinite(row.noise_high);
  return learned ? row.noise * (row.noise_high / row.noise) ** ((v[i] + 1) / 2) : row.noise;
}

/** The clean image that the network's eps implies at x_t = alpha x0 + sigma eps, limited to [-1, 1]. */
export function impliedX0(row, x, eps) {
  const scale = row.eps_scale ?? 1;
  return x.map((value, i) => {
    const x0 = (value - row.sigma * (eps[i] / scale)) / row.alpha;
    return Math.min(1, Math.max(-1, x0));
  });
}

/** How often rows before went up past this t: every noise of a plan is another one. */
function visits(rows, k) {
  const ups = rows.slice(0, k).filter((row) => row.noise && row.s >= row.t);
  return ups.filter((row) => row.t <= rows[k].t && rows[k].t <= row.s).length;
}
