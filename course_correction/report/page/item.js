// The shown item: its request, and for the chosen k the prefill and the paths of each run.
import { index, lengths, names, runClass } from "./data.js";
import { addText, byId, el } from "./elements.js";
import { fittingItems, lengthFits, numScored, state } from "./filters.js";
import { blurred, cutNote, itemTexts } from "./texts.js";

const VERDICTS = ["✓ corrected", "✗ not corrected", "? unscored"];

function textBlock(label, [content, size]) {
  const text = el("p", { class: "text", dir: "auto" }, blurred(content, label));
  return el("div", { class: "part" }, el("h4", null, label), text, cutNote(size));
}

function pathCard([path, verdict, before, clause, after, size, reason]) {
  const body = el("p", { class: "text", dir: "auto" });
  if (!size) body.append(el("span", { class: "muted" }, "(empty continuation)"));
  if (before) body.append(blurred(before, clause ? "Text before the correction" : "Continuation"));
  if (clause) body.append(addText(el("mark", null), clause), addText(el("span", null), after));
  const head = el(
    "header",
    null,
    el("span", { class: "chip" }, VERDICTS[verdict]),
    el("span", null, `path ${path + 1}`),
    reason ? addText(el("span", null), reason) : null,
  );
  return el("li", { class: `path verdict-${verdict}` }, head, body, cutNote(size));
}

function describeCounts(counts) {
  if (!Array.isArray(counts)) return counts === 1 ? "response shorter than k" : "not sampled";
  return `${counts[0]} of ${numScored(counts)} corrected${counts[2] ? `, ${counts[2]} unscored` : ""}`;
}

function runColumn(place, rows, counts, prefill) {
  const shown = rows.filter((row) => state.verdict === "all" || row[1] === Number(state.verdict));
  const total = Array.isArray(counts) ? counts[0] + counts[1] + counts[2] : 0;
  const notes = [];
  if (shown.length < rows.length) notes.push(`${rows.length - shown.length} hidden by the filter`);
  if (total > rows.length) notes.push(`${total - rows.length} more not on this page`);
  return el(
    "section",
    { class: `column ${runClass(place)}`, "aria-label": names[place] },
    el("div", { class: "column-head" }, el("h4", null, names[place]), el("span", null, describeCounts(counts))),
    prefill ? textBlock("Prefill of this run", prefill) : null,
    el("ol", null, shown.map(pathCard)),
    notes.length ? el("p", { class: "muted" }, `${notes.join("; ")}.`) : null,
  );
}

function stepButton(label, by, fitting, step) {
  const isDisabled = fitting[fitting.indexOf(state.item) + by] === undefined;
  const button = el("button", { type: "button", class: "step", disabled: isDisabled }, label);
  button.addEventListener("click", () => step(by));
  return button;
}

function lengthRadio(k, place, choose) {
  const { item, length } = state;
  const input = el("input", { type: "radio", name: "length", value: k, checked: place === length });
  input.addEventListener("change", () => {
    choose(item, place);
    byId("detail").querySelector("input:checked").focus();
  });
  return el("label", { class: lengthFits(item, place) ? null : "off" }, input, String(k));
}

// `choose(item, length)` and `step(by)` show another item or k.
export function drawItem({ choose, step }) {
  const { item, length } = state;
  const fitting = fittingItems();
  const texts = itemTexts(item);
  const { prefills, paths } = texts.lengths[length];
  const counts = index[item][1][length];
  const known = prefills.filter(Boolean);
  const areAlike = known.every((one) => one[0] === known[0][0]);
  const hadFocus = byId("detail").contains(document.activeElement);
  byId("detail").replaceChildren(
    el(
      "div",
      { class: "detail-head" },
      el("h3", { id: "item-title" }, index[item][0]),
      el("span", { class: "muted" }, `${fitting.indexOf(item) + 1} of ${fitting.length}`),
      stepButton("← previous", -1, fitting, step),
      stepButton("next →", 1, fitting, step),
    ),
    el(
      "fieldset",
      { class: "lengths" },
      el("legend", null, "Prefilled tokens k"),
      lengths.map((k, place) => lengthRadio(k, place, choose)),
    ),
    el(
      "div",
      { class: "asked" },
      textBlock("Request", texts.request),
      known.length && areAlike && known[0][0] ? textBlock(`Prefill, k = ${lengths[length]}`, known[0]) : null,
    ),
    el(
      "div",
      { class: "columns" },
      names.map((_, place) => runColumn(place, paths[place], counts[place], areAlike ? null : prefills[place])),
    ),
  );
  if (hadFocus) byId("items").focus({ preventScroll: true });
  const announced = names.map((name, place) =>
    Array.isArray(counts[place])
      ? `${name}: ${counts[place][0]} of ${numScored(counts[place])} corrected`
      : `${name}: nothing sampled`,
  );
  byId("announce").textContent = `${index[item][0]}, k ${lengths[length]}. ${announced.join("; ")}.`;
}
