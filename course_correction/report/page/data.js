// The JSON blocks of the page; ../page_schema.py describes their shapes.
export const readBlock = (id) => JSON.parse(document.getElementById(id).textContent);
export const summary = readBlock("summary");
export const index = readBlock("index"); // Counts are [corrected, not corrected, unscored], or 0 or 1 where there is no path.
export const lengths = summary.prefill_tokens;
export const names = summary.runs.map((run) => run.name);
export const allMetrics = summary.runs.map((run) => run.metrics);
export const last = allMetrics[allMetrics.length - 1];

// A single run takes the colours of "after".
export const runClass = (place) => `run-${names.length === 1 ? 1 : place}`;
