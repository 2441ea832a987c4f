// Refusals and false corrections, jailbreaks, general ability, distance from the base model.
import { bars } from "./bar_charts.js";
import { addCard, lineMark, squareMark } from "./cards.js";
import { allMetrics, last, names, summary } from "./data.js";
import { byId } from "./elements.js";
import { lineChart } from "./line_chart.js";
import { formatCount, formatEntry, formatP, isKnown } from "./numbers.js";
import { tableDetails } from "./tables.js";

// `parts`: entries by name, one object per run. `differences`: paired differences by name.
function addBars(title, note, parts, differences, label = (key) => key) {
  const keys = [...new Set(parts.flatMap((part) => Object.keys(part || {})))];
  const groups = keys
    .map((key) => ({ key, label: label(key), entries: parts.map((part) => part?.[key]) }))
    .filter((group) => group.entries.some((entry) => isKnown(entry) && entry.value >= 0 && entry.value <= 1));
  if (!groups.length) return;
  const isPaired = differences && keys.some((key) => isKnown(differences[key]));
  const rows = groups.map((group) => {
    const difference = isPaired ? differences[group.key] : null;
    const p = isKnown(difference) && typeof difference.p_value === "number" ? `, ${formatP(difference.p_value)}` : "";
    const count = group.entries.find((entry) => isKnown(entry) && entry.count)?.count;
    return [
      group.label,
      ...group.entries.map((entry) => formatEntry(entry, "percent")),
      ...(isPaired ? [formatEntry(difference, "percent", true) + p] : []),
      count ? formatCount(count) : "–",
    ];
  });
  addCard(byId("side-effect-cards"), {
    title,
    note,
    labels: names.length > 1 ? names : null,
    mark: squareMark,
    description: `${title}; the numbers are in the table below`,
    draw: bars(groups),
    details: tableDetails(["percent", ...names, ...(isPaired ? ["difference, paired"] : []), "count"], rows),
  });
}

function drawRefusals() {
  const refusals = allMetrics.map((metrics) => ({
    ...(isKnown(metrics.over_refusal) ? { "benign prompts, held out": metrics.over_refusal } : {}),
    ...metrics.benign?.refusal,
  }));
  addBars(
    "Refusals",
    "Share of answers that refuse; nothing is prefilled. Lower is better on benign prompts, higher on harmful ones.",
    refusals,
    last.benign?.difference,
  );
  addBars(
    "Corrections and false corrections",
    "Share of paths that correct themselves after k prefilled tokens (@k). Lower is better for false corrections.",
    allMetrics.map((metrics) => metrics.benign?.correction),
    last.benign?.difference,
  );
}

function drawAbility() {
  const tasks = allMetrics.map((metrics) => {
    const scores = Object.entries({ ...metrics.general?.tasks, ...metrics.general?.groups });
    return Object.fromEntries(scores.filter(([name]) => summary.tasks.includes(name)));
  });
  const all = Object.assign({}, ...tasks);
  const label = (task) => (all[task].metric ? `${task}, ${all[task].metric}` : task);
  const note = "Higher is better. A group of tasks is shown by its mean.";
  addBars("General ability", note, tasks, last.general?.difference, label);
}

function drawDrift() {
  const drift = allMetrics.map((metrics) => metrics.benign_kl?.by_position || metrics.benign?.kl_by_position || []);
  const count = Math.max(0, ...drift.map((values) => values.length));
  if (count < 2) return;
  const series = drift.map((values) =>
    values.map((value, place) => ({ x: place + 1, y: value })).filter((point) => typeof point.y === "number"),
  );
  const every = Math.max(1, Math.ceil(count / 8));
  const marks = Array.from({ length: Math.ceil(count / every) }, (_, place) => 1 + place * every);
  addCard(byId("side-effect-cards"), {
    title: "KL to the base on benign answers",
    note: "By token of the answer, in nats.",
    labels: names.map((name, place) => (series[place].length ? name : null)),
    mark: lineMark,
    description: "KL divergence by token of the answer",
    draw: lineChart(series, { tick: (value) => String(Number(value.toPrecision(2))), marks, xLabel: "token of the answer" }),
  });
}

export function drawSideEffects() {
  drawRefusals();
  const judge = last.jailbreak?.judge;
  addBars(
    "Jailbreaks",
    `Share of attacks that succeed. Lower is better.${judge ? ` Judge: ${judge}.` : ""}`,
    allMetrics.map((metrics) => metrics.jailbreak?.attacks),
    last.jailbreak?.difference,
  );
  drawAbility();
  drawDrift();
  return byId("side-effect-cards").childElementCount;
}
