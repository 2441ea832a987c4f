// Corr@k by k, and how early the corrections come.
import { histogram } from "./bar_charts.js";
import { addCard, lineMark, squareMark } from "./cards.js";
import { allMetrics, names, summary } from "./data.js";
import { byId } from "./elements.js";
import { lineChart } from "./line_chart.js";
import { formatCount, formatEntry, formatValue, isKnown } from "./numbers.js";
import { tableDetails } from "./tables.js";

function drawCorrAtK(parent) {
  const series = allMetrics.map((metrics) =>
    Object.entries(metrics.corr_at_k || {})
      .filter(([, entry]) => isKnown(entry))
      .map(([k, entry]) => ({
        x: Number(k),
        y: entry.value,
        ci: entry.ci95,
        title: `k = ${k}: ${formatEntry(entry, "percent")} percent`,
      }))
      .sort((one, other) => one.x - other.x),
  );
  const marks = [...new Set(series.flat().map((point) => point.x))].sort((one, other) => one - other);
  if (!marks.length) return;
  const paired = summary.difference?.corr_at_k;
  const rows = marks.map((k) => [
    `Corr@${k}`,
    ...allMetrics.map((metrics) => formatEntry(metrics.corr_at_k?.[k], "percent")),
    ...(paired ? [formatEntry(paired[k], "percent", true)] : []),
  ]);
  const label = (metrics, place) =>
    isKnown(metrics.corr_mean) ? `${names[place]}, mean ${formatValue(metrics.corr_mean.value, "percent")}%` : names[place];
  const options = {
    most: 1,
    tick: (value) => `${Math.round(100 * value)}%`,
    marks,
    xLabel: "prefilled harmful tokens (k)",
    dots: true,
  };
  addCard(parent, {
    title: "Corr@k",
    note: "Share of paths that correct themselves, with 95% intervals.",
    labels: allMetrics.map(label),
    mark: lineMark,
    description: "Corr@k by k; the numbers are in the table below",
    draw: lineChart(series, options),
    details: tableDetails(["percent", ...names, ...(paired ? ["difference"] : [])], rows),
  });
}

function drawFirstCorrection(parent) {
  const counts = summary.words_before;
  if (!counts.some((pairs) => pairs.length)) return;
  const most = Math.max(...counts.flat().map(([words]) => words));
  const totals = counts.map((pairs) => pairs.reduce((sum, [, count]) => sum + count, 0));
  const measured = allMetrics
    .map((metrics, place) => [names[place], metrics.first_correction])
    .filter(([, first]) => first && typeof first.mean === "number");
  const means = measured.map(([name, first]) => {
    const entry = { value: first.mean, ci95: first.ci95 };
    return `${formatEntry(entry, "tokens")} (${name})`;
  });
  const inTokens = means.length
    ? ` In tokens, up to the word that makes it a correction, the mean is ${means.join(", ")}.`
    : "";
  const measuredLengths = [...new Set(measured.flatMap(([, first]) => Object.keys(first.by_prefill || {})))].sort(
    (one, other) => one - other,
  );
  const rows = measuredLengths.map((k) => [
    `k = ${k}`,
    ...allMetrics.map((metrics) => {
      const value = metrics.first_correction?.by_prefill?.[k];
      return typeof value === "number" ? formatValue(value, "tokens") : "–";
    }),
  ]);
  addCard(parent, {
    title: "First correction",
    note: `Number of words in corrected paths before the correcting clause, for the paths on this page.${inTokens}`,
    labels: names.map((name, place) => `${name}, ${formatCount(totals[place])} ${totals[place] === 1 ? "path" : "paths"}`),
    mark: squareMark,
    description: "Histogram of the words before the correcting clause",
    draw: histogram(counts, Math.max(1, Math.ceil((most + 1) / 24)), most),
    details: rows.length ? tableDetails(["mean tokens", ...names], rows) : null,
  });
}

export function drawCurves() {
  const parent = byId("curve-cards");
  drawCorrAtK(parent);
  drawFirstCorrection(parent);
  return parent.childElementCount;
}
