// Build tables of strings.
import { el } from "./elements.js";

export function table(caption, head, rows, className) {
  const cells = (row) => row.map((cell, place) => el(place ? "td" : "th", place ? null : { scope: "row" }, cell));
  const headCells = (head || []).map((name) => el("th", { scope: "col" }, name));
  const bodyRows = rows.map((row) => el("tr", null, cells(row)));
  return el(
    "table",
    { class: className },
    caption ? el("caption", null, caption) : null,
    head ? el("thead", null, el("tr", null, headCells)) : null,
    el("tbody", null, bodyRows),
  );
}

// A table that opens on a click, below a chart.
export const tableDetails = (head, rows) =>
  el("details", null, el("summary", null, "as a table"), el("div", { class: "scroll" }, table(null, head, rows)));
