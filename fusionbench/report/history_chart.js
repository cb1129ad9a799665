// The chart of one job: its times from run to run with their intervals, and what happened between two runs.
"use strict";

const FACT_MARKS = { status: "✕", flops: "●", params: "●", peak_bytes: "●", kernels: "●" };
const changeMark = (change) => (change.ratio > 1 ? "▲" : "▼");
const day = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 10);
const minute = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ");

// Runs lie at equal distances: bursts of commits would hide behind each other on an axis of time.
function timeTicks(s) {
  const count = s.at.length, most = Math.min(count, 9, Math.max(3, Math.floor(innerWidth / 130)));
  const vals = [...new Set(Array.from({ length: most }, (_, i) => Math.round((i * (count - 1)) / Math.max(1, most - 1))))];
  const alike = day(s.at[0]) === day(s.at[count - 1]);
  return { tickvals: vals, ticktext: vals.map((i) => (alike ? minute(s.at[i]).slice(11) : day(s.at[i]))) };
}

function pointHover(s, i) {
  const run = D.trends.runs[s.run[i]];
  const lines = [`<b>${duration(s.ns[0][i], 4)}</b> [${duration(s.ns[1][i], 4)} – ${duration(s.ns[2][i], 4)}]`];
  if (s.even.length && s.even[0][i] !== null) lines.push(`at an even pace ${duration(s.even[0][i], 4)}`);
  lines.push(`commit ${plain(s.commit[i] || "unknown")} · ${minute(s.at[i])}`);
  if (run) lines.push(plain(cut(run.name, 60)));
  return lines.join("<br>");
}

// A band is closed, and so broken where points of another segment lie between: one polygon for each unbroken stretch.
function segmentTraces(s, segment, k) {
  const x = segment.points, at = (values) => x.map((i) => values[i]);
  const colour = colourOf(k), symbol = symbolOf(k);
  const band = {
    type: "scatter", mode: "lines", x: [...x, ...[...x].reverse()], y: [...at(s.ns[2]), ...at(s.ns[1]).reverse()],
    fill: "toself", fillcolor: `${colour}2b`, line: { width: 0 }, hoverinfo: "skip",
  };
  const line = {
    type: "scatter", mode: "lines+markers", x, y: at(s.ns[0]), line: { color: colour, width: 2 },
    marker: { symbol, size: x.length > (innerWidth < 600 ? 20 : 60) ? 5 : 7, color: colour }, text: x.map((i) => pointHover(s, i)), hovertemplate: "%{text}<extra></extra>",
  };
  const even = segment.even ? [{
    type: "scatter", mode: "lines", x, y: at(s.even[0]), line: { color: css("--ink"), width: 1.2, dash: "dot" }, hoverinfo: "skip",
  }] : [];
  return [band, line, ...even];
}

const upright = (x, colour, dash) => ({ type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { color: colour, width: 1.5, dash }, layer: "below" });

// Labels that would stand on each other take turns in three rows above the chart.
function rows(labels, count) {
  const last = [-Infinity, -Infinity, -Infinity], room = count * (innerWidth < 600 ? 0.34 : 0.13);
  return labels.sort((a, b) => a.x - b.x).map((label) => {
    const row = Math.max(0, last.findIndex((x) => label.x - x > room));
    last[row] = label.x;
    return { x: label.x, y: 1, yref: "paper", yanchor: "bottom", yshift: 2 + 17 * row, text: label.text, showarrow: false, font: { color: label.colour, size: 12 } };
  });
}

function events(s) {
  const changes = s.changes.map((c) => ({ x: c.at - 0.5, text: `${changeMark(c)} ${c.size}`, colour: css(c.ratio > 1 ? "--bad" : "--good"), dash: "solid" }));
  const moves = s.segments.filter((g) => g.differences.length)
    .map((g) => ({ x: g.points[0] - 0.5, text: `⌂ ${plain(cut(g.differences[0].replace(/ .*/, ""), 14))}`, colour: css("--soft"), dash: "dashdot" }));
  const steps = [...groupBy(s.steps.filter((p) => p.fact !== "status"), (p) => p.at)]
    .map(([at, all]) => ({ x: at - 0.5, text: `● ${all.map((p) => p.fact.replace("peak_bytes", "memory")).join(", ")}`, colour: css("--soft"), dash: "dot" }));
  return [...changes, ...moves, ...steps];
}

async function drawJob(s, chart) {
  const timed = s.segments.flatMap((segment) => segment.points);
  if (!timed.length) return;
  const lows = timed.map((i) => s.ns[1][i]).filter((v) => v > 0), highs = timed.map((i) => s.ns[2][i]);
  const evens = s.even.length ? timed.map((i) => s.even[0][i]).filter((v) => v > 0) : [];
  const [low, high] = [Math.min(...lows, ...evens), Math.max(...highs, ...evens)];
  const room = Math.max((high - low) * 0.08, high * 0.03);
  const failed = s.status.flatMap((status, i) => (FAILED.includes(status) ? [i] : []));
  const misses = { type: "scatter", mode: "markers", x: failed, y: failed.map(() => low - room * 0.5), marker: { symbol: "x", size: 10, color: css("--bad") },
    text: failed.map((i) => `<b>${plain(s.status[i])}</b><br>commit ${plain(s.commit[i] || "unknown")} · ${minute(s.at[i])}`), hovertemplate: "%{text}<extra></extra>" };
  const marks = events(s);
  const unit = high < 1 ? 1000 : 1;
  const labels = rows(marks, s.at.length);
  const top = 10 + 17 * (1 + Math.max(-1, ...labels.map((l) => (l.yshift - 2) / 17)));
  const [traces, bottom] = [[...s.segments.flatMap((segment, k) => segmentTraces(s, segment, k)), misses], Math.max(0, low - room)];
  for (const trace of traces) trace.y = trace.y.map((v) => (v === null ? null : v * unit));
  await Plotly.react(chart, traces, layout({
    margin: { l: innerWidth < 600 ? 44 : 64, r: 34, t: top, b: 44 },
    xaxis: { range: [-0.8, s.at.length - 0.2], ...timeTicks(s), showgrid: false, ticklabeloverflow: "allow", tickangle: 0 },
    yaxis: { title: { text: `median, ${unit === 1000 ? "µs" : "ms"}` }, range: [bottom * unit, (high + room) * unit], nticks: 6 },
    shapes: marks.map((m) => upright(m.x, m.colour, m.dash)), annotations: labels,
  }), CONFIG);
}
