// Histograms and horizontal bars.
import { names, runClass } from "./data.js";
import { svg, svgText } from "./elements.js";
import { formatEntry, isKnown } from "./numbers.js";

// `counts`: one per run, of pairs [number of words, number of paths]. `step`: words per bin. `most`: the largest number.
export function histogram(counts, step, most) {
  return (width) => {
    const [left, right, top, bottom, height] = [46, 14, 10, 44, 280];
    const bins = Math.floor(most / step) + 1;
    const shares = counts.map((pairs) => {
      const total = pairs.reduce((sum, [, count]) => sum + count, 0);
      const binned = new Array(bins).fill(0);
      for (const [words, count] of pairs) binned[Math.floor(words / step)] += count / total;
      return binned;
    });
    const highest = Math.ceil(10 * Math.max(0.05, ...shares.flat())) / 10;
    const y = (share) => height - bottom - (share / highest) * (height - top - bottom);
    const slot = (width - left - right) / bins;
    const shapes = [0, 0.5, 1].flatMap((part) => [
      svg("line", { class: "grid", x1: left, x2: width - right, y1: y(part * highest), y2: y(part * highest) }),
      svgText(left - 8, y(part * highest) + 4, `${Math.round(100 * part * highest)}%`, { "text-anchor": "end" }),
    ]);
    shares.forEach((binned, place) => {
      const bar = (slot * 0.84) / shares.length;
      binned.forEach((share, bin) => {
        if (!share) return;
        const words = `${bin * step}${step > 1 ? `–${bin * step + step - 1}` : ""} words`;
        const title = `${names[place]}, ${words}: ${(100 * share).toFixed(1)}% of its corrected paths`;
        const x = left + bin * slot + slot * 0.08 + place * bar;
        const attributes = { class: `fill ${runClass(place)}`, x, y: y(share), width: bar, height: y(0) - y(share) };
        shapes.push(svg("rect", attributes, svg("title", null, title)));
      });
    });
    const every = Math.max(1, Math.ceil(bins / (width > 420 ? 10 : 6)));
    for (let bin = 0; bin < bins; bin += every) {
      const x = left + bin * slot + slot / 2;
      shapes.push(svgText(x, height - bottom + 20, String(bin * step), { "text-anchor": "middle" }));
    }
    const label = "words before the correcting clause";
    shapes.push(svgText((left + width - right) / 2, height - 4, label, { "text-anchor": "middle" }));
    return [height, shapes];
  };
}

// `groups`: of {label, entries}, with an entry per run whose value lies in [0, 1].
export function bars(groups) {
  return (width) => {
    const [thick, gap, labelHeight, space, right] = [11, 5, 20, 16, 132];
    const x = (value) => Math.max(0, Math.min(1, value)) * (width - right);
    let y = 4;
    const shapes = [];
    for (const group of groups) {
      shapes.push(svgText(0, y + 12, group.label, { class: "strong" }));
      y += labelHeight;
      group.entries.forEach((entry, place) => {
        if (!isKnown(entry)) return;
        const title = svg("title", null, `${names[place]}: ${formatEntry(entry, "percent")}`);
        const bar = { class: `fill ${runClass(place)}`, x: 0, y, width: x(entry.value), height: thick, rx: 2 };
        shapes.push(svg("rect", { class: "track", x: 0, y, width: width - right, height: thick, rx: 2 }));
        shapes.push(svg("rect", bar, title));
        if (Array.isArray(entry.ci95)) {
          const [low, high] = entry.ci95.map(x);
          const ends = `M${low} ${y + 2}v${thick - 4}M${high} ${y + 2}v${thick - 4}`;
          shapes.push(svg("path", { class: "whisker", fill: "none", d: `M${low} ${y + thick / 2}H${high}${ends}` }));
        }
        shapes.push(svgText(width, y + thick - 1, formatEntry(entry, "percent"), { "text-anchor": "end" }));
        y += thick + gap;
      });
      y += space - gap;
    }
    return [y, shapes];
  };
}
