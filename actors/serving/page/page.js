"use strict";
const base = location.pathname.replace(/\/?$/, "/");
const at = (id) => document.getElementById(id);
const NAMES = { image: "picture", text: "question", speech: "speech" };
const SENT_AS_IT_IS = /^audio\/(x-)?(wav|wave|ogg|flac)$/;
const given = { image: null, speech: null };
let served = { answers: false, asks: false, fit: "letterbox", shown: 1 };
let picture = null;

async function call(path, body) {
  const headers = { "content-type": "application/json" };
  if (at("token").value) headers.authorization = `Bearer ${at("token").value}`;
  const response = await fetch(base + path, body && { method: "POST", headers, body: JSON.stringify(body) });
  const found = await response.json();
  if (response.status === 401) at("token-row").hidden = false;
  if (!response.ok) throw new Error([found.message, found.remedy].filter(Boolean).join(". "));
  return found;
}

function show(element, visible) {
  element.hidden = !visible;
}

function problem(message) {
  at("problem").textContent = message || "";
  show(at("problem"), Boolean(message));
}

function base64(buffer) {
  const bytes = new Uint8Array(buffer);
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

/* The square that the model sees, with the attention of an answer as light. */
function draw(grid) {
  const canvas = at("picture");
  const side = canvas.width;
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, side, side);
  if (!picture) return;
  const sides = [picture.naturalWidth || side, picture.naturalHeight || side];
  const whole = side / served.shown;
  const scale = whole / (served.fit === "crop" ? Math.min(...sides) : Math.max(...sides));
  const [width, height] = sides.map((one) => one * scale);
  context.drawImage(picture, (side - width) / 2, (side - height) / 2, width, height);
  if (!grid) return;
  const most = Math.max(...grid.flat());
  grid.forEach((row, y) => row.forEach((value, x) => {
    context.fillStyle = `rgba(0, 0, 0, ${0.75 * (1 - value / most)})`;
    const [left, top] = [x / row.length, y / grid.length].map((one) => Math.round(one * side));
    const [right, bottom] = [(x + 1) / row.length, (y + 1) / grid.length].map((one) => Math.round(one * side));
    context.fillRect(left, top, right - left, bottom - top);
  }));
}

async function takePicture(file) {
  if (!file) return;
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await image.decode();
  } catch {
    return problem(`${file.name} is no picture that this browser can show.`);
  }
  problem();
  picture = image;
  given.image = base64(await file.arrayBuffer());
  draw();
  at("picture").setAttribute("aria-label", `The picture ${file.name}`);
  show(at("picture"), true);
  show(at("picture-clear"), true);
}

async function takeSpeech(file) {
  if (!file) return;
  let blob = file;
  if (!SENT_AS_IT_IS.test(file.type)) {
    try {
      blob = await toWav(await file.arrayBuffer());
    } catch {
      return problem(`${file.name || "The recording"} holds no sound that this browser can play.`);
    }
  }
  problem();
  given.speech = base64(await blob.arrayBuffer());
  at("speech").src = URL.createObjectURL(blob);
  show(at("speech"), true);
  show(at("speech-clear"), true);
}

/* Sixteen-bit mono at 16 kHz. */
async function toWav(buffer) {
  const rate = 16000;
  const decoded = await new OfflineAudioContext(1, 1, rate).decodeAudioData(buffer);
  const mixer = new OfflineAudioContext(1, Math.max(1, Math.ceil(decoded.duration * rate)), rate);
  const source = mixer.createBufferSource();
  source.buffer = decoded;
  source.connect(mixer.destination);
  source.start();
  const wave = (await mixer.startRendering()).getChannelData(0);
  const view = new DataView(new ArrayBuffer(44 + 2 * wave.length));
  const write = (place, text) => [...text].forEach((one, i) => view.setUint8(place + i, one.charCodeAt(0)));
  write(0, "RIFF");
  view.setUint32(4, 36 + 2 * wave.length, true);
  write(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  write(36, "data");
  view.setUint32(40, 2 * wave.length, true);
  wave.forEach((one, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, one)) * 32767, true));
  return new Blob([view], { type: "audio/wav" });
}

let recorder = null;
async function record() {
  if (recorder) return recorder.stop();
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    return problem(`The microphone can't be used: ${error.message}.`);
  }
  const parts = [];
  recorder = new MediaRecorder(stream);
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  recorder.addEventListener("stop", () => {
    stream.getTracks().forEach((track) => track.stop());
    recorder = null;
    at("record").textContent = "Record";
    at("record").setAttribute("aria-pressed", "false");
    takeSpeech(new Blob(parts, { type: "audio/webm" }));
  });
  recorder.start();
  at("record").textContent = "Stop";
  at("record").setAttribute("aria-pressed", "true");
}

