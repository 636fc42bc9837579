// The bar of operations over time. Belongs here: where segments, cuts, alerts, the time axis and the playhead stand,
// and the keys that move between segments. What happens at a place does not.

import { clock, confidenceWords, initials, look, make } from "./dom.js";

const STEPS = [0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600]; // seconds between two ticks
const TICK_ROOM = 64; // pixels that a tick's time takes

export class Bar {
  /** Draws into `root`; `onSeek` gets the frame of a segment that was chosen. */
  constructor(root, onSeek) {
    this.onSeek = onSeek;
    this.seconds = 0;
    this.segments = [];
    this.buttons = [];
    this.current = -1;
    this.track = make("div", { className: "track", role: "toolbar", "aria-label": "Operations over time" });
    this.playhead = make("div", { className: "playhead", id: "playhead", "aria-hidden": "true" });
    this.marks = make("div", { className: "marks", "aria-hidden": "true" });
    this.axis = make("div", { className: "axis", "aria-hidden": "true" });
    this.lane = make("div", { className: "lane" }, this.track, this.playhead);
    root.replaceChildren(this.marks, this.lane, this.axis);
    this.track.addEventListener("keydown", (event) => this.key(event));
    this.track.addEventListener("click", (event) => this.gap(event));
    new ResizeObserver(() => this.fit()).observe(root);
  }

  /** Shows an answer: {fps, seconds, segments, alerts, looked}, where `looked` are the seconds that were looked at. */
  show({ fps, seconds, segments, alerts, looked }) {
    Object.assign(this, { fps, seconds, segments, current: -1 });
    this.buttons = segments.map((segment, index) => this.segment(segment, index));
    this.track.replaceChildren(...this.buttons);
    if (looked < seconds) {
      const rest = make("div", { className: "rest", title: "Not looked at" }, make("span", {}, "not looked at"));
      this.track.append(this.placed(rest, looked, seconds));
    }
    this.marks.replaceChildren(
      ...alerts.map((alert) => this.placed(make("span", { className: `mark ${alert.kind}` }), alert.start_s)),
    );
    this.fit();
  }

  /** Thin lines where the choice of keyframes cut the clip: the only places at which a segment can begin or end. */
  cuts(frames) {
    const lines = frames.map((frame) => this.placed(make("i", { className: "cut" }), frame / this.fps));
    this.track.append(...lines);
  }

  /** Moves the playhead; returns the number of the segment there, -1 for none. */
  time(seconds) {
    const place = Math.min(Math.max(seconds, 0), this.seconds);
    this.playhead.style.left = `${(100 * place) / this.seconds}%`;
    const last = this.segments.length - 1;
    const ended = place >= this.seconds && last >= 0 && this.segments[last].end_s >= this.seconds;
    const here = ended ? last : this.segments.findIndex(({ start_s, end_s }) => start_s <= place && place < end_s);
    if (here !== this.current) this.mark(here);
    return here;
  }

  segment(segment, index) {
    const { operation, start_s, end_s, confidence, anticipated_next_operation: next } = segment;
    const when = `${clock(start_s)} to ${clock(end_s)}`;
    const button = make("button", {
      type: "button",
      className: `segment ${look(operation)}`,
      tabIndex: index ? -1 : 0,
      title: `${operation}, ${when}`,
      "aria-label": `${operation}, ${when}, ${confidenceWords(confidence)}; next ${next}`,
    });
    button.append(make("span", { className: "label" }));
    button.addEventListener("click", () => this.onSeek(segment.start_frame));
    return this.placed(button, start_s, end_s);
  }

  placed(element, start, end = null) {
    element.style.left = `${(100 * start) / this.seconds}%`;
    if (end !== null) element.style.width = `${(100 * (end - start)) / this.seconds}%`;
    return element;
  }

  /** One stop of the Tab key for the whole bar: the segment at the playhead. */
  mark(here) {
    this.buttons[this.current]?.removeAttribute("aria-current");
    this.buttons[here]?.setAttribute("aria-current", "true");
    if (here >= 0) this.stop(here);
    this.current = here;
  }

  stop(index) {
    this.buttons.forEach((button, number) => (button.tabIndex = number === index ? 0 : -1));
  }

  key(event) {
    const index = this.buttons.indexOf(document.activeElement);
    const last = this.buttons.length - 1;
    const target = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: last }[event.key];
    if (index < 0 || target === undefined) return;
    event.preventDefault();
    const chosen = Math.min(Math.max(target, 0), last);
    this.stop(chosen);
    this.buttons[chosen].focus();
    this.onSeek(this.segments[chosen].start_frame);
  }

  gap(event) {
    if (event.target.closest("button")) return;
    const { left, width } = this.track.getBoundingClientRect();
    this.onSeek(Math.floor(((event.clientX - left) / width) * this.seconds * this.fps));
  }

  /** Names where they fit, else initials, else the pattern alone; as many ticks as have room. */
  fit() {
    const room = this.lane.clientWidth;
    if (!room || !this.seconds) return;
    const labels = this.buttons.map((button) => button.firstChild);
    const fits = (label) => label.offsetWidth <= label.parentElement.clientWidth - 2;
    labels.forEach((label, index) => (label.textContent = this.segments[index].operation));
    const narrow = labels.filter((label) => !fits(label));
    narrow.forEach((label) => (label.textContent = initials(label.textContent)));
    narrow.filter((label) => !fits(label)).forEach((label) => (label.textContent = ""));
    const most = Math.max(1, Math.floor(room / TICK_ROOM));
    const useful = STEPS.filter((one) => one >= 1 || this.seconds < 3);
    const step = useful.find((one) => this.seconds / one <= most) ?? 2 * STEPS.at(-1);
    const ticks = Array.from({ length: Math.floor(this.seconds / step + 1e-6) + 1 }, (_, index) => index * step);
    const text = (tick) => {
      const atEnd = (1 - tick / this.seconds) * room < TICK_ROOM / 3;
      return make("span", { className: atEnd ? "end" : "" }, clock(tick, step < 1));
    };
    this.axis.replaceChildren(...ticks.map((tick) => this.placed(text(tick), tick)));
  }
}
