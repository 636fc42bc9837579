// The page. Belongs here: what happens after what, from a chosen video to the answer that is shown, and every way that
// it can end. Requests (requests.js), the video (player.js), the bar (bar.js), the card of the moment (now.js), lists
// and tables (study.js), progress and trouble (status.js) do not.

import { Bar } from "./bar.js";
import { at, clock, count, hide, initials, look, make, show } from "./dom.js";
import { showNow } from "./now.js";
import { Player } from "./player.js";
import { Refusal, get, post } from "./requests.js";
import { busy, doing, idle, say, trouble, waitFor } from "./status.js";
import { alertRows, boxTable, operationTable, pairRows, segmentTable } from "./study.js";

const UNSEEN_S = 2; // of a video beyond one clip that a single answer may leave out; of a longer one a timeline
const TOKEN = "token"; // its name in sessionStorage
const SOURCES = { "X-Model": "Model", "X-Adapter": "Adapter", "X-Label-Set": "Label set", "X-Data": "Data" };

const bar = new Bar(at("bar"), seek);
const player = new Player(at("video"), showTime);
let file = null;
let seconds = null; // of the video, null where the browser does not know
let format = null; // what a clip is to the service: {fps, seconds, frames, size}, null before it was asked
let clip = null; // what /keyframes answered, null before
let answer = null; // what the bar shows: {fps, seconds, looked, segments, alerts, study}, null before
let job = null; // AbortController of the work in progress

// From a file to its answer

async function open(chosen) {
  job?.abort();
  const mine = (job = new AbortController());
  [file, seconds, clip, answer] = [chosen, null, null, null];
  for (const id of ["now", "bar-box", "alerts", "keyframes", "study", "answered", "trouble", "unplayable"]) hide(id);
  document.body.classList.add("started");
  at("choose-word").textContent = "Choose another video";
  at("stage-name").textContent = file.name;
  show("stage");
  show("video");
  busy("Opening the video");
  const known = await player.load(file);
  if (job !== mine) return;
  if (!player.playable) [hide("video"), show("unplayable")];
  seconds = known;
  if (mine.signal.aborted) cancelled();
  else await analyse();
}

async function analyse() {
  const mine = (job = new AbortController());
  hide("trouble");
  busy("Sending the video");
  try {
    const { shown, headers } = await ask(mine.signal);
    if (job !== mine) return;
    idle();
    showAnswer(shown, headers);
    if (!shown.study) await showKeyframes(mine.signal);
  } catch (error) {
    if (job !== mine) return;
    idle();
    if (mine.signal.aborted) cancelled();
    else if (error instanceof Refusal) refused(error);
    else throw error;
  }
}

/** A short video goes to /predict, a long one to /timeline. Of one that the browser cannot measure the keyframes tell
 * whether it ends within the first clip. */
async function ask(signal) {
  format = await askFormat(signal);
  if (seconds === null) await askKeyframes(signal, sending("Choosing keyframes"));
  const short = seconds === null ? clipSeconds() < format.seconds : seconds <= format.seconds + UNSEEN_S;
  return short ? predict(signal) : timeline(signal);
}

async function predict(signal) {
  const onSent = sending("Waiting for the model");
  const { body, headers } = await post("predict", file, { token: token(), signal, onSent });
  const { start_frame, end_frame } = body.temporal_segment;
  const fps = Number(headers("X-Frames-Per-Second"));
  const segment = {
    operation: body.dominant_operation,
    start_frame,
    end_frame,
    start_s: start_frame / fps,
    end_s: end_frame / fps,
    anticipated_next_operation: body.anticipated_next_operation,
    confidence: body.confidence,
  };
  const whole = seconds ?? clipSeconds();
  const looked = Math.min(whole, format.seconds);
  return { shown: { fps, seconds: whole, looked, segments: [segment], alerts: [], study: null }, headers };
}

async function timeline(signal) {
  let first = null; // when the first part was done: before it the video waited for its turn
  const onLine = ({ event, done, of }) => {
    if (event !== "progress") return;
    first ??= { ms: performance.now(), done };
    const left = ((performance.now() - first.ms) / (done - first.done)) * (of - done) / 1000;
    const about = Number.isFinite(left) && done < of ? `, about ${clock(left, false)} left` : "";
    doing(`${done} of ${of} parts seen${about}`, done / of);
    if (of >= 4 && done % Math.ceil(of / 4) === 0) say(`${done} of ${of} parts seen.`);
  };
  const onSent = sending("Waiting for the model");
  const { body, headers } = await post("timeline", file, { token: token(), signal, onSent, onLine });
  const { fps, seconds: whole, segments, time_study: study } = body;
  const alerts = [...body.alerts].sort((one, other) => one.start_s - other.start_s);
  return { shown: { fps, seconds: whole, looked: whole, segments, alerts, study }, headers };
}

async function askKeyframes(signal, onSent = () => {}) {
  const { body } = await post("keyframes", file, { token: token(), signal, onSent });
  clip = body;
}