function bars(element, rows) {
  element.replaceChildren(...rows.flatMap(([name, value, shown]) => {
    const [label, meter, output] = ["span", "meter", "output"].map((tag) => document.createElement(tag));
    label.textContent = name;
    meter.value = value;
    meter.setAttribute("aria-label", name);
    output.textContent = shown;
    return [label, meter, output];
  }));
}

function showAnswer(found) {
  at("answer").textContent = found.answer || "(nothing)";
  const percent = (one) => `${(100 * one).toFixed(1)} %`;
  bars(at("weights"), Object.entries(found.weights).map(([name, one]) => [NAMES[name], one, percent(one)]));
  draw(found.attention.image);
  show(at("attention-note"), Boolean(found.attention.image));
  showVerdict(found.moderation);
}

const VERDICTS = { allow: "Nothing is flagged.", flag: "Flagged:", block: "Blocked:" };
const JUDGED = { ...NAMES, pair: "picture and words together", output: "answer" };
function showVerdict(found) {
  show(at("moderation-part"), Boolean(found));
  if (!found) return;
  at("verdict").textContent = VERDICTS[found.action];
  at("verdict").className = found.action;
  at("judgements").replaceChildren(...found.judgements.map((one) => {
    const line = document.createElement("li");
    line.textContent = `${JUDGED[one.of]}: ${one.category} ${one.score.toFixed(2)}, ${one.action} from ${one.threshold}`;
    return line;
  }));
}

function showTimings(parts, wall) {
  const rows = Object.entries(parts).filter(([name]) => name !== "total");
  const rest = wall - rows.reduce((sum, [, one]) => sum + one, 0);
  rows.push(["the way there and back", Math.max(0, rest)]);
  bars(at("timings"), [...rows, ["all", wall]].map(([name, one]) => [name, one / wall, `${one.toFixed(1)} ms`]));
}

async function ask(event) {
  event.preventDefault();
  const question = at("question").value.trim();
  if (!question && !given.image && !given.speech) return problem("Type a question, or give a picture or speech.");
  if (served.asks && !question) {
    at("question").focus();
    return problem("Say what is asked.");
  }
  problem();
  at("ask").disabled = true;
  try {
    const inputs = {};
    if (given.image) inputs.image = given.image;
    if (given.speech) inputs.speech = given.speech;
    const kind = given.image ? "image" : given.speech ? "speech" : "text";
    if (served.answers) {
      const asked = served.asks ? { question, ...inputs } : inputs;
      const begun = performance.now();
      const found = await call("v1/answer", asked);
      showTimings(found.timings_ms, performance.now() - begun);
      showAnswer(found);
    }
    const begun = performance.now();
    const near = await call("v1/search", { [kind]: kind === "text" ? question : given[kind], top_k: 5 });
    if (!served.answers) showTimings({}, performance.now() - begun);
    at("near-note").textContent = `of the corpus, to the ${NAMES[kind]}, by the cosine of their embeddings`;
    at("neighbours").replaceChildren(...near.results.map((one) => {
      const [line, note] = ["li", "small"].map((tag) => document.createElement(tag));
      line.textContent = one.caption || one.id;
      note.textContent = `${one.score.toFixed(3)} · ${one.category}`;
      line.append(note);
      return line;
    }));
    show(at("answer-part"), served.answers);
    show(at("result"), true);
  } catch (error) {
    problem(error.message);
  } finally {
    at("ask").disabled = false;
  }
}

function droppable(zone, take) {
  zone.addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
}

async function start() {
  droppable(at("picture-drop"), takePicture);
  droppable(at("speech-drop"), takeSpeech);
  at("picture-file").addEventListener("change", (event) => takePicture(event.target.files[0]));
  at("speech-file").addEventListener("change", (event) => takeSpeech(event.target.files[0]));
  at("picture-clear").addEventListener("click", () => {
    given.image = picture = null;
    at("picture-file").value = "";
    [at("picture"), at("picture-clear")].forEach((one) => show(one, false));
  });
  at("speech-clear").addEventListener("click", () => {
    given.speech = null;
    at("speech-file").value = "";
    [at("speech"), at("speech-clear")].forEach((one) => show(one, false));
  });
  at("record").addEventListener("click", record);
  at("form").addEventListener("submit", ask);
  if (!navigator.mediaDevices) show(at("record"), false); // over the network only with TLS
  try {
    served = await call("healthz");
    at("about").textContent = `${served.application}, bundle ${served.bundle.slice(0, 12)}`;
    show(at("question-row"), served.asks || !served.answers);
  } catch (error) {
    problem(error.message);
  }
}

start();
