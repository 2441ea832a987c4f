// Filters, keyboard shortcuts, the button that shows all texts, and the address of the shown item.
import { index, lengths } from "./data.js";
import { byId } from "./elements.js";
import { fittingItems, state } from "./filters.js";
import { applyFilters, choose, redraw, step, stepLength } from "./item_list.js";

// The address names the shown item, so that it can be shared. It stays empty until somebody chooses an item.
function writeAddress() {
  if (state.item < 0) return;
  const hash = `#item=${encodeURIComponent(index[state.item][0])}&k=${lengths[state.length]}`;
  try {
    history.replaceState(null, "", hash);
  } catch {
    // Some browsers refuse this for files; the page works without it.
  }
}

export function readAddress() {
  const match = /^#item=([^&]*)&k=(\d+)$/.exec(location.hash);
  if (!match) return;
  let name;
  try {
    name = decodeURIComponent(match[1]);
  } catch {
    return;
  }
  const item = index.findIndex((row) => row[0] === name);
  const length = lengths.indexOf(Number(match[2]));
  if (item >= 0 && length >= 0) {
    choose(item, length);
    byId("paths").scrollIntoView();
  }
}

function reveal(on) {
  state.revealed = on;
  const button = byId("reveal");
  button.setAttribute("aria-pressed", String(on));
  button.textContent = on ? "Blur texts" : "Show texts";
  if (state.item >= 0) redraw();
}

function scrollToPaths() {
  const box = byId("detail").getBoundingClientRect();
  if (box.top > innerHeight * 0.8 || box.bottom < 80) byId("paths").scrollIntoView();
}

const KEYS = {
  j: () => step(1),
  k: () => step(-1),
  "]": () => stepLength(1),
  "[": () => stepLength(-1),
};
const LIST_KEYS = {
  ArrowDown: () => step(1),
  ArrowUp: () => step(-1),
  Home: () => choose(fittingItems()[0]),
  End: () => choose(fittingItems().at(-1)),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const target = event.target;
  if (target === byId("query") && event.key === "Escape") {
    byId("items").focus({ preventScroll: true });
    return;
  }
  if (target === byId("items") && state.item >= 0 && LIST_KEYS[event.key]) {
    event.preventDefault();
    LIST_KEYS[event.key]();
    writeAddress();
    return;
  }
  const isTyping = target.matches && target.matches("input[type=search], select, textarea");
  if (isTyping || !byId("shortcuts").checked) return;
  if (KEYS[event.key] && index.length) {
    event.preventDefault();
    KEYS[event.key]();
    writeAddress();
    scrollToPaths();
  } else if (event.key === "b") {
    reveal(!state.revealed);
  } else if (event.key === "/") {
    event.preventDefault();
    byId("query").focus();
  } else if (event.key === "?") {
    byId("help").open = !byId("help").open;
    if (byId("help").open) byId("help").scrollIntoView({ block: "nearest" });
  }
}

export function listen() {
  byId("query").addEventListener("input", (event) => {
    state.query = event.target.value.trim().toLowerCase();
    applyFilters();
  });
  for (const name of ["verdict", "disagreement"]) {
    byId(name).addEventListener("change", (event) => {
      state[name] = event.target.value;
      applyFilters();
    });
  }
  byId("reveal").addEventListener("click", () => reveal(!state.revealed));
  document.addEventListener("keydown", onKey);
  byId("paths").addEventListener("click", (event) => {
    if (event.target.closest("li[role=option], .step, .lengths")) writeAddress();
  });
}
