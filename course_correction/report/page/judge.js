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
  return table(null, null, rows, "plain");
}

// How far a judge agrees with labels on the texts of one family, which is what its rates depend on.
function onFamily(agreement) {
  if (!agreement.family) return "Its agreement with labels is not known for this model, whose name tells no family.";
  const onLabels = agreement.on_family;
  if (!onLabels || !isKnown(onLabels.kappa)) return `It was not measured on texts of the family ${agreement.family}.`;
  const confusion = onLabels.counts;
  const errors = `${confusion.false_positives} false positives, ${confusion.false_negatives} false negatives`;
  const texts = `${formatCount(onLabels.rows)} texts of the family ${agreement.family}`;
  return `On ${texts}: Cohen’s κ ${formatEntry(onLabels.kappa, "plain")}, ${errors} (${onLabels.source}).`;
}

export function drawJudge() {
  const parent = byId("judge-body");
  const agreement = last.judge_agreement;
  if (last.judge) {
    const measured = agreement
      ? `, measured on ${formatCount(agreement.rows)} labelled, deliberately hard rows.`
      : ", not measured on labels.";
    parent.append(el("p", { class: "prose" }, "Judge of corrections: ", el("strong", null, String(last.judge)), measured));
  }
  if (agreement) {
    parent.append(agreementTable(agreement));
    parent.append(el("p", { class: "prose" }, onFamily(agreement)));
  }
  const refusals = last.refusal_agreement;
  if (refusals) {
    const judge = el("strong", null, String(refusals.judge));
    parent.append(el("p", { class: "prose" }, "Judge of refusals: ", judge, `. ${onFamily(refusals)}`));
  }
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