/** Also at the start, for what the page says of itself; whoever cannot be asked then is asked with the first video. */
async function askFormat(signal) {
  const { body } = await get("clip-format", { signal });
  const { seconds: length } = body;
  at("choose-lengths").textContent = `Up to ${length + UNSEEN_S} seconds: one answer for the first ${length}. Longer: a ` +
    "timeline with time study and alerts.";
  return body;
}

const clipSeconds = () => clip.bounds.at(-1) / clip.fps;
const token = () => sessionStorage.getItem(TOKEN);
const sending = (then) => (share) =>
  share < 1 ? doing(`Sending the video: ${Math.round(100 * share)} %`, share) : doing(then, null);

// What is shown

function showAnswer(shown, headers) {
  answer = shown;
  show("bar-box");
  bar.show(answer);
  at("bar-hint").textContent = answer.study
    ? "Click an operation to go there, or move with the arrow keys."
    : "The stretch of the main operation; grey is not part of it.";
  legend();
  showTime(player.time);
  showAlerts();
  if (answer.study) showStudy();
  if (clip) showPairs();
  const rows = Object.entries(SOURCES).filter(([header]) => headers(header));
  const told = rows.flatMap(([header, name]) => [make("dt", {}, name), make("dd", {}, headers(header))]);
  at("source").replaceChildren(...told);
  at("answered").hidden = !rows.length;
  const [one] = answer.segments;
  const found = answer.study
    ? `${count(answer.segments.length, "operation")}, ${count(answer.alerts.length, "alert")}`
    : `${one.operation}; next ${one.anticipated_next_operation}`;
  say(`Answer for ${file.name}: ${found}.`);
}

function legend() {
  const names = answer.segments.flatMap((segment) => [segment.operation, segment.anticipated_next_operation]);
  const rows = [...new Set(answer.study ? answer.segments.map(({ operation }) => operation) : names)];
  at("legend").replaceChildren(...rows.map((name) =>
    make("li", {}, make("span", { className: `swatch ${look(name)}` }, initials(name)), name)));
}

function showAlerts() {
  at("alerts").hidden = !answer.study;
  at("alerts-name").textContent = answer.alerts.length ? count(answer.alerts.length, "alert") : "No alerts";
  at("alert-list").replaceChildren(...alertRows(answer.alerts, seek));
}

function showStudy() {
  const name = file.name.replace(/\.[^.]*$/, "");
  const { study, segments } = answer;
  at("tables").replaceChildren(operationTable(study, name), boxTable(study, name), segmentTable(segments, name, seek));
  show("study");
}

/** The keyframes come after the answer: they are what one looks at next, and the answer should not wait for them. */
async function showKeyframes(signal) {
  try {
    if (!clip) await askKeyframes(signal);
  } catch (error) {
    if (!(error instanceof Refusal)) return; // another video was chosen
    at("pairs").replaceChildren();
    at("keyframes-hint").textContent = `The keyframes could not be had. ${error.message}`;
    return show("keyframes");
  }
  if (!signal.aborted) showPairs();
}

function showPairs() {
  at("pairs").replaceChildren(...pairRows(clip, seek));
  const begin = `the first ${clipSeconds().toFixed(1)} s`;
  at("keyframes-name").textContent = answer.study ? `Keyframes of ${begin}` : "What the model saw";
  at("keyframes-hint").textContent =
    `Two frames for each stretch of ${begin} in which the picture stays alike, chosen from the picture alone.`;
  if (!answer.study) bar.cuts(clip.bounds.slice(1, -1));
  show("keyframes");
}

function showTime(time) {
  if (!answer) return;
  const index = bar.time(time);
  showNow(answer.segments[index], answer);
}

function seek(frame) {
  player.seek(frame, answer.fps);
  at("stage").scrollIntoView({ block: "nearest" });
}

// Where there is no answer

function refused({ message, status, retryAfter }) {
  const asks = status === 401;
  if (asks) forget();
  trouble({ alert: message, retry: ![400, 401, 413].includes(status) });
  at("token-form").hidden = !asks;
  if (asks) at("token").focus();
  if (retryAfter) waitFor(retryAfter);
}

function cancelled() {
  idle();
  trouble({ notice: "Cancelled.", retry: true });
  say("Cancelled.");
  at("retry").focus();
}

function forget() {
  sessionStorage.removeItem(TOKEN);
  hide("kept");
}

// What a person does

at("file").addEventListener("change", () => {
  const [chosen] = at("file").files;
  at("file").value = ""; // so that the same file can be chosen again
  if (chosen) open(chosen);
});
at("cancel").addEventListener("click", () => job?.abort());
at("retry").addEventListener("click", analyse);
at("forget").addEventListener("click", forget);
at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, at("token").value.trim());
  at("token").value = "";
  show("kept");
  analyse();
});

for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, (event) => {
    event.preventDefault(); // else the browser would leave the page for the file
    document.body.classList.add("dropping");
  });
}
addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const [dropped] = event.dataTransfer.files;
  if (dropped) open(dropped);
});
at("kept").hidden = token() === null;
askFormat(new AbortController().signal).catch(() => {});
