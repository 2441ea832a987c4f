// Texts of requests, prefills and paths: blurred until they are clicked, and cut if they are long.
import { readBlock, summary } from "./data.js";
import { addText, el } from "./elements.js";
import { state } from "./filters.js";
import { formatCount } from "./numbers.js";

const parsed = new Map();

// An item's texts are parsed when it is first shown; only the last few are kept.
export function itemTexts(item) {
  if (!parsed.has(item)) {
    parsed.set(item, readBlock(`item-${item}`));
    if (parsed.size > 12) parsed.delete(parsed.keys().next().value);
  }
  return parsed.get(item);
}

// A blurred text; `label` names it for screen readers.
export function blurred(content, label) {
  const inner = addText(el("span", null), content);
  if (state.revealed || !/[\p{L}\p{N}]/u.test(content)) return inner;
  inner.setAttribute("aria-hidden", "true");
  const attributes = {
    class: "veil",
    role: "button",
    tabindex: "0",
    "aria-label": `${label}, hidden. Press Enter to show it.`,
    title: "Click to show",
  };
  const cover = el("span", attributes, inner);
  const show = () => {
    inner.removeAttribute("aria-hidden");
    const isFocused = document.activeElement === cover;
    cover.replaceWith(inner);
    if (isFocused) {
      inner.setAttribute("tabindex", "-1"); // Otherwise the next Tab would start at the top of the page.
      inner.focus({ preventScroll: true });
    }
  };
  cover.addEventListener("click", show);
  cover.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    show();
  });
  return cover;
}

export const cutNote = (size) =>
  size > summary.limits.characters
    ? el(
        "span",
        { class: "cut" },
        `… cut: the first ${formatCount(summary.limits.characters)} of ${formatCount(size)} characters`,
      )
    : null;
