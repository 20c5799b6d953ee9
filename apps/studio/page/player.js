// Plays samples in the order they come, one for one: no resampling, no gap, no repetition. Where none are left it plays
// silence, counts one under-run, and goes on once a reserve has gathered. Posts back exactly what it played.
class Player extends AudioWorkletProcessor {
  constructor(options) {
    super();
    this.chunks = [];
    this.offset = 0;
    this.waiting = 0;
    this.reserve = options.processorOptions.reserve;
    this.playing = false;
    this.ended = false;
    this.played = 0;
    this.underruns = 0;
    this.port.onmessage = ({ data }) => {
      if (data.samples) { this.chunks.push(data.samples); this.waiting += data.samples.length; }
      if (data.end) this.ended = true;
      if (data.stop) { this.chunks = []; this.waiting = 0; this.ended = true; }
    };
  }

  process(_, [[out]]) {
    if (!this.playing && (this.waiting >= this.reserve || this.ended)) this.playing = true;
    if (!this.playing) return true;
    let at = 0;
    while (at < out.length && this.chunks.length) {
      const chunk = this.chunks[0];
      const count = Math.min(out.length - at, chunk.length - this.offset);
      out.set(chunk.subarray(this.offset, this.offset + count), at);
      at += count;
      this.offset += count;
      if (this.offset === chunk.length) { this.chunks.shift(); this.offset = 0; }
    }
    this.waiting -= at;
    this.played += at;
    const finished = this.ended && !this.waiting;
    if (at < out.length && !finished) { this.underruns += 1; this.playing = false; }
    this.port.postMessage({ samples: out.slice(0, at), played: this.played, underruns: this.underruns, finished });
    return !finished;
  }
}
registerProcessor("player", Player);
