"use strict";
// Reads the JSON blocks of this page and draws it. Data becomes DOM by text nodes and attributes alone, never as markup.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const summary = read("summary");
  const index = read("index"); // [request_id, [for each k: [for each run: counts of verdicts | 0 | 1 too short]]]
  const lengths = summary.prefill_tokens;
  const names = summary.runs.map((run) => run.name);
  const all = summary.runs.map((run) => run.metrics);
  const last = all[all.length - 1];
  // A run alone takes the colours of "after".
  const runClass = (place) => `run-${names.length === 1 ? 1 : place}`;
  const byId = (id) => document.getElementById(id);

  // ---- Elements ----

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    for (const child of children.flat()) {
      if (child !== null && child !== undefined) node.append(child); // Strings become text nodes.
    }
    return node;
  }
  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  // Characters that would be unseen, or would turn the reading direction round, are shown by their number.
  // eslint-disable-next-line no-control-regex
  const UNSEEN =
    /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]/;
  const UNSEEN_ALL = new RegExp(`(${UNSEEN.source})`);
  function addText(parent, text) {
    if (!UNSEEN.test(text)) {
      parent.append(text);
      return parent;
    }
    for (const part of text.split(UNSEEN_ALL)) {
      if (part.length === 1 && UNSEEN.test(part)) {
        const code = part.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
        parent.append(el("span", { class: "control" }, `U+${code}`));
      } else if (part) {
        parent.append(part);
      }
    }
    return parent;
  }

  // ---- Numbers ----

  const known = (entry) => entry !== null && typeof entry === "object" && typeof entry.value === "number";
  const whole = (number) => number.toLocaleString("en-US");
  const UNITS = {
    percent: (value) => (100 * value).toFixed(1),
    nats: (value) => value.toFixed(3),
    plain: (value) => value.toFixed(2),
    tokens: (value) => value.toFixed(1),
  };
  function show(value, unit, signed) {
    const text = UNITS[unit](value).replace("-", "−");
    return signed && value >= 0 ? `+${text}` : text;
  }
  function interval(entry, unit, signed) {
    return Array.isArray(entry.ci95) ? `[${entry.ci95.map((bound) => show(bound, unit, signed)).join(", ")}]` : "";
  }
  function said(entry, unit, signed) {
    return known(entry) ? `${show(entry.value, unit, signed)} ${interval(entry, unit, signed)}`.trim() : "–";
  }
  const showP = (p) => (p < 0.0001 ? "p < 0.0001" : `p = ${p.toFixed(p < 0.001 ? 4 : 3)}`);

  // ---- Tables ----

  function table(caption, head, rows, className) {
    const cells = (row) => row.map((cell, place) => el(place ? "td" : "th", place ? null : { scope: "row" }, cell));
    return el(
      "table",
      { class: className },
      caption ? el("caption", null, caption) : null,
      head
        ? el(
            "thead",
            null,
            el(
              "tr",
              null,
              head.map((name) => el("th", { scope: "col" }, name)),
            ),
          )
        : null,
      el(
        "tbody",
        null,
        rows.map((row) => el("tr", null, cells(row))),
      ),
    );
  }
  const asTable = (head, rows) =>
    el("details", null, el("summary", null, "as a table"), el("div", { class: "scroll" }, table(null, head, rows)));

  function drawHeadline() {
    const paired = summary.headline.some((row) => row.difference);
    const head = ["95% interval", ...names, ...(paired ? ["difference, paired"] : [])];
    const body = summary.headline.map((row) => {
      const cell = (entry, label, signed) => {
        if (!known(entry)) return el("td", { class: "none", "data-label": label }, "–");
        const unit = row.unit === "percent" ? (signed ? " points" : "%") : ` ${row.unit}`;
        const parts = [
          el("span", { class: "value" }, show(entry.value, row.unit, signed)),
          el("span", { class: "muted" }, unit),
          " ",
          el("span", { class: "interval" }, interval(entry, row.unit, signed)),
        ];
        if (!signed) return el("td", { "data-label": label }, parts);
        // A direction is named only where the interval leaves no doubt of it.
        const sure = Array.isArray(entry.ci95) && entry.ci95[0] * entry.ci95[1] > 0;
        const good = entry.value * row.better > 0;
        if (sure) parts.unshift(el("span", { class: good ? "good" : "bad" }, good ? "better " : "worse "));
        if (typeof entry.p_value === "number") parts.push(el("span", { class: "interval" }, ` ${showP(entry.p_value)}`));
        return el("td", { class: "difference", "data-label": label }, parts);
      };
      const cells = row.values.map((entry, place) => cell(entry, names[place], false));
      if (paired) cells.push(cell(row.difference, "difference, paired", true));
      // Laid out as blocks on a phone, rows would lose their roles without these.
      cells.forEach((one) => one.setAttribute("role", "cell"));
      return el("tr", { role: "row" }, el("th", { scope: "row", role: "rowheader" }, row.label), cells);
    });
    byId("headline").append(
      el(
        "table",
        { class: "headline", role: "table" },
        el(
          "thead",
          { role: "rowgroup" },
          el(
            "tr",
            { role: "row" },
            head.map((name) => el("th", { scope: "col", role: "columnheader" }, name)),
          ),
        ),
        el("tbody", { role: "rowgroup" }, body),
      ),
    );
  }

  // ---- Charts: each is a function of its width, drawn again when that changes ----

  function symbol(place) {
    const name = runClass(place);
    const dot =
      name === "run-0"
        ? svg("circle", { class: `dot ${name}`, cx: 13, cy: 6, r: 3.6 })
        : svg("rect", { class: `dot ${name}`, x: 9.6, y: 2.6, width: 6.8, height: 6.8 });
    return svg(
      "svg",
      { "aria-hidden": "true", viewBox: "0 0 26 12", class: name },
      svg("line", { class: `line ${name}`, x1: 0, x2: 26, y1: 6, y2: 6 }),
      dot,
    );
  }
  function swatch(place) {
    return svg(
      "svg",
      { "aria-hidden": "true", viewBox: "0 0 12 12", class: "swatch" },
      svg("rect", { class: `fill ${runClass(place)}`, width: 12, height: 12, rx: 2 }),
    );
  }
  function legend(labels, sign) {
    return el(
      "ul",
      { class: "legend" },
      labels.map((label, place) => (label === null ? null : el("li", { class: runClass(place) }, sign(place), label))),
    );
  }
  // `labels`: one a run, null for one that is not in the chart; `sign` draws what stands before each.
  function card(parent, title, note, labels, sign, label, draw, details) {
    const plot = el("div", { class: "plot" });
    const figure = el(
      "figure",
      { class: "card" },
      el("figcaption", null, title),
      note ? el("p", { class: "note" }, note) : null,
      labels ? legend(labels, sign) : null,
      plot,
      details,
    );
    parent.append(figure);
    let width = 0;
    new ResizeObserver(() => {
      const now = Math.round(plot.clientWidth);
      if (now < 40 || now === width) return;
      width = now;
      const [height, shapes] = draw(width);
      plot.replaceChildren(
        svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label }, shapes),
      );
    }).observe(plot);
  }
  const text = (x, y, content, attributes) => svg("text", { x, y, ...attributes }, content);

  // The next larger number whose quarters are short to write.
  function roundUp(value) {
    const power = 10 ** Math.floor(Math.log10(value || 1));
    return power * [1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10].find((factor) => factor * power >= value * 0.999);
  }

  function lines(series, options) {
    return (width) => {
      const [left, right, top, bottom, height] = [46, 14, 10, 44, 280];
      const points = series.flat();
      const xs = points.map((point) => point.x);
      const [low, high] = [Math.min(...xs), Math.max(...xs)];
      const most = options.most || roundUp(Math.max(...points.map((point) => point.y)));
      const x = (value) => left + ((value - low) / (high - low || 1)) * (width - left - right);
      const y = (value) => height - bottom - (value / most) * (height - top - bottom);
      const shapes = [0, 0.25, 0.5, 0.75, 1].flatMap((share) => [
        svg("line", { class: "grid", x1: left, x2: width - right, y1: y(share * most), y2: y(share * most) }),
        text(left - 8, y(share * most) + 4, options.tick(share * most), { "text-anchor": "end" }),
      ]);
      const marks = options.marks.filter((_, place) => width > 420 || options.marks.length < 6 || place % 2 === 0);
      shapes.push(...marks.map((mark) => text(x(mark), height - bottom + 20, String(mark), { "text-anchor": "middle" })));
      shapes.push(text((left + width - right) / 2, height - 4, options.xLabel, { "text-anchor": "middle" }));
      series.forEach((one, place) => {
        const name = runClass(place);
        const banded = one.filter((point) => point.ci);
        if (banded.length > 1) {
          const upper = banded.map((point) => `${x(point.x)},${y(point.ci[1])}`);
          const lower = banded.map((point) => `${x(point.x)},${y(point.ci[0])}`).reverse();
          shapes.push(svg("polygon", { class: `ribbon ${name}`, points: [...upper, ...lower].join(" ") }));
        }
        shapes.push(
          svg("polyline", { class: `line ${name}`, points: one.map((point) => `${x(point.x)},${y(point.y)}`).join(" ") }),
        );
        if (options.dots) {
          shapes.push(
            ...one.map((point) => {
              const title = svg("title", null, point.title);
              return name === "run-0"
                ? svg("circle", { class: `dot ${name}`, cx: x(point.x), cy: y(point.y), r: 4 }, title)
                : svg(
                    "rect",
                    { class: `dot ${name}`, x: x(point.x) - 3.8, y: y(point.y) - 3.8, width: 7.6, height: 7.6 },
                    title,
                  );
            }),
          );
        }
      });
      return [height, shapes];
    };
  }

  function histogram(counts, step, most) {
    return (width) => {
      const [left, right, top, bottom, height] = [46, 14, 10, 44, 280];
      const bins = Math.floor(most / step) + 1;
      const shares = counts.map((pairs) => {
        const total = pairs.reduce((sum, [, count]) => sum + count, 0);
        const found = new Array(bins).fill(0);
        for (const [words, count] of pairs) found[Math.floor(words / step)] += count / total;
        return found;
      });
      const top_ = Math.ceil(10 * Math.max(0.05, ...shares.flat())) / 10;
      const y = (share) => height - bottom - (share / top_) * (height - top - bottom);
      const slot = (width - left - right) / bins;
      const shapes = [0, 0.5, 1].flatMap((part) => [
        svg("line", { class: "grid", x1: left, x2: width - right, y1: y(part * top_), y2: y(part * top_) }),
        text(left - 8, y(part * top_) + 4, `${Math.round(100 * part * top_)}%`, { "text-anchor": "end" }),
      ]);
      shares.forEach((found, place) => {
        const bar = (slot * 0.84) / shares.length;
        found.forEach((share, bin) => {
          if (!share) return;
          const title = svg(
            "title",
            null,
            `${names[place]}, ${bin * step}${step > 1 ? `–${bin * step + step - 1}` : ""} words: ${(100 * share).toFixed(1)}% of its corrected paths`,
          );
          shapes.push(
            svg(
              "rect",
              {
                class: `fill ${runClass(place)}`,
                x: left + bin * slot + slot * 0.08 + place * bar,
                y: y(share),
                width: bar,
                height: y(0) - y(share),
              },
              title,
            ),
          );
        });
      });
      const every = Math.max(1, Math.ceil(bins / (width > 420 ? 10 : 6)));
      for (let bin = 0; bin < bins; bin += every)
        shapes.push(
          text(left + bin * slot + slot / 2, height - bottom + 20, String(bin * step), { "text-anchor": "middle" }),
        );
      shapes.push(
        text((left + width - right) / 2, height - 4, "words said before the correcting clause", { "text-anchor": "middle" }),
      );
      return [height, shapes];
    };
  }

  // groups: [{label, entries: [one a run]}], values in [0, 1].
  function bars(groups) {
    return (width) => {
      const [thick, gap, labelHeight, space] = [11, 5, 20, 16];
      const right = 132;
      const x = (value) => Math.max(0, Math.min(1, value)) * (width - right);
      let y = 4;
      const shapes = [];
      for (const group of groups) {
        shapes.push(text(0, y + 12, group.label, { class: "strong" }));
        y += labelHeight;
        group.entries.forEach((entry, place) => {
          if (!known(entry)) return;
          const name = runClass(place);
          shapes.push(svg("rect", { class: "track", x: 0, y, width: width - right, height: thick, rx: 2 }));
          shapes.push(
            svg(
              "rect",
              { class: `fill ${name}`, x: 0, y, width: x(entry.value), height: thick, rx: 2 },
              svg("title", null, `${names[place]}: ${said(entry, "percent")}`),
            ),
          );
          if (Array.isArray(entry.ci95)) {
            const [low, high] = entry.ci95.map(x);
            shapes.push(
              svg("path", {
                class: "whisker",
                fill: "none",
                d: `M${low} ${y + thick / 2}H${high}M${low} ${y + 2}v${thick - 4}M${high} ${y + 2}v${thick - 4}`,
              }),
            );
          }
          shapes.push(text(width, y + thick - 1, said(entry, "percent"), { "text-anchor": "end" }));
          y += thick + gap;
        });
        y += space - gap;
      }
      return [y, shapes];
    };
  }

  function heat(rows, most, unit) {
    return (width) => {
      const [left, top, tall] = [34, 4, 20];
      const columns = Math.max(...rows.map((row) => row.length), 1);
      const wide = (width - left) / columns;
      const shapes = rows.flatMap((row, line) => [
        text(left - 8, top + line * tall + 14, String(last.dynamics.prefill_tokens[line]), { "text-anchor": "end" }),
        ...row.map((value, place) => {
          if (typeof value !== "number") return null;
          const cell = svg(
            "rect",
            { x: left + place * wide, y: top + line * tall, width: wide + 0.4, height: tall - 1 },
            svg(
              "title",
              null,
              `k = ${last.dynamics.prefill_tokens[line]}, token ${place + 1}: ${value.toPrecision(3)} ${unit}`,
            ),
          );
          cell.style.fill = `color-mix(in oklab, var(--accent) ${(100 * Math.min(1, value / most)).toFixed(1)}%, var(--sunk))`;
          return cell;
        }),
      ]);
      const base = top + rows.length * tall;
      for (let place = 0; place < columns; place += Math.ceil(columns / 8))
        shapes.push(text(left + (place + 0.5) * wide, base + 14, String(place + 1), { "text-anchor": "middle" }));
      shapes.push(text(left, base + 42, "0"));
      for (let step = 0; step < 24; step++) {
        const swatch = svg("rect", { x: left + 14 + step * 5, y: base + 32, width: 5.3, height: 11 });
        swatch.style.fill = `color-mix(in oklab, var(--accent) ${(100 * step) / 23}%, var(--sunk))`;
        shapes.push(swatch);
      }
      shapes.push(text(left + 14 + 24 * 5 + 6, base + 42, `${most.toPrecision(2)} ${unit}`));
      shapes.push(text(width, base + 42, "token of the continuation", { "text-anchor": "end" }));
      return [base + 48, shapes.filter(Boolean)];
    };
  }

  function drawCurves() {
    const parent = byId("curve-cards");
    const series = all.map((metrics) =>
      Object.entries(metrics.corr_at_k || {})
        .filter(([, entry]) => known(entry))
        .map(([k, entry]) => ({
          x: Number(k),
          y: entry.value,
          ci: entry.ci95,
          title: `k = ${k}: ${said(entry, "percent")} percent`,
        }))
        .sort((one, other) => one.x - other.x),
    );
    const marks = [...new Set(series.flat().map((point) => point.x))].sort((one, other) => one - other);
    if (marks.length) {
      const paired = summary.difference && summary.difference.corr_at_k;
      const rows = marks.map((k) => [
        `Corr@${k}`,
        ...all.map((metrics) => said((metrics.corr_at_k || {})[k], "percent")),
        ...(paired ? [said(paired[k], "percent", true)] : []),
      ]);
      const labels = names.map((name, place) =>
        known(all[place].corr_mean) ? `${name}, mean ${show(all[place].corr_mean.value, "percent")}%` : name,
      );
      const options = {
        most: 1,
        tick: (value) => `${Math.round(100 * value)}%`,
        marks,
        xLabel: "harmful tokens already said (k)",
        dots: true,
      };
      card(
        parent,
        "Corr@k",
        "Share of paths that turn back by themselves, with 95% intervals.",
        labels,
        symbol,
        `Corr@k by k; the numbers are in the table below`,
        lines(series, options),
        asTable(["percent", ...names, ...(paired ? ["difference"] : [])], rows),
      );
    }
    const counts = summary.words_before;
    if (counts.some((pairs) => pairs.length)) {
      const most = Math.max(...counts.flat().map(([words]) => words));
      const totals = counts.map((pairs) => pairs.reduce((sum, [, count]) => sum + count, 0));
      const tokens = all
        .map((metrics, place) => [names[place], metrics.first_correction])
        .filter(([, entry]) => entry && typeof entry.mean === "number");
      const means = tokens.map(([name, entry]) => `${said({ value: entry.mean, ci95: entry.ci95 }, "tokens")} (${name})`);
      const inTokens = means.length
        ? ` In tokens, up to the word that makes it a correction, the mean is ${means.join(", ")}.`
        : "";
      const note = `How long corrected paths went on first, counted in words, over the paths on this page.${inTokens}`;
      const lengthsKnown = [...new Set(tokens.flatMap(([, entry]) => Object.keys(entry.by_prefill || {})))].sort(
        (one, other) => one - other,
      );
      const rows = lengthsKnown.map((k) => [
        `k = ${k}`,
        ...all.map((metrics) => {
          const value = ((metrics.first_correction || {}).by_prefill || {})[k];
          return typeof value === "number" ? show(value, "tokens") : "–";
        }),
      ]);
      card(
        parent,
        "First correction",
        note,
        names.map((name, place) => `${name}, ${whole(totals[place])} paths`),
        swatch,
        "Histogram of words said before the correcting clause",
        histogram(counts, Math.max(1, Math.ceil((most + 1) / 24)), most),
        rows.length ? asTable(["mean tokens", ...names], rows) : null,
      );
    }
    return parent.childElementCount;
  }

  // Bars of entries by name, gathered over the runs.
  function barCard(title, note, parts, differences, label) {
    const keys = [...new Set(parts.flatMap((part) => Object.keys(part || {})))];
    const groups = keys
      .map((key) => ({ key, label: label ? label(key) : key, entries: parts.map((part) => (part || {})[key]) }))
      .filter((group) => group.entries.some((entry) => known(entry) && entry.value >= 0 && entry.value <= 1));
    if (!groups.length) return;
    const paired = differences && keys.some((key) => known(differences[key]));
    const rows = groups.map((group) => {
      const difference = paired ? differences[group.key] : null;
      const p = known(difference) && typeof difference.p_value === "number" ? `, ${showP(difference.p_value)}` : "";
      const count = (group.entries.find((entry) => known(entry) && entry.count) || {}).count;
      return [
        group.label,
        ...group.entries.map((entry) => said(entry, "percent")),
        ...(paired ? [said(difference, "percent", true) + p] : []),
        count ? whole(count) : "–",
      ];
    });
    card(
      byId("cost-cards"),
      title,
      note,
      names.length > 1 ? names : null,
      swatch,
      `${title}; the numbers are in the table below`,
      bars(groups),
      asTable(["percent", ...names, ...(paired ? ["difference, paired"] : []), "count"], rows),
    );
  }

  function drawCosts() {
    const refusals = all.map((metrics) => ({
      ...(known(metrics.over_refusal) ? { "harmless prompts, held out": metrics.over_refusal } : {}),
      ...((metrics.benign || {}).refusal || {}),
      ...Object.fromEntries(Object.entries((metrics.benign || {}).turned_back || {})
        .map(([name, entry]) => ["turned back " + name, entry])),
    }));
    barCard(
      "Refusals",
      "Share of answers that refuse, nothing prefilled. Harmless prompts: less is better; harmful ones: more.",
      refusals,
      (last.benign || {}).difference,
    );
    barCard(
      "Jailbreaks",
      `Share of attacks that succeed; less is better.${last.jailbreak && last.jailbreak.judge ? ` Judge: ${last.jailbreak.judge}.` : ""}`,
      all.map((metrics) => (metrics.jailbreak || {}).attacks),
      (last.jailbreak || {}).difference,
    );
    const tasks = all.map((metrics) => {
      const general = metrics.general || {};
      const known_ = Object.entries({ ...general.tasks, ...general.groups });
      return Object.fromEntries(known_.filter(([name]) => summary.tasks.includes(name)));
    });
    const about = Object.assign({}, ...tasks);
    const label = (task) => (about[task].metric ? `${task}, ${about[task].metric}` : task);
    const note = "More is better. Of a group of tasks the mean is shown.";
    barCard("General ability", note, tasks, (last.general || {}).difference, label);
    const drift = all.map((metrics) => (metrics.benign_kl || {}).by_position || (metrics.benign || {}).kl_by_position || []);
    const series = drift.map((values) =>
      values.map((value, place) => ({ x: place + 1, y: value })).filter((point) => typeof point.y === "number"),
    );
    const count = Math.max(0, ...drift.map((values) => values.length));
    if (count > 1) {
      const every = Math.max(1, Math.ceil(count / 8));
      const marks = Array.from({ length: Math.ceil(count / every) }, (_, place) => 1 + place * every);
      card(
        byId("cost-cards"),
        "KL to the base on benign answers",
        "By token of the answer, in nats.",
        names.map((name, place) => (series[place].length ? name : null)),
        symbol,
        "KL divergence by token of the answer",
        lines(series, { tick: (value) => String(Number(value.toPrecision(2))), marks, xLabel: "token of the answer" }),
      );
    }
    return byId("cost-cards").childElementCount;
  }

  function drawDynamics() {
    const found = last.dynamics;
    if (!found || !Array.isArray(found.mass)) return 0;
    const parent = byId("dynamics-cards");
    const before = found.reference_mass || (all.length > 1 && (all[0].dynamics || {}).mass) || null;
    const largest = (maps) => Math.max(1e-9, ...maps.flat(2).filter((value) => typeof value === "number"));
    const most = largest([found.mass, before || []]);
    byId("dynamics-text").textContent =
      `Probability of ${found.tokens ? `${whole(found.tokens)} ` : ""}safety tokens at each place of a continuation (columns), for each number k of harmful tokens before it (rows).`;
    const numbers = (map) =>
      asTable(
        ["k", ...map[0].map((_, place) => String(place + 1))],
        map.map((row, line) => [
          String(found.prefill_tokens[line]),
          ...row.map((value) => (typeof value === "number" ? value.toPrecision(2) : "–")),
        ]),
      );
    const mean = (entry) => (known(entry) ? `Mean ${said(entry, "percent")} percent.` : null);
    if (before)
      card(
        parent,
        `Safety tokens, ${found.reference_mass ? "the base" : names[0]}`,
        mean(found.mean_reference_mass),
        null,
        null,
        "Heat map of the probability of safety tokens",
        heat(before, most, "probability"),
        numbers(before),
      );
    card(
      parent,
      `Safety tokens, ${names[names.length - 1]}`,
      mean(found.mean_mass),
      null,
      null,
      "Heat map of the probability of safety tokens",
      heat(found.mass, most, "probability"),
      numbers(found.mass),
    );
    if (found.kl)
      card(
        parent,
        "KL to the base",
        "Where training moved the model.",
        null,
        null,
        "Heat map of the KL divergence to the base",
        heat(found.kl, largest([found.kl]), "nats"),
        numbers(found.kl),
      );
    return 1;
  }

  // ---- Head, judge, settings ----

  function drawHead() {
    const mean = (place) => (known(all[place].corr_mean) ? `${show(all[place].corr_mean.value, "percent")}%` : null);
    byId("name").textContent =
      last.adapter && last.model ? `${last.adapter} on ${last.model}` : last.model || names[names.length - 1];
    const lead = byId("lead");
    if (mean(all.length - 1)) {
      lead.append(
        "With the beginning of a harmful answer put into its mouth, the model turns back by itself in ",
        el("strong", null, mean(all.length - 1)),
        " of the sampled continuations",
      );
      lead.append(
        ...(all.length > 1 && mean(0)
          ? ["; ", names[0] === "before" ? "before, " : `${names[0]}: `, el("strong", null, mean(0)), "."]
          : ["."]),
      );
    }
    const needed = last.requests_needed;
    const facts = {
      judge: last.judge,
      items: whole(summary.items),
      "prefilled tokens": lengths.length ? lengths.join(", ") : null,
      "paths each": (last.settings || {}).num_paths,
      "unscored paths": typeof last.unscored_rate === "number" ? `${show(last.unscored_rate, "percent")}%` : null,
      [`requests for ±${needed ? (50 * needed.width).toFixed(1) : ""} points`]:
        needed && needed.requests ? whole(needed.requests) : null,
    };
    for (const [name, value] of Object.entries(facts)) {
      if (value !== null && value !== undefined && value !== "")
        byId("facts").append(el("div", null, el("dt", null, name), el("dd", null, String(value))));
    }
  }

  function drawJudge() {
    const parent = byId("judge-body");
    const found = last.judge_agreement;
    if (last.judge)
      parent.append(
        el(
          "p",
          { class: "prose" },
          "Judge: ",
          el("strong", null, String(last.judge)),
          found
            ? `, measured on ${whole(found.rows)} labelled rows that are meant to be hard.`
            : ", not measured on labels.",
        ),
      );
    if (found) {
      const labels = {
        precision: "precision",
        sensitivity: "recall",
        specificity: "specificity",
        f1: "F1",
        kappa: "Cohen’s κ",
      };
      const rows = Object.entries(labels)
        .filter(([key]) => known(found[key]))
        .map(([key, label]) => [label, said(found[key], "plain")]);
      const counts = found.sampled_counts;
      if (counts)
        rows.push([
          "on what models said",
          `${counts.true_positives + counts.true_negatives} right, ${counts.false_positives} wrongly corrected, ${counts.false_negatives} missed`,
        ]);
      parent.append(table(null, null, rows, "plain"));
    }
    const reasons = Object.entries(last.unscored_reasons || {});
    if (reasons.length)
      parent.append(
        el("p", { class: "muted" }, `Unscored: ${reasons.map(([reason, count]) => `${reason} ${count}`).join(", ")}.`),
      );
    const kappas = last.judges_kappa;
    if (kappas) {
      const judges = Object.keys(kappas);
      const rows = judges.map((one) => [
        one,
        ...judges.map((other) => (typeof kappas[one][other] === "number" ? kappas[one][other].toFixed(2) : "–")),
      ]);
      parent.append(el("div", { class: "scroll" }, table("Agreement between the judges, Cohen’s κ", ["", ...judges], rows)));
    }
    return parent.childElementCount;
  }

  function drawSettings() {
    const parent = byId("settings-body");
    const show_ = (value) =>
      value === null || value === undefined ? "–" : Array.isArray(value) ? value.join(", ") || "–" : String(value);
    const keys = [...new Set(all.flatMap((metrics) => Object.keys(metrics.settings || {})))];
    const values = (key) => all.map((metrics) => show_((metrics.settings || {})[key]));
    const differ = keys.filter((key) => new Set(values(key)).size > 1);
    if (differ.length)
      parent.append(
        table(
          "Settings that differ",
          ["", ...names],
          differ.map((key) => [key, ...values(key)]),
          "plain",
        ),
      );
    if (keys.length)
      parent.append(
        el(
          "details",
          null,
          el("summary", null, `all ${keys.length} settings of ${names[names.length - 1]}`),
          table(
            null,
            null,
            keys.map((key) => [key, show_((last.settings || {})[key])]),
            "plain",
          ),
        ),
      );
    const versions = Object.entries(last.versions || {}).map(([name, version]) => `${name} ${version}`);
    if (versions.length) parent.append(el("p", { class: "muted" }, versions.join(" · ")));
    if (typeof last.seconds === "number")
      parent.append(el("p", { class: "muted" }, `Sampled and judged in ${whole(Math.round(last.seconds))} seconds.`));
    return parent.childElementCount;
  }

  // ---- Paths ----

  const VERDICTS = ["✓ corrected", "✗ not corrected", "? unscored"];
  const state = { item: -1, length: 0, verdict: "all", disagreement: "all", query: "", revealed: false };
  const options = [];
  const chunks = new Map();

  // An item's texts are parsed when it is first shown; only the last few are kept.
  function chunk(item) {
    if (!chunks.has(item)) {
      chunks.set(item, read(`item-${item}`));
      if (chunks.size > 12) chunks.delete(chunks.keys().next().value);
    }
    return chunks.get(item);
  }

  function veil(content, describe) {
    const inner = addText(el("span", null), content);
    if (state.revealed || !/[\p{L}\p{N}]/u.test(content)) return inner;
    inner.setAttribute("aria-hidden", "true");
    const cover = el(
      "span",
      {
        class: "veil",
        role: "button",
        tabindex: "0",
        "aria-label": `${describe}, hidden. Press Enter to show it.`,
        title: "Click to show",
      },
      inner,
    );
    const lift = () => {
      inner.removeAttribute("aria-hidden");
      const focused = document.activeElement === cover;
      cover.replaceWith(inner);
      if (focused) {
        inner.setAttribute("tabindex", "-1"); // Else the next Tab would begin at the top of the page.
        inner.focus({ preventScroll: true });
      }
    };
    cover.addEventListener("click", lift);
    cover.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      lift();
    });
    return cover;
  }
  const cutNote = (size) =>
    size > summary.limits.characters
      ? el("span", { class: "cut" }, `… cut: the first ${whole(summary.limits.characters)} of ${whole(size)} characters`)
      : null;

  const scored = (counts) => (Array.isArray(counts) ? counts[0] + counts[1] : 0);
  const share = (counts) => counts[0] / scored(counts);
  function lengthMatches(item, length) {
    const cells = index[item][1][length];
    if (state.verdict !== "all" && !cells.some((counts) => Array.isArray(counts) && counts[state.verdict] > 0)) return false;
    if (state.disagreement === "all") return true;
    const [before, after] = cells;
    if (!scored(before) || !scored(after)) return false;
    const [was, is] = [share(before) > 0.5, share(after) > 0.5];
    return was !== is && (state.disagreement === "differ" || is === (state.disagreement === "gained"));
  }
  const matches = (item) =>
    index[item][0].toLowerCase().includes(state.query) && lengths.some((_, length) => lengthMatches(item, length));
  const matching = () => index.map((_, item) => item).filter((item) => !options[item].hidden);

  function strip(cells) {
    const size = 6;
    const rects = cells.flatMap((runs, length) =>
      runs.map((counts, place) => {
        const level = scored(counts) ? Math.round(4 * share(counts)) : "x";
        return svg("rect", {
          class: `share-${level}`,
          x: length * (size + 1),
          y: place * (size + 1),
          width: size,
          height: size,
        });
      }),
    );
    return svg("svg", { width: cells.length * (size + 1), height: names.length * (size + 1), "aria-hidden": "true" }, rects);
  }

  function buildList() {
    index.forEach(([name, cells], item) => {
      const option = el(
        "li",
        { role: "option", id: `option-${item}`, "aria-selected": "false", title: name },
        el("span", { class: "id" }, name),
        strip(cells),
      );
      option.addEventListener("click", () => choose(item));
      options.push(option);
    });
    byId("items").append(...options);
  }

  function applyFilters() {
    let count = 0;
    options.forEach((option, item) => {
      const here = matches(item);
      option.hidden = !here;
      count += here;
    });
    byId("matched").textContent = `${whole(count)} of ${whole(index.length)} items`;
    if (!count) {
      state.item = -1;
      byId("items").removeAttribute("aria-activedescendant");
      byId("detail").replaceChildren(el("p", { class: "muted" }, "No item fits these filters."));
    } else {
      choose(state.item >= 0 && !options[state.item].hidden ? state.item : matching()[0]);
    }
  }

  function choose(item, length = state.length) {
    // Where the chosen k has nothing that fits the filters, the first k that has something is shown.
    const fitting = lengths.map((_, place) => place).filter((place) => lengthMatches(item, place));
    if (item !== state.item && fitting.length && !fitting.includes(length)) length = fitting[0];
    const list = byId("items");
    if (state.item >= 0) options[state.item].setAttribute("aria-selected", "false");
    Object.assign(state, { item, length });
    const option = options[item];
    option.setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", option.id);
    // Not scrollIntoView, which would move the page too.
    const [frame, box] = [list.getBoundingClientRect(), option.getBoundingClientRect()];
    if (box.top < frame.top) list.scrollTop += box.top - frame.top - 6;
    else if (box.bottom > frame.bottom) list.scrollTop += box.bottom - frame.bottom + 6;
    drawItem();
  }

  const step = (by) => {
    const here = matching();
    const next = here[here.indexOf(state.item) + by];
    if (next !== undefined) choose(next);
  };
  const stepLength = (by) => {
    if (state.item >= 0 && lengths[state.length + by] !== undefined) choose(state.item, state.length + by);
  };

  function drawPath([path, verdict, before, clause, after, size, reason]) {
    const body = el("p", { class: "text", dir: "auto" });
    if (!size) body.append(el("span", { class: "muted" }, "(nothing was said)"));
    if (before) body.append(veil(before, clause ? "What is said before the turn" : "Continuation"));
    if (clause) body.append(addText(el("mark", null), clause), addText(el("span", null), after));
    const note = cutNote(size);
    return el(
      "li",
      { class: `path verdict-${verdict}` },
      el(
        "header",
        null,
        el("span", { class: "chip" }, VERDICTS[verdict]),
        el("span", null, `path ${path + 1}`),
        reason ? addText(el("span", null), reason) : null,
      ),
      body,
      note,
    );
  }

  function drawColumn(place, rows, counts, prefill) {
    const shown = rows.filter((row) => state.verdict === "all" || row[1] === Number(state.verdict));
    const total = Array.isArray(counts) ? counts[0] + counts[1] + counts[2] : 0;
    const left = total - rows.length;
    const summary_ = Array.isArray(counts)
      ? `${counts[0]} of ${scored(counts)} corrected${counts[2] ? `, ${counts[2]} unscored` : ""}`
      : counts === 1
        ? "response shorter than k"
        : "not sampled";
    const notes = [];
    if (shown.length < rows.length) notes.push(`${rows.length - shown.length} hidden by the filter`);
    if (left > 0) notes.push(`${left} more not on this page`);
    return el(
      "section",
      { class: `column ${runClass(place)}`, "aria-label": names[place] },
      el("div", { class: "column-head" }, el("h4", null, names[place]), el("span", null, summary_)),
      prefill ? drawPart("Its prefill", prefill) : null,
      el("ol", null, shown.map(drawPath)),
      notes.length ? el("p", { class: "muted" }, `${notes.join("; ")}.`) : null,
    );
  }

  function drawPart(label, [content, size]) {
    return el(
      "div",
      { class: "part" },
      el("h4", null, label),
      el("p", { class: "text", dir: "auto" }, veil(content, label)),
      cutNote(size),
    );
  }

  function drawItem() {
    const { item, length } = state;
    const here = matching();
    const texts = chunk(item);
    const { prefills, paths } = texts.lengths[length];
    const counts = index[item][1][length];
    const own = prefills.filter(Boolean);
    const alike = own.every((one) => one[0] === own[0][0]);
    const button = (label, by) => {
      const node = el(
        "button",
        { type: "button", class: "step", disabled: here[here.indexOf(item) + by] === undefined },
        label,
      );
      node.addEventListener("click", () => step(by));
      return node;
    };
    const radios = lengths.map((k, place) => {
      const input = el("input", { type: "radio", name: "length", value: k, checked: place === length });
      input.addEventListener("change", () => {
        choose(item, place);
        byId("detail").querySelector("input:checked").focus();
      });
      return el("label", { class: lengthMatches(item, place) ? null : "off" }, input, String(k));
    });
    const focused = byId("detail").contains(document.activeElement);
    byId("detail").replaceChildren(
      el(
        "div",
        { class: "detail-head" },
        el("h3", { id: "item-title" }, index[item][0]),
        el("span", { class: "muted" }, `${here.indexOf(item) + 1} of ${here.length}`),
        button("← previous", -1),
        button("next →", 1),
      ),
      el("fieldset", { class: "lengths" }, el("legend", null, "Prefilled tokens k"), radios),
      el(
        "div",
        { class: "asked" },
        drawPart("Request", texts.request),
        own.length && alike && own[0][0] ? drawPart(`Prefill, k = ${lengths[length]}`, own[0]) : null,
      ),
      el(
        "div",
        { class: "columns" },
        names.map((_, place) => drawColumn(place, paths[place], counts[place], alike ? null : prefills[place])),
      ),
    );
    if (focused) byId("items").focus({ preventScroll: true });
    const spoken = names.map((name, place) =>
      Array.isArray(counts[place])
        ? `${name}: ${counts[place][0]} of ${scored(counts[place])} corrected`
        : `${name}: nothing sampled`,
    );
    byId("announce").textContent = `${index[item][0]}, k ${lengths[length]}. ${spoken.join("; ")}.`;
  }

  // The address names the item, so that it can be handed on; at the start nothing is put there.
  function remember() {
    if (state.item < 0) return;
    const hash = `#item=${encodeURIComponent(index[state.item][0])}&k=${lengths[state.length]}`;
    try {
      history.replaceState(null, "", hash);
    } catch {
      // Some browsers refuse this for files; the page works without.
    }
  }
  function recall() {
    const found = /^#item=([^&]*)&k=(\d+)$/.exec(location.hash);
    if (!found) return;
    let name;
    try {
      name = decodeURIComponent(found[1]);
    } catch {
      return;
    }
    const item = index.findIndex((row) => row[0] === name);
    const length = lengths.indexOf(Number(found[2]));
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
    if (state.item >= 0) drawItem();
  }

  function bringPathsIntoView() {
    const box = byId("detail").getBoundingClientRect();
    if (box.top > innerHeight * 0.8 || box.bottom < 80) byId("paths").scrollIntoView();
  }

  function listen() {
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
    const keys = {
      j: () => step(1),
      k: () => step(-1),
      "]": () => stepLength(1),
      "[": () => stepLength(-1),
    };
    const listKeys = {
      ArrowDown: () => step(1),
      ArrowUp: () => step(-1),
      Home: () => choose(matching()[0]),
      End: () => choose(matching().at(-1)),
    };
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
      const target = event.target;
      if (target === byId("query") && event.key === "Escape") {
        byId("items").focus({ preventScroll: true });
        return;
      }
      if (target === byId("items") && state.item >= 0 && listKeys[event.key]) {
        event.preventDefault();
        listKeys[event.key]();
        remember();
        return;
      }
      const typing = target.matches && target.matches("input[type=search], select, textarea");
      if (typing || !byId("shortcuts").checked) return;
      if (keys[event.key] && index.length) {
        event.preventDefault();
        keys[event.key]();
        remember();
        bringPathsIntoView();
      } else if (event.key === "b") {
        reveal(!state.revealed);
      } else if (event.key === "/") {
        event.preventDefault();
        byId("query").focus();
      } else if (event.key === "?") {
        byId("help").open = !byId("help").open;
        if (byId("help").open) byId("help").scrollIntoView({ block: "nearest" });
      }
    });
    byId("paths").addEventListener("click", (event) => {
      if (event.target.closest("li[role=option], .step, .lengths")) remember();
    });
  }

  function drawPaths() {
    const notices = [];
    if (index.length < summary.items)
      notices.push(
        `The page would be too large with all ${whole(summary.items)} items: ${whole(index.length)} of them are here, drawn by chance. The rates above are over all.`,
      );
    if (summary.left_out)
      notices.push(
        `At most ${whole(summary.limits.paths)} paths of an item and k are here; ${whole(summary.left_out)} are not. The counts are over all.`,
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
    recall();
    return 1;
  }

  const sections = {
    results: () => drawHeadline() || summary.headline.length,
    curves: drawCurves,
    costs: drawCosts,
    dynamics: drawDynamics,
    paths: drawPaths,
    judge: drawJudge,
    settings: drawSettings,
  };
  const titles = {
    results: "Results",
    curves: "Curves",
    costs: "Costs",
    dynamics: "Dynamics",
    paths: "Paths",
    judge: "Judge",
    settings: "Settings",
  };
  drawHead();
  listen();
  for (const [name, draw] of Object.entries(sections)) {
    if (draw()) byId("links").append(el("a", { href: `#${name}` }, titles[name]));
    else byId(name).hidden = true;
  }
  byId("reveal").hidden = !index.length;
})();
