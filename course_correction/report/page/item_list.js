// The list of items: filtering it and choosing from it.
import { index, lengths, names } from "./data.js";
import { byId, el, svg } from "./elements.js";
import { correctedShare, fittingItems, itemFits, lengthFits, numScored, state } from "./filters.js";
import { drawItem } from "./item.js";
import { formatCount } from "./numbers.js";

const options = [];

// A small picture of an item: a column per k, a row per run, shaded by the share of corrected paths.
function shareStrip(cells) {
  const size = 6;
  const rects = cells.flatMap((runs, length) =>
    runs.map((counts, place) => {
      const level = numScored(counts) ? Math.round(4 * correctedShare(counts)) : "x";
      const [x, y] = [length * (size + 1), place * (size + 1)];
      return svg("rect", { class: `share-${level}`, x, y, width: size, height: size });
    }),
  );
  const [width, height] = [cells.length * (size + 1), names.length * (size + 1)];
  return svg("svg", { width, height, "aria-hidden": "true" }, rects);
}

export function buildList() {
  index.forEach(([name, cells], item) => {
    const attributes = { role: "option", id: `option-${item}`, "aria-selected": "false", title: name };
    const option = el("li", attributes, el("span", { class: "id" }, name), shareStrip(cells));
    option.addEventListener("click", () => choose(item));
    options.push(option);
  });
  byId("items").append(...options);
}

export function applyFilters() {
  options.forEach((option, item) => {
    option.hidden = !itemFits(item);
  });
  const fitting = fittingItems();
  byId("matched").textContent = `${formatCount(fitting.length)} of ${formatCount(index.length)} items`;
  if (!fitting.length) {
    state.item = -1;
    byId("items").removeAttribute("aria-activedescendant");
    byId("detail").replaceChildren(el("p", { class: "muted" }, "No item matches these filters."));
  } else {
    choose(state.item >= 0 && !options[state.item].hidden ? state.item : fitting[0]);
  }
}

export function choose(item, length = state.length) {
  // If nothing fits the filters at the current k, the first k with a fitting path is shown.
  const fitting = lengths.map((_, place) => place).filter((place) => lengthFits(item, place));
  if (item !== state.item && fitting.length && !fitting.includes(length)) length = fitting[0];
  const list = byId("items");
  if (state.item >= 0) options[state.item].setAttribute("aria-selected", "false");
  Object.assign(state, { item, length });
  const option = options[item];
  option.setAttribute("aria-selected", "true");
  list.setAttribute("aria-activedescendant", option.id);
  // scrollIntoView would scroll the page too.
  const [frame, box] = [list.getBoundingClientRect(), option.getBoundingClientRect()];
  if (box.top < frame.top) list.scrollTop += box.top - frame.top - 6;
  else if (box.bottom > frame.bottom) list.scrollTop += box.bottom - frame.bottom + 6;
  redraw();
}

export const redraw = () => drawItem({ choose, step });

export function step(by) {
  const fitting = fittingItems();
  const next = fitting[fitting.indexOf(state.item) + by];
  if (next !== undefined) choose(next);
}

export function stepLength(by) {
  if (state.item >= 0 && lengths[state.length + by] !== undefined) choose(state.item, state.length + by);
}
