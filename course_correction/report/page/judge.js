// The judge: its agreement with labels and with other judges, and what it left unscored.
import { last } from "./data.js";
import { byId, el } from "./elements.js";
import { formatCount, formatEntry, isKnown } from "./numbers.js";
import { table } from "./tables.js";

const MEASURES = {
  precision: "precision",
  sensitivity: "recall",
  specificity: "specificity",
  f1: "F1",
  kappa: "Cohen’s κ",
};

function agreementTable(agreement) {
  const rows = Object.entries(MEASURES)
    .filter(([key]) => isKnown(agreement[key]))
    .map(([key, label]) => [label, formatEntry(agreement[key], "plain")]);
  const confusion = agreement.sampled_counts;
  if (confusion) {
    const right = confusion.true_positives + confusion.true_negatives;
    const wrong = `${confusion.false_positives} false positives, ${confusion.false_negatives} false negatives`;
    rows.push(["on sampled continuations", `${right} correct, ${wrong}`]);
  }
  return table(null, null, rows, "plain");
}

export function drawJudge() {
  const parent = byId("judge-body");
  const agreement = last.judge_agreement;
  if (last.judge) {
    const measured = agreement
      ? `, measured on ${formatCount(agreement.rows)} labelled, deliberately hard rows.`
      : ", not measured on labels.";
    parent.append(el("p", { class: "prose" }, "Judge: ", el("strong", null, String(last.judge)), measured));
  }
  if (agreement) parent.append(agreementTable(agreement));
  const reasons = Object.entries(last.unscored_reasons || {}).map(([reason, count]) => `${reason} ${count}`);
  if (reasons.length) parent.append(el("p", { class: "muted" }, `Unscored: ${reasons.join(", ")}.`));
  const kappas = last.judges_kappa;
  if (kappas) {
    const judges = Object.keys(kappas);
    const cell = (kappa) => (typeof kappa === "number" ? kappa.toFixed(2) : "–");
    const rows = judges.map((one) => [one, ...judges.map((other) => cell(kappas[one][other]))]);
    parent.append(el("div", { class: "scroll" }, table("Agreement between the judges, Cohen’s κ", ["", ...judges], rows)));
  }
  return parent.childElementCount;
}
