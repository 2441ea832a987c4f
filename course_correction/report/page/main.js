// Draw each section, and link those that have content.
import { listen, readAddress } from "./controls.js";
import { drawCurves } from "./curves.js";
import { index, names, summary } from "./data.js";
import { drawDynamics } from "./dynamics.js";
import { byId, el } from "./elements.js";
import { applyFilters, buildList } from "./item_list.js";
import { drawJudge } from "./judge.js";
import { formatCount } from "./numbers.js";
import { drawSettings } from "./settings.js";
import { drawSideEffects } from "./side_effects.js";
import { drawHead, drawSummary } from "./summary.js";

function drawPaths() {
  const notices = [];
  if (index.length < summary.items)
    notices.push(
      `The page contains a random sample of ${formatCount(index.length)} of the ${formatCount(summary.items)} items, because all of them would make it too large. The rates above cover all items.`,
    );
  if (summary.left_out)
    notices.push(
      `The page contains at most ${formatCount(summary.limits.paths)} paths per item and k; ${formatCount(summary.left_out)} paths are left out. The counts cover all paths.`,
    );
  byId("sampled").textContent = notices.join(" ");
  byId("sampled").hidden = !notices.length;
  byId("disagreement-label").hidden = names.length < 2;
  if (!index.length) {
    for (const part of document.querySelectorAll("#paths .filters, #paths .help, #paths .browser")) part.hidden = true;
    return notices.length;
  }
  buildList();
  applyFilters();
  readAddress();
  return 1;
}

// id of the section, title of its link, function that draws it and returns whether it has content
const SECTIONS = [
  ["results", "Results", drawSummary],
  ["curves", "Corr@k", drawCurves],
  ["side-effects", "Side effects", drawSideEffects],
  ["dynamics", "Dynamics", drawDynamics],
  ["paths", "Paths", drawPaths],
  ["judge", "Judge", drawJudge],
  ["settings", "Settings", drawSettings],
];

drawHead();
listen();
for (const [id, title, draw] of SECTIONS) {
  if (draw()) byId("links").append(el("a", { href: `#${id}` }, title));
  else byId(id).hidden = true;
}
byId("reveal").hidden = !index.length;
