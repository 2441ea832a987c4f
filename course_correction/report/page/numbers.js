// Format numbers. An entry is {value, ci95}; rates are stored in [0, 1] and shown in percent.
const UNITS = {
  percent: (value) => (100 * value).toFixed(1),
  nats: (value) => value.toFixed(3),
  plain: (value) => value.toFixed(2),
  tokens: (value) => value.toFixed(1),
};

export const isKnown = (entry) => entry !== null && typeof entry === "object" && typeof entry.value === "number";

export const formatCount = (number) => number.toLocaleString("en-US");

export function formatValue(value, unit, signed) {
  const text = UNITS[unit](value).replace("-", "−");
  return signed && value >= 0 ? `+${text}` : text;
}

export function formatInterval(entry, unit, signed) {
  return Array.isArray(entry.ci95) ? `[${entry.ci95.map((bound) => formatValue(bound, unit, signed)).join(", ")}]` : "";
}

export function formatEntry(entry, unit, signed) {
  return isKnown(entry) ? `${formatValue(entry.value, unit, signed)} ${formatInterval(entry, unit, signed)}`.trim() : "–";
}

export const formatP = (p) => (p < 0.0001 ? "p < 0.0001" : `p = ${p.toFixed(p < 0.001 ? 4 : 3)}`);
