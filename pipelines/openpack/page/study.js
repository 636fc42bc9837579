// The lists below the bar. Belongs here: alerts, keyframes, the time study's tables and their CSV, all made of the JSON
// that the service answered. Where a click leads is told by the page.

import { clock, confidenceWords, count, make, named } from "./dom.js";

const KINDS = { skipped: "Skipped", repeated: "Repeated", out_of_order: "Out of order" };

/** A row per alert, a button that goes to its frame. `alerts` are sorted by time. */
export function alertRows(alerts, seek) {
  return alerts.map((alert) => {
    const where = alert.box === null || alert.box === undefined ? "" : `, box ${alert.box}`;
    const bits = Number.isFinite(alert.surprise_bits) ? `, ${alert.surprise_bits.toFixed(1)} bits of surprise` : "";
    const button = make("button", { type: "button", className: "alert" },
      make("span", { className: "alert-head" }, make("span", {}, KINDS[alert.kind] ?? alert.kind),
        make("span", {}, clock(alert.start_s))),
      make("strong", {}, alert.operation), make("span", {}, alert.message),
      make("small", {}, `Frame ${alert.frame}${where}${bits}`));
    button.addEventListener("click", () => seek(alert.frame));
    return make("li", {}, button);
  });
}

/** The shown frames two by two, as the model reads them, with the stretch that each pair stands for. */
export function pairRows({ fps, bounds, pairs, frames, pictures }, seek) {
  return pairs.map((pair, index) => {
    const [start, end] = [bounds[index], bounds[index + 1]];
    const shown = pair.map((frame) => {
      const name = `Frame ${frame}`;
      const picture = make("img", { src: pictures[frames.indexOf(frame)], alt: `${name}, at ${clock(frame / fps)}` });
      const button = make("button", { type: "button", className: "keyframe" }, picture, make("span", {}, name));
      button.addEventListener("click", () => seek(frame));
      return button;
    });
    const stretch = make("p", {}, `Frames ${start} to ${end - 1}`);
    return make("li", {}, stretch, make("div", { className: "pair" }, ...shown));
  });
}

/** Every operation in its order as a table, whose first cell goes to its start. */
export function segmentTable(segments, clip, seek) {
  const columns = [
    column("Operation", "operation", (row) => goTo(row, seek)),
    column("From", "start_s", (row) => clock(row.start_s)),
    column("To", "end_s", (row) => clock(row.end_s)),
    column("First frame", "start_frame"),
    column("Frame after", "end_frame"),
    column("Confidence", "confidence", (row) => confidenceWords(row.confidence)),
    column("Next", "anticipated_next_operation", (row) => named(row.anticipated_next_operation)),
  ];
  const folded = `Show all ${segments.length}`; // hours of video have hundreds
  return table("Every operation in its order", columns, segments, `${clip}-segments.csv`, { folded });
}

/** How often and how long, an operation a row. */
export function operationTable({ operations }, clip) {
  const columns = [
    column("Operation", "operation", (row) => named(row.operation)),
    column("Times", "count"),
    column("Total", "total_s", seconds("total_s")),
    column("Median", "median_s", seconds("median_s")),
    column("IQR", "iqr_s", seconds("iqr_s")),
  ];
  const about = "How often each was done, and for how many seconds; IQR is the interquartile range.";
  return table("Operations", columns, operations, `${clip}-operations.csv`, { about });
}

/** How long each box took and for which operation, a box a row. */
export function boxTable({ boxes, box_median_s: median, box_iqr_s: iqr }, clip) {
  const names = [...new Set(boxes.flatMap((box) => Object.keys(box.operations)))];
  const columns = [
    column("Box", "box"),
    column("From", "start_s", (row) => clock(row.start_s)),
    column("To", "end_s", (row) => clock(row.end_s)),
    column("Total", "seconds", seconds("seconds")),
    ...names.map((name) => ({
      title: name,
      csv: name,
      value: (row) => row.operations[name] ?? 0,
      cell: (row) => tenths(row.operations[name] ?? 0),
    })),
  ];
  const about = Number.isFinite(median)
    ? `Seconds of each operation. Finished boxes: median ${tenths(median)} s, IQR ${tenths(iqr)} s.`
    : "Seconds of each operation. No box is seen from its beginning to its end.";
  return table(count(boxes.length, "box", "boxes"), columns, boxes, `${clip}-boxes.csv`, { about });
}

/** Rows as RFC 4180 has them: a line of names first, quotes where they are needed, lines end with CRLF. */
export function csv(columns, rows) {
  const quoted = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [columns.map((one) => one.csv), ...rows.map((row) => columns.map((one) => one.value(row)))];
  return lines.map((line) => `${line.map(quoted).join(",")}\r\n`).join("");
}

/** A column of a table and of its CSV: the CSV has the value as it was answered, the table what `cell` makes of it. */
function column(title, key, cell = (row) => String(row[key])) {
  return { title, csv: key, value: (row) => row[key], cell };
}

const tenths = (number) => (Number.isFinite(number) ? number.toFixed(1) : "–");
const seconds = (key) => (row) => tenths(row[key]);

function goTo(row, seek) {
  const button = make("button", { type: "button", className: "go" }, named(row.operation));
  button.addEventListener("click", () => seek(row.start_frame));
  return button;
}

/** A table with its title and its CSV; `about` is a sentence above it, `folded` what opens one that starts closed. */
function table(title, columns, rows, file, { about = "", folded = "" } = {}) {
  const titles = make("tr", {}, ...columns.map((one) => make("th", { scope: "col" }, one.title)));
  const body = rows.map((row) =>
    make("tr", {}, ...columns.map((one, index) =>
      make(index ? "td" : "th", index ? {} : { scope: "row" }, one.cell(row)))),
  );
  const save = make("button", { type: "button", "aria-label": `Download as CSV: ${title}` }, "Download CSV");
  save.addEventListener("click", () => download(csv(columns, rows), file));
  const grid = make("table", {}, make("thead", {}, titles), make("tbody", {}, ...body));
  const wide = make("div", { className: "wide", tabIndex: 0, role: "region", "aria-label": title }, grid);
  const shown = folded ? make("details", {}, make("summary", {}, folded), wide) : wide;
  const head = make("div", { className: "study-head" }, make("h3", {}, title), save);
  const parts = about ? [head, make("p", { className: "hint" }, about), shown] : [head, shown];
  return make("div", { className: "study" }, ...parts);
}

function download(text, file) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  const link = make("a", { href: address, download: file });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000); // the browser has taken it by then
}
