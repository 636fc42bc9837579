// The video. Belongs here: whether the browser plays it, how long it is, where it stands, going elsewhere. Where it
// cannot be played the place is kept all the same, so that bar and lists work. What is shown at a place does not.

const PATIENCE_MS = 15000; // a browser that has said nothing by then is taken as one that does not play it
const still = matchMedia("(prefers-reduced-motion: reduce)");

export class Player {
  /** `onTime` gets the place in seconds whenever it changes. */
  constructor(video, onTime) {
    this.video = video;
    this.onTime = onTime;
    this.playable = false;
    this.place = 0;
    for (const event of ["timeupdate", "seeking", "seeked", "ended"]) video.addEventListener(event, () => this.tell());
    video.addEventListener("play", () => this.follow());
    video.addEventListener("error", () => (this.playable = false)); // also later, where a part of it is broken
  }

  /** Shows a file and resolves with its seconds, or null where the browser does not know them. */
  async load(file) {
    URL.revokeObjectURL(this.video.src);
    this.place = 0;
    this.video.src = URL.createObjectURL(file);
    this.playable = await this.opened();
    const seconds = this.video.duration;
    const known = Number.isFinite(seconds) && seconds > 0 ? seconds : null;
    this.video.loop = known !== null && known <= 7;
    if (this.playable && !still.matches) this.video.play().catch(() => {}); // refused to save power: it stands still
    return known;
  }

  opened() {
    return new Promise((resolve) => {
      const listening = new AbortController();
      const { signal } = listening;
      const decide = (plays) => {
        listening.abort();
        resolve(plays);
      };
      // metadata, since phones read no further before somebody presses play; sound alone, as where a browser knows the
      // sound's codec but not the picture's, is no video
      this.video.addEventListener("loadedmetadata", () => decide(this.video.videoWidth > 0), { signal });
      this.video.addEventListener("error", () => decide(false), { signal });
      const timer = setTimeout(() => decide(false), PATIENCE_MS);
      signal.addEventListener("abort", () => clearTimeout(timer));
    });
  }

  get time() {
    return this.playable ? this.video.currentTime : this.place;
  }

  /** Goes to the middle of a frame, so that no rounding shows its neighbour. */
  seek(frame, fps) {
    this.place = (frame + 0.5) / fps;
    if (this.playable) this.video.currentTime = Math.min(this.place, this.video.duration || this.place);
    this.tell();
  }

  tell() {
    this.onTime(this.time);
  }

  follow() {
    this.tell();
    if (!this.video.paused && !this.video.ended) requestAnimationFrame(() => this.follow());
  }
}
