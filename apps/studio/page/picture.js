// The waveform and the spectrogram of a clip, drawn as its samples come, with a line where it is played.
const WINDOW = 256;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// In-place radix-2 transform; re and im have a power of two of elements.
function transform(re, im) {
  const n = re.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) { [re[i], re[j]] = [re[j], re[i]]; [im[i], im[j]] = [im[j], im[i]]; }
  }
  for (let half = 1; half < n; half *= 2) {
    for (let k = 0; k < half; k++) {
      const c = Math.cos(Math.PI * k / half), s = -Math.sin(Math.PI * k / half);
      for (let i = k; i < n; i += 2 * half) {
        const j = i + half, x = re[j] * c - im[j] * s, y = re[j] * s + im[j] * c;
        re[j] = re[i] - x; im[j] = im[i] - y; re[i] += x; im[i] += y;
      }
    }
  }
}

// Dark violet over green to yellow, by eye close to the maps of plotting libraries.
function heat(v) {
  const stops = [[13, 8, 60], [60, 60, 140], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const x = Math.min(0.999, Math.max(0, v)) * (stops.length - 1), i = Math.floor(x), f = x - i;
  return stops[i].map((a, k) => Math.round(a + f * (stops[i + 1][k] - a)));
}

export class Picture {
  constructor(waveform, spectrogram) {
    this.wave = waveform;
    this.spec = spectrogram;
    this.samples = new Float32Array(0);
    this.made = this.played = this.drawnColumns = 0;
    this.pending = false;
  }

  start(rate, seconds) {
    this.samples = new Float32Array(Math.max(1, Math.round(rate * seconds)));
    this.made = this.played = this.drawnColumns = 0;
    const context = this.spec.getContext("2d");
    context.fillStyle = "rgb(13 8 60)";
    context.fillRect(0, 0, this.spec.width, this.spec.height);
    this.redraw();
  }

  add(chunk) {
    this.samples.set(chunk.subarray(0, this.samples.length - this.made), this.made);
    this.made = Math.min(this.samples.length, this.made + chunk.length);
    this.redraw();
  }

  playhead(count) {
    this.played = count;
    this.redraw();
  }

  redraw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => { this.pending = false; this.drawWave(); this.drawSpectrogram(); });
  }

  drawWave() {
    const { width, height } = this.wave, context = this.wave.getContext("2d"), total = this.samples.length;
    context.fillStyle = colour("--panel");
    context.fillRect(0, 0, width, height);
    context.fillStyle = colour("--accent");
    for (let x = 0; x < width; x++) {
      const from = Math.floor(x * total / width), to = Math.min(this.made, Math.max(from + 1, Math.floor((x + 1) * total / width)));
      if (from >= this.made) break;
      let low = 1, high = -1;
      for (let i = from; i < to; i++) { low = Math.min(low, this.samples[i]); high = Math.max(high, this.samples[i]); }
      context.fillRect(x, (1 - high) / 2 * height, 1, Math.max(1, (high - low) / 2 * height));
    }
    context.fillStyle = colour("--play");
    context.fillRect(Math.round(this.played / total * width), 0, 2, height);
  }

  drawSpectrogram() {
    const { width, height } = this.spec, context = this.spec.getContext("2d"), total = this.samples.length;
    for (; this.drawnColumns < width; this.drawnColumns++) {
      const centre = Math.floor((this.drawnColumns + 0.5) * total / width), from = Math.max(0, centre - WINDOW / 2);
      if (from + WINDOW > this.made && !(this.made === total && from < total)) break;
      const re = new Float32Array(WINDOW), im = new Float32Array(WINDOW);
      for (let i = 0; i < WINDOW && from + i < total; i++) re[i] = this.samples[from + i] * (0.5 - 0.5 * Math.cos(2 * Math.PI * i / WINDOW));
      transform(re, im);
      const column = context.createImageData(1, height);
      for (let y = 0; y < height; y++) {
        const bin = Math.floor((height - 1 - y) / height * WINDOW / 2);
        const decibel = 10 * Math.log10(re[bin] ** 2 + im[bin] ** 2 + 1e-9);
        column.data.set([...heat((decibel + 45) / 75), 255], 4 * y);
      }
      context.putImageData(column, this.drawnColumns, 0);
    }
  }
}
