// Heat maps with k as rows and tokens of the continuation as columns.
import { svg, svgText } from "./elements.js";

const shade = (percent) => `color-mix(in oklab, var(--accent) ${percent}%, var(--sunk))`;

// `rows`: values by k and token, null where unknown. `most`: the value of the darkest shade.
export function heatMap(rows, prefillTokens, most, unit) {
  return (width) => {
    const [left, top, tall] = [34, 4, 20];
    const columns = Math.max(...rows.map((row) => row.length), 1);
    const wide = (width - left) / columns;
    const cell = (value, line, place) => {
      if (typeof value !== "number") return null;
      const title = `k = ${prefillTokens[line]}, token ${place + 1}: ${value.toPrecision(3)} ${unit}`;
      const box = { x: left + place * wide, y: top + line * tall, width: wide + 0.4, height: tall - 1 };
      const rect = svg("rect", box, svg("title", null, title));
      rect.style.fill = shade((100 * Math.min(1, value / most)).toFixed(1));
      return rect;
    };
    const shapes = rows.flatMap((row, line) => [
      svgText(left - 8, top + line * tall + 14, String(prefillTokens[line]), { "text-anchor": "end" }),
      ...row.map((value, place) => cell(value, line, place)),
    ]);
    const base = top + rows.length * tall;
    for (let place = 0; place < columns; place += Math.ceil(columns / 8))
      shapes.push(svgText(left + (place + 0.5) * wide, base + 14, String(place + 1), { "text-anchor": "middle" }));
    // The label of the columns is beside the scale, on a phone above it.
    const scale = base + (width > 420 ? 42 : 62);
    shapes.push(svgText(width, base + 42, "token of the continuation", { "text-anchor": "end" }));
    shapes.push(svgText(left, scale, "0"));
    for (let step = 0; step < 24; step++) {
      const rect = svg("rect", { x: left + 14 + step * 5, y: scale - 10, width: 5.3, height: 11 });
      rect.style.fill = shade((100 * step) / 23);
      shapes.push(rect);
    }
    shapes.push(svgText(left + 14 + 24 * 5 + 6, scale, `${most.toPrecision(2)} ${unit}`));
    return [scale + 6, shapes.filter(Boolean)];
  };
}
