// Settings of the runs, versions and duration.
import { allMetrics, last, names } from "./data.js";
import { byId, el } from "./elements.js";
import { formatCount } from "./numbers.js";
import { table } from "./tables.js";

function formatSetting(value) {
  if (value === null || value === undefined) return "–";
  return Array.isArray(value) ? value.join(", ") || "–" : String(value);
}

export function drawSettings() {
  const parent = byId("settings-body");
  const keys = [...new Set(allMetrics.flatMap((metrics) => Object.keys(metrics.settings || {})))];
  const values = (key) => allMetrics.map((metrics) => formatSetting(metrics.settings?.[key]));
  const differing = keys.filter((key) => new Set(values(key)).size > 1).map((key) => [key, ...values(key)]);
  if (differing.length) parent.append(table("Settings that differ", ["", ...names], differing, "plain"));
  if (keys.length) {
    const rows = keys.map((key) => [key, formatSetting(last.settings?.[key])]);
    const title = el("summary", null, `all ${keys.length} settings of ${names[names.length - 1]}`);
    parent.append(el("details", null, title, table(null, null, rows, "plain")));
  }
  const versions = Object.entries(last.versions || {}).map(([name, version]) => `${name} ${version}`);
  if (versions.length) parent.append(el("p", { class: "muted" }, versions.join(" · ")));
  if (typeof last.seconds === "number") {
    const seconds = formatCount(Math.round(last.seconds));
    parent.append(el("p", { class: "muted" }, `Sampling and judging took ${seconds} seconds.`));
  }
  return parent.childElementCount;
}
