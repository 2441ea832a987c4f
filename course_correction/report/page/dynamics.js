// Probability of safety tokens, by number of prefilled tokens and token of the continuation.
import { addCard } from "./cards.js";
import { allMetrics, last, names } from "./data.js";
import { byId } from "./elements.js";
import { heatMap } from "./heat_map.js";
import { formatCount, formatEntry, isKnown } from "./numbers.js";
import { tableDetails } from "./tables.js";

const largest = (maps) => Math.max(1e-9, ...maps.flat(2).filter((value) => typeof value === "number"));
const noteMean = (entry) => (isKnown(entry) ? `Mean ${formatEntry(entry, "percent")} percent.` : null);

function mapTable(map, prefillTokens) {
  const head = ["k", ...map[0].map((_, place) => String(place + 1))];
  const rows = map.map((row, line) => [
    String(prefillTokens[line]),
    ...row.map((value) => (typeof value === "number" ? value.toPrecision(2) : "–")),
  ]);
  return tableDetails(head, rows);
}

export function drawDynamics() {
  const dynamics = last.dynamics;
  if (!dynamics || !Array.isArray(dynamics.mass)) return 0;
  const before = dynamics.reference_mass || (allMetrics.length > 1 && allMetrics[0].dynamics?.mass) || null;
  const most = largest([dynamics.mass, before || []]);
  const tokens = dynamics.tokens ? `${formatCount(dynamics.tokens)} ` : "";
  byId("dynamics-text").textContent =
    `Probability of ${tokens}safety tokens at each token of a continuation (columns), by number k of prefilled harmful tokens (rows).`;
  const addMap = (title, note, map, highest, unit, description) =>
    addCard(byId("dynamics-cards"), {
      title,
      note,
      description,
      draw: heatMap(map, dynamics.prefill_tokens, highest, unit),
      details: mapTable(map, dynamics.prefill_tokens),
    });
  const description = "Heat map of the probability of safety tokens";
  if (before) {
    const name = dynamics.reference_mass ? "base model" : names[0];
    addMap(`Safety tokens, ${name}`, noteMean(dynamics.mean_reference_mass), before, most, "probability", description);
  }
  const name = names[names.length - 1];
  addMap(`Safety tokens, ${name}`, noteMean(dynamics.mean_mass), dynamics.mass, most, "probability", description);
  if (dynamics.kl)
    addMap(
      "KL to the base",
      "By number of prefilled tokens and token of the continuation.",
      dynamics.kl,
      largest([dynamics.kl]),
      "nats",
      "Heat map of the KL divergence to the base",
    );
  return 1;
}
