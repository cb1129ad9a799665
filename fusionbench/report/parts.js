// Where the time goes: one bar per candidate at the chosen shape, cut into what its ops or kernels were for.

VIEWS.parts = drawParts;

const PART_KINDS = [ // column, name, colour (Okabe & Ito), text on it
  ["share_attention", "attention", "#0072B2", "#ffffff"],
  ["share_projections", "projections", "#E69F00", "#1b1c1e"],
  ["share_feed_forward", "feed-forward", "#009E73", "#1b1c1e"],
  ["share_compiled", "compiled together", "#CC79A7", "#1b1c1e"],
  ["share_optimizer", "optimizer", "#56B4E9", "#1b1c1e"],
  ["share_backward", "rest of the backward pass", "#8C7A00", "#ffffff"],
  ["share_other", "everything else", "#8A8F98", "#1b1c1e"],
  ["share_gaps", "gaps", "", ""],
];
const MOST_BARS = 40;

const percent = (v) => (v > 0 && v < 0.01 ? "< 1 %" : `${Math.round(100 * v)} %`);
const partOf = (name, row) => { const v = number(name, row); return v > 0 ? v : 0; };

// What a swatch in the legend looks like; gaps are hatched, as in the chart.
function partMark(colour) {
  const box = svg("rect", { x: 0.5, y: 0.5, width: 15, height: 11, fill: colour || "none", stroke: colour || "currentColor" });
  const lines = colour ? [] : [svg("path", { d: "M1 11L6 1M6 11L11 1M11 11L15 3", stroke: "currentColor", fill: "none" })];
  return svg("svg", { viewBox: "0 0 16 12", width: 16, height: 12, "aria-hidden": "true" }, box, ...lines);
}

// The parts of one row as words, the largest first.
function partWords(row, most) {
  return PART_KINDS.map(([name, word]) => [partOf(name, row), word]).filter(([v]) => v >= 0.005)
    .sort((a, b) => b[0] - a[0]).slice(0, most).map(([v, word]) => `${word} ${percent(v)}`).join(", ");
}

function partSummary(rows, ranked) {
  const attention = rows.map((row) => partOf("share_attention", row));
  const [low, high] = [percent(Math.min(...attention)), percent(Math.max(...attention))];
  const spread = rows.length < 2 ? "" : low === high ? ` Attention takes ${low} of all ${rows.length} candidates.` : ` Attention takes from ${low} to ${high} over ${plural(rows.length, "candidate")}.`;
  const first = rows[0] === ranked[0] ? "The fastest" : "The fastest whose parts are known";
  return `${shapeName(rows[0])}, ${conditionName(rows[0])}. ${first}, ${candidateName(rows[0])}: ${partWords(rows[0], 8)}.${spread}`;
}

function partTrace([name, word, colour, ink], shown, y) {
  const values = shown.map((row) => partOf(name, row));
  const narrow = innerWidth < 600;
  const label = (v) => (v < (narrow ? 0.14 : 0.05) ? "" : !narrow && v >= 0.055 + 0.0095 * word.length ? `${word} ${percent(v)}` : percent(v));
  return {
    type: "bar", orientation: "h", name: word, x: values.map((v) => 100 * v), y, hoverinfo: "text",
    hovertext: shown.map((row, i) => `<b>${plain(candidateName(row))}</b><br>${word} ${percent(values[i])}: about ${duration(values[i] * number("median_ms", row))}`),
    text: values.map(label), textposition: "inside", insidetextanchor: "middle", textangle: 0, constraintext: "none", cliponaxis: true,
    textfont: { color: ink || css("--ink"), size: 12 },
    marker: colour ? { color: colour, line: { width: 1, color: css("--card") } }
      : { color: css("--card"), line: { width: 1, color: css("--line") }, pattern: { shape: "/", fgcolor: css("--line"), bgcolor: css("--card"), size: 7, solidity: 0.25 } },
  };
}

async function drawParts(view) {
  const ranked = view.shape ? view.shape.ranked : [];
  const rows = ranked.filter((row) => number("share_other", row) >= 0); // NaN where nobody looked
  $("#parts").hidden = !rows.length;
  if (!rows.length) return;
  const shown = rows.slice(0, MOST_BARS).reverse();
  const kinds = PART_KINDS.filter(([name]) => shown.some((row) => partOf(name, row) >= 0.0005));
  const onCuda = String(value("device", rows[0])).startsWith("cuda");
  const counted = onCuda ? "Each kernel, copy and fill counts for what it was for, with its median over a few profiled calls"
    : "Each op counts for what it was for, with the least that it took in a few profiled calls";
  const gaps = onCuda ? "of the time of a hot call" : "of the quickest sample: Python, of which little is seen where ops are short, since profiling lengthens them";
  const chart = section("parts", {
    summary: partSummary(rows, ranked),
    caption: `Shares of a call. ${counted}. Projections are Linear layers outside of feed-forward layers, everything else is norms, residuals and copies.`
      + (kinds.some(([name]) => name === "share_compiled") ? " What torch.compile fuses cannot be told apart." : "")
      + ` Gaps are what that leaves ${gaps}.` + (rows.length > MOST_BARS ? ` The ${MOST_BARS} fastest of ${rows.length}.` : ""),
  });
  const height = Math.max(120, 56 + shown.length * 27);
  chart.style.height = `${height}px`;
  const y = shown.map((_, i) => i);
  const names = shown.map((row) => plain(cut(candidateName(row), innerWidth < 600 ? 22 : 46)));
  await Plotly.react(chart, kinds.map((kind) => partTrace(kind, shown, y)), layout({
    height, barmode: "stack", bargap: 0.25,
    xaxis: { range: [0, 100], ticksuffix: " %", nticks: innerWidth < 600 ? 4 : 6, fixedrange: true },
    yaxis: { tickvals: y, ticktext: names, range: [-0.6, shown.length - 0.4], showgrid: false, ticks: "", automargin: true, fixedrange: true },
  }), CONFIG);
  legend("parts", kinds.map(([, word, colour]) => ({ mark: partMark(colour), name: word })));
}
