// What the page says of itself. Belongs here: how far the work is, what stands in its way, what is read out. When any
// of it happens does not: page.js.

import { at, clock, hide, show } from "./dom.js";

let clockwork = null; // timer of the elapsed time, or of the seconds until a retry

/** For who does not see: read out once, after what is being read. */
export const say = (sentence) => (at("said").textContent = sentence);

/** Work has begun; its time runs until `idle`. */
export function busy(what) {
  clearInterval(clockwork);
  const begun = performance.now();
  const elapsed = () => (at("elapsed").textContent = clock((performance.now() - begun) / 1000, false));
  elapsed();
  clockwork = setInterval(elapsed, 1000);
  doing(what, null);
  say(`${what}.`);
  show("work");
}

/** What is being done; `share` of it from 0 to 1, or null where nobody knows. */
export function doing(what, share) {
  at("doing").textContent = what;
  if (share === null) at("progress").removeAttribute("value");
  else at("progress").value = share;
}

/** Work has ended. Who was on its button goes to the video's name. */
export function idle() {
  clearInterval(clockwork);
  if (at("work").contains(document.activeElement)) at("stage-name").focus();
  hide("work");
}

/** Says an `alert` or a calm `notice`, with a button to try again where that helps. */
export function trouble({ alert = "", notice = "", retry }) {
  [hide("countdown"), hide("token-form"), show("trouble")];
  at("trouble").classList.toggle("calm", !alert);
  at("alert").textContent = alert;
  at("notice").textContent = notice;
  at("retry").hidden = !retry;
}

/** Counts down to the button, beside the sentence: that is read out once and not every second. */
export function waitFor(seconds) {
  const end = performance.now() + 1000 * seconds;
  const tick = () => {
    const left = Math.ceil((end - performance.now()) / 1000);
    at("countdown").textContent = `It can be tried again in ${left} s.`;
    if (left > 0) return;
    clearInterval(clockwork);
    [hide("countdown"), show("retry")];
    say("It can be tried again now.");
  };
  [hide("retry"), show("countdown")];
  clockwork = setInterval(tick, 250);
  tick();
}
