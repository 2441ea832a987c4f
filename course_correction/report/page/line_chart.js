// Line charts with bands for intervals.
import { runClass } from "./data.js";
import { svg, svgText } from "./elements.js";

// The next larger number whose quarters are short to write.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value || 1));
  return power * [1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10].find((factor) => factor * power >= value * 0.999);
}

// `series`: one per run, of points {x, y, ci, title}. `marks`: x of the ticks. `most`: the largest y of the axis.
export function lineChart(series, { most, tick, marks, xLabel, dots }) {
  return (width) => {
    const [left, right, top, bottom, height] = [46, 14, 10, 44, 280];
    const points = series.flat();
    const xs = points.map((point) => point.x);
    const [low, high] = [Math.min(...xs), Math.max(...xs)];
    const highest = most || roundUp(Math.max(...points.map((point) => point.y)));
    const x = (value) => left + ((value - low) / (high - low || 1)) * (width - left - right);
    const y = (value) => height - bottom - (value / highest) * (height - top - bottom);
    const shapes = [0, 0.25, 0.5, 0.75, 1].flatMap((share) => [
      svg("line", { class: "grid", x1: left, x2: width - right, y1: y(share * highest), y2: y(share * highest) }),
      svgText(left - 8, y(share * highest) + 4, tick(share * highest), { "text-anchor": "end" }),
    ]);
    const shownMarks = marks.filter((_, place) => width > 420 || marks.length < 6 || place % 2 === 0);
    shapes.push(
      ...shownMarks.map((mark) => svgText(x(mark), height - bottom + 20, String(mark), { "text-anchor": "middle" })),
      svgText((left + width - right) / 2, height - 4, xLabel, { "text-anchor": "middle" }),
    );
    series.forEach((one, place) => {
      const name = runClass(place);
      const banded = one.filter((point) => point.ci);
      if (banded.length > 1) {
        const upper = banded.map((point) => `${x(point.x)},${y(point.ci[1])}`);
        const lower = banded.map((point) => `${x(point.x)},${y(point.ci[0])}`).reverse();
        shapes.push(svg("polygon", { class: `ribbon ${name}`, points: [...upper, ...lower].join(" ") }));
      }
      const line = one.map((point) => `${x(point.x)},${y(point.y)}`).join(" ");
      shapes.push(svg("polyline", { class: `line ${name}`, points: line }));
      if (dots) shapes.push(...one.map((point) => dot(name, x(point.x), y(point.y), svg("title", null, point.title))));
    });
    return [height, shapes];
  };
}

function dot(name, x, y, title) {
  return name === "run-0"
    ? svg("circle", { class: `dot ${name}`, cx: x, cy: y, r: 4 }, title)
    : svg("rect", { class: `dot ${name}`, x: x - 3.8, y: y - 3.8, width: 7.6, height: 7.6 }, title);
}
