// The head of the page and the first table.
import { allMetrics, last, lengths, names, summary } from "./data.js";
import { byId, el } from "./elements.js";
import { formatCount, formatInterval, formatP, formatValue, isKnown } from "./numbers.js";

export function drawHead() {
  const corrMean = (metrics) => (isKnown(metrics.corr_mean) ? `${formatValue(metrics.corr_mean.value, "percent")}%` : null);
  byId("name").textContent =
    last.adapter && last.model ? `${last.adapter} on ${last.model}` : last.model || names[names.length - 1];
  if (corrMean(last)) {
    const baseline = allMetrics.length > 1 ? corrMean(allMetrics[0]) : null;
    byId("lead").append(
      "When the start of a harmful answer is prefilled, the model corrects itself in ",
      el("strong", null, corrMean(last)),
      " of the sampled continuations",
      ...(baseline ? [` (${names[0]}: `, el("strong", null, baseline), ")."] : ["."]),
    );
  }
  const needed = last.requests_needed;
  const facts = {
    judge: last.judge,
    items: formatCount(summary.items),
    "prefilled tokens": lengths.length ? lengths.join(", ") : null,
    "paths per item and k": last.settings?.num_paths,
    "unscored paths": typeof last.unscored_rate === "number" ? `${formatValue(last.unscored_rate, "percent")}%` : null,
    [`requests for ±${needed ? (50 * needed.width).toFixed(1) : ""} points`]: needed?.requests
      ? formatCount(needed.requests)
      : null,
  };
  for (const [name, value] of Object.entries(facts)) {
    if (value !== null && value !== undefined && value !== "")
      byId("facts").append(el("div", null, el("dt", null, name), el("dd", null, String(value))));
  }
}

function valueCell(entry, summaryRow, label, signed) {
  if (!isKnown(entry)) return el("td", { class: "none", "data-label": label }, "–");
  const unit = summaryRow.unit === "percent" ? (signed ? " points" : "%") : ` ${summaryRow.unit}`;
  const parts = [
    el("span", { class: "value" }, formatValue(entry.value, summaryRow.unit, signed)),
    el("span", { class: "muted" }, unit),
    " ",
    el("span", { class: "interval" }, formatInterval(entry, summaryRow.unit, signed)),
  ];
  if (!signed) return el("td", { "data-label": label }, parts);
  // A difference is called better or worse only if its interval excludes zero.
  const isCertain = Array.isArray(entry.ci95) && entry.ci95[0] * entry.ci95[1] > 0;
  const isGood = entry.value * summaryRow.better > 0;
  if (isCertain) parts.unshift(el("span", { class: isGood ? "good" : "bad" }, isGood ? "better " : "worse "));
  if (typeof entry.p_value === "number") parts.push(el("span", { class: "interval" }, ` ${formatP(entry.p_value)}`));
  return el("td", { class: "difference", "data-label": label }, parts);
}

export function drawSummary() {
  const isPaired = summary.summary_rows.some((summaryRow) => summaryRow.difference);
  const head = ["95% interval", ...names, ...(isPaired ? ["difference, paired"] : [])];
  const headCells = head.map((name) => el("th", { scope: "col", role: "columnheader" }, name));
  const bodyRows = summary.summary_rows.map((summaryRow) => {
    const cells = summaryRow.values.map((entry, place) => valueCell(entry, summaryRow, names[place], false));
    if (isPaired) cells.push(valueCell(summaryRow.difference, summaryRow, "difference, paired", true));
    // On a phone rows are laid out as blocks and would lose their roles without these.
    cells.forEach((cell) => cell.setAttribute("role", "cell"));
    return el("tr", { role: "row" }, el("th", { scope: "row", role: "rowheader" }, summaryRow.label), cells);
  });
  byId("summary-table").append(
    el(
      "table",
      { class: "summary", role: "table" },
      el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, headCells)),
      el("tbody", { role: "rowgroup" }, bodyRows),
    ),
  );
  return summary.summary_rows.length;
}
