import { Picture } from "./picture.js";

const $ = (id) => document.getElementById(id);
const RESERVE_SECONDS = 0.25;
const picture = new Picture($("waveform"), $("spectrogram"));
const state = { models: [], run: null, prompt: null };
window.studio = state; // for the curious, and for tests

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

async function loadModels() {
  const answer = await (await fetch("api/models")).json();
  state.models = answer.models;
  if (!answer.models.length) {
    say(answer.status, answer.status.includes("could not"));
    setTimeout(loadModels, 1000);
    return;
  }
  $("model").replaceChildren(...answer.models.map((m, i) => new Option(
    `${m.name} (${m.sample_rate} Hz, ${(m.parameters / 1e6).toFixed(2)}M)`, i)));
  showLabels();
  $("go").disabled = false;
  say("Ready");
}

function showLabels() {
  const kinds = state.models[$("model").value]?.labels ?? [];
  $("labels").replaceChildren(...kinds.map((names, i) => {
    const label = document.createElement("label");
    const select = document.createElement("select");
    select.id = `label-${i}`;
    select.append(new Option("any", ""), ...names.map((name) => new Option(name, name)));
    select.selectedIndex = 1;
    label.append(kinds.length > 1 ? `Label ${i + 1} ` : "Label ", select);
    return label;
  }));
}

function request() {
  const labels = [...$("labels").querySelectorAll("select")].map((s) => s.value || null);
  return {
    model: Number($("model").value), seed: Number($("seed").value), seconds: Number($("seconds").value),
    temperature: Number($("temperature").value), top_p: Number($("top_p").value), label: labels, prompt: state.prompt,
  };
}

async function generate(wanted) {
  await halt();
  const rate = state.models[wanted.model].sample_rate;
  const run = { wanted, made: 0, playedSamples: [], playedCount: 0, underruns: 0, pressed: performance.now(), stopped: false };
  state.run = run;
  $("stop").disabled = false;
  for (const id of ["speed", "latency", "bits"]) $(id).textContent = "–";
  picture.start(rate, wanted.seconds);
  run.context = new AudioContext({ sampleRate: rate });
  await run.context.audioWorklet.addModule("player.js");
  run.node = new AudioWorkletNode(run.context, "player", {
    numberOfInputs: 0, outputChannelCount: [1], processorOptions: { reserve: Math.round(RESERVE_SECONDS * rate) } });
  run.node.connect(run.context.destination);
  run.node.port.onmessage = ({ data }) => heard(run, data, rate);
  await run.context.resume();
  if (run.stopped) return;
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  run.socket = new WebSocket(`${scheme}//${location.host}/api/generate`);
  run.socket.binaryType = "arraybuffer";
  run.socket.onopen = () => run.socket.send(JSON.stringify(wanted));
  run.socket.onmessage = ({ data }) => data instanceof ArrayBuffer ? more(run, new Float32Array(data), rate) : told(run, JSON.parse(data));
  run.socket.onclose = () => { if (!run.info && !run.stopped) finish(run, "The connection was lost", true); };
}

function more(run, samples, rate) {
  if (state.run !== run) return;
  run.first ??= performance.now();
  run.made += samples.length;
  $("made").textContent = `${(run.made / rate).toFixed(1)} s`;
  const since = (performance.now() - run.started) / 1000;
  if (since > 0.2) $("speed").textContent = `${(run.made / rate / since).toFixed(1)}×`;
  picture.add(samples);
  if (!run.stopped) run.node.port.postMessage({ samples });
}

function told(run, message) {
  if (message.error) return finish(run, message.error, true);
  if (message.queued !== undefined) return say(`Waiting, ${message.queued} before you`);
  if (message.started) { run.started = performance.now(); return say("Making it"); }
  if (message.done) {
    run.info = message;
    $("speed").textContent = `${message.real_time_factor.toFixed(1)}×`;
    $("bits").textContent = message.bits_per_sample.toFixed(2);
    run.node.port.postMessage({ end: true });
    list(run, message);
    say(run.stopped ? "Stopped" : "Made; playing");
    if (run.stopped) finish(run, "Stopped");
  }
}

function heard(run, data, rate) {
  run.playedCount = data.played;
  run.playedSamples.push(data.samples);
  run.underruns = data.underruns;
  if (state.run !== run) return;
  if (data.played && run.latency === undefined) {
    run.latency = performance.now() - run.pressed;
    $("latency").textContent = `${Math.round(run.latency)} ms`;
  }
  $("played").textContent = `${(data.played / rate).toFixed(1)} s`;
  $("underruns").textContent = data.underruns;
  picture.playhead(data.played);
  if (data.finished && run.info) finish(run, "Done");
}

function finish(run, text, bad = false) {
  if (run.over) return;
  run.over = true;
  if (state.run === run) { say(text, bad); $("stop").disabled = true; }
  if (run.socket && run.socket.readyState <= 1) run.socket.close();
  run.context?.close();
}

async function halt() {
  const run = state.run;
  if (!run || run.over) return;
  run.stopped = true;
  run.node?.port.postMessage({ stop: true });
  if (run.info || !run.socket) finish(run, "Stopped");
  else if (run.socket.readyState === 1) run.socket.send("stop");
  else run.socket.close();
  $("stop").disabled = true;
  say("Stopped");
}

function list(run, info) {
  const item = document.createElement("li");
  const title = document.createElement("span");
  const label = info.label.filter(Boolean).join(" ");
  title.textContent = `${info.model}${label ? `, ${label}` : ""}, seed ${info.seed}, ${info.seconds.toFixed(1)} s`;
  const links = ["wav", "flac", "json"].map((kind) => {
    const a = document.createElement("a");
    a.href = `api/clips/${info.done}.${kind}`;
    a.textContent = kind.toUpperCase();
    a.download = "";
    return a;
  });
  const again = document.createElement("button");
  again.type = "button";
  again.textContent = "Again";
  again.onclick = () => generate(run.wanted);
  item.append(title, ...links, again);
  $("clips").prepend(item);
  while ($("clips").children.length > 16) $("clips").lastChild.remove();
}

async function upload(file) {
  say("Reading the prompt");
  const answer = await fetch("api/prompts", { method: "POST", body: file });
  const body = await answer.json();
  if (!answer.ok) return say(String(body.detail), true);
  state.prompt = body.id;
  $("prompt-name").textContent = `${file.name}, ${body.seconds.toFixed(1)} s`;
  $("no-prompt").hidden = false;
  say("Ready");
}

$("form").onsubmit = (event) => { event.preventDefault(); generate(request()).catch((e) => say(e.message, true)); };
$("stop").onclick = halt;
$("dice").onclick = () => { $("seed").value = Math.floor(Math.random() * 1e9); };
$("model").onchange = showLabels;
$("file").onchange = () => $("file").files[0] && upload($("file").files[0]);
$("no-prompt").onclick = () => {
  state.prompt = null;
  $("file").value = "";
  $("prompt-name").textContent = "none: drop a recording here, or choose one";
  $("no-prompt").hidden = true;
};
for (const id of ["temperature", "top_p"]) $(id).oninput = () => { $(`${id}-value`).value = Number($(id).value).toFixed(2); };
for (const kind of ["dragover", "dragleave", "drop"]) $("drop").addEventListener(kind, (event) => {
  event.preventDefault();
  $("drop").classList.toggle("over", kind === "dragover");
  if (kind === "drop" && event.dataTransfer.files[0]) upload(event.dataTransfer.files[0]);
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") halt(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => picture.redraw());
loadModels().catch(() => say("The server does not answer", true));
