// The noise and the label of sample i, functions of (seed, i) alone: sampling/noise.py, number by number.
// NumPy's Philox (Salmon et al. 2011) gives 64 random bits at a time, its ziggurat (Marsaglia & Tsang
// 2000) makes normal numbers of 32 of them.

const BITS = (1n << 64n) - 1n;
const MULTIPLIERS = [0xd2e7470ee14c6c93n, 0xca5a826395121157n];
const KEY_STEPS = [0x9e3779b97f4a7c15n, 0xbb67ae8584caa73bn];
const LABEL = [0n, 0n, BITS];

/** Ten rounds of Philox 4x64: a counter of four words -> four random words. */
function philox([c0, c1, c2, c3], [k0, k1]) {
  for (let round = 0; round < 10; round++) {
    const a = MULTIPLIERS[0] * c0;
    const b = MULTIPLIERS[1] * c2;
    [c0, c1, c2, c3] = [(b >> 64n) ^ c1 ^ k0, b & BITS, (a >> 64n) ^ c3 ^ k1, a & BITS];
    k0 = (k0 + KEY_STEPS[0]) & BITS;
    k1 = (k1 + KEY_STEPS[1]) & BITS;
  }
  return [c0, c1, c2, c3];
}

/** A function that gives the next 32 bits of one stream of sample (seed, i); low halves come first. */
function bitsOf(seed, i, stream) {
  const key = [BigInt(seed), BigInt(i)];
  const words = new BigUint64Array(4);
  const halves = new DataView(words.buffer);
  let counter = 0n;
  let used = 8;
  return () => {
    if (used === 8) {
      counter += 1n;
      philox([counter, ...stream], key).forEach((word, j) => halves.setBigUint64(8 * j, word, true));
      used = 0;
    }
    return halves.getUint32(4 * used++, true);
  };
}

// --- normal numbers ----------------------------------------------------------------------------

const f32 = Math.fround;
const density = (x) => Math.exp((-x * x) / 2);
const TAIL = 3.6541528853610088; // where the lowest of 256 layers begins
const AREA = 0.00492867323399141; // of every layer

/** Of every layer: its width, the share of it that is under the next one, and its density. */
function layers() {
  const x = new Float64Array(256);
  x[255] = TAIL;
  for (let i = 254; i > 0; i--) x[i] = Math.sqrt(-2 * Math.log(AREA / x[i + 1] + density(x[i + 1])));
  const wide = Float64Array.from(x);
  wide[0] = AREA / density(TAIL); // the lowest one, the tail and all
  const inside = wide.map((width, i) => (i === 1 ? 0 : (i === 0 ? TAIL : x[i - 1]) / width));
  return {
    scale: Float32Array.from(wide, (width) => width / 2 ** 23),
    inside: Uint32Array.from(inside, (share) => Math.floor(share * 2 ** 23)),
    density: Float32Array.from(x, density),
  };
}

const LAYERS = layers();

/** The next standard normal number, in float32 as NumPy draws it. */
function normal(bits) {
  const uniform = () => f32((bits() >>> 8) / 2 ** 24);
  for (;;) {
    const drawn = bits();
    const layer = drawn & 0xff;
    const sign = (drawn >>> 8) & 1 ? -1 : 1;
    const place = drawn >>> 9;
    const x = f32(place * LAYERS.scale[layer]);
    if (place < LAYERS.inside[layer]) return sign * x;
    if (layer === 0) {
      for (;;) {
        const beyond = f32(-f32(1 / TAIL) * f32(Math.log1p(-uniform())));
        const room = f32(-Math.log1p(-uniform()));
        if (f32(room + room) > f32(beyond * beyond)) return ((place >>> 8) & 1 ? -1 : 1) * f32(f32(TAIL) + beyond);
      }
    }
    const low = LAYERS.density[layer];
    const height = f32(LAYERS.density[layer - 1] - low);
    if (f32(f32(height * uniform()) + low) < density(x)) return sign * x;
  }
}

/** The noise of the samples `ids`, `size` numbers each, one after the other. */
export class SampleNoise {
  constructor(seed, ids, size) {
    Object.assign(this, { seed, ids, size, drawn: new Map() });
  }

  /** x_T, normal numbers */
  start() {
    return this.stream([0n, 0n, 0n]);
  }

  /** z of a row at t, be it an integer or not; `visit` as in sampling/plan.py */
  at(t, visit) {
    if (Number.isInteger(t)) return this.stream([0n, BigInt(visit), BigInt(t) + 1n]);
    return this.stream([1n, BigInt(visit), new BigUint64Array(Float64Array.of(t).buffer)[0]]);
  }

  /** Drawn once: the samplers on both sides see the same. */
  stream(stream) {
    const name = stream.join();
    if (!this.drawn.has(name)) {
      const out = new Float32Array(this.ids.length * this.size);
      this.ids.forEach((i, n) => {
        const bits = bitsOf(this.seed, i, stream);
        for (let k = n * this.size; k < (n + 1) * this.size; k++) out[k] = normal(bits);
      });
      this.drawn.set(name, out);
    }
    return this.drawn.get(name);
  }
}

/** The class of sample i, one of `count`, as the commands draw it without label=... */
export function sampleLabel(seed, i, count) {
  const bits = bitsOf(seed, i, LABEL);
  for (;;) {
    const drawn = BigInt(bits()) * BigInt(count); // its upper half is as good as even
    if ((drawn & 0xffffffffn) >= 2n ** 32n % BigInt(count)) return Number(drawn >> 32n);
  }
}
