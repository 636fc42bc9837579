// The card of the moment. Belongs here: what it says of the operation at the playhead. Which one that is does not.

import { at, clock, confidenceWords, look, named } from "./dom.js";

let shown; // the segment that the card speaks of, so that playing writes nothing anew

/** Shows a segment of an `answer` ({study, segments}), or for undefined that none is there. */
export function showNow(segment, { study, segments }) {
  at("now").hidden = false;
  // of a clip there is one answer, at any moment; a timeline has one for each
  const told = segment ?? (study ? undefined : segments[0]);
  if (told === shown && told) return;
  shown = told;
  at("now-title").textContent = study ? "At this moment" : "Main operation";
  at("now-name").textContent = told ? told.operation : "No operation here";
  at("now-swatch").className = told ? `swatch ${look(told.operation)}` : "swatch";
  at("now-facts").hidden = !told;
  if (!told) return;
  const { start_frame: start, end_frame: end } = told;
  at("now-when").textContent = `${clock(told.start_s)} to ${clock(told.end_s)}`;
  at("now-frames").textContent = `${start} to ${end - 1}`;
  at("now-confidence").textContent = confidenceWords(told.confidence);
  at("now-meter").value = told.confidence;
  at("now-next").replaceChildren(named(told.anticipated_next_operation));
}
