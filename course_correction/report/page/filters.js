// The state of the path browser, and which items and k fit its filters.
import { index, lengths } from "./data.js";

// `verdict`: "all" or a place in the counts. `item`, `length`: places in `index` and `lengths`; item -1 if none is shown.
export const state = { item: -1, length: 0, verdict: "all", disagreement: "all", query: "", revealed: false };

export const numScored = (counts) => (Array.isArray(counts) ? counts[0] + counts[1] : 0);
export const correctedShare = (counts) => counts[0] / numScored(counts);

export function lengthFits(item, length) {
  const cells = index[item][1][length];
  const hasVerdict = (counts) => Array.isArray(counts) && counts[state.verdict] > 0;
  if (state.verdict !== "all" && !cells.some(hasVerdict)) return false;
  if (state.disagreement === "all") return true;
  const [before, after] = cells;
  if (!numScored(before) || !numScored(after)) return false;
  const [was, is] = [correctedShare(before) > 0.5, correctedShare(after) > 0.5];
  return was !== is && (state.disagreement === "differ" || is === (state.disagreement === "gained"));
}

export const itemFits = (item) =>
  index[item][0].toLowerCase().includes(state.query) && lengths.some((_, length) => lengthFits(item, length));

export const fittingItems = () => index.map((_, item) => item).filter(itemFits);
