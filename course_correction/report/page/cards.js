// A card holds a title, a legend and a chart. A chart is a function of its width: it is drawn again when that changes.
import { runClass } from "./data.js";
import { el, svg } from "./elements.js";

// Marks of a legend: a line with a dot, or a filled square.
export function lineMark(place) {
  const name = runClass(place);
  const dot =
    name === "run-0"
      ? svg("circle", { class: `dot ${name}`, cx: 13, cy: 6, r: 3.6 })
      : svg("rect", { class: `dot ${name}`, x: 9.6, y: 2.6, width: 6.8, height: 6.8 });
  return svg(
    "svg",
    { "aria-hidden": "true", viewBox: "0 0 26 12", class: name },
    svg("line", { class: `line ${name}`, x1: 0, x2: 26, y1: 6, y2: 6 }),
    dot,
  );
}

export function squareMark(place) {
  return svg(
    "svg",
    { "aria-hidden": "true", viewBox: "0 0 12 12", class: "swatch" },
    svg("rect", { class: `fill ${runClass(place)}`, width: 12, height: 12, rx: 2 }),
  );
}

function legend(labels, mark) {
  const entry = (label, place) => (label === null ? null : el("li", { class: runClass(place) }, mark(place), label));
  return el("ul", { class: "legend" }, labels.map(entry));
}

// `labels`: one per run, null for a run that the chart does not show. `description`: for screen readers.
// `draw`: width -> [height, shapes]. `details`: a node below the chart.
export function addCard(parent, { title, note, labels, mark, description, draw, details }) {
  const plot = el("div", { class: "plot" });
  const figure = el(
    "figure",
    { class: "card" },
    el("figcaption", null, title),
    note ? el("p", { class: "note" }, note) : null,
    labels ? legend(labels, mark) : null,
    plot,
    details,
  );
  parent.append(figure);
  let width = 0;
  new ResizeObserver(() => {
    const now = Math.round(plot.clientWidth);
    if (now < 40 || now === width) return;
    width = now;
    const [height, shapes] = draw(width);
    const attributes = { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": description };
    plot.replaceChildren(svg("svg", attributes, shapes));
  }).observe(plot);
}
