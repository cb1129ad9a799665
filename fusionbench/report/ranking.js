// Ranking: the candidates at one shape, fastest first, with their intervals.

VIEWS.ranking = drawRanking;

async function drawRanking(view) {
  const ranked = view.shape ? view.shape.ranked : [];
  if (!ranked.length) { section("ranking", { summary: "Nothing was timed at this shape under these filters.", empty: true }); return; }
  const shown = ranked.slice(0, 40).reverse();
  const tied = new Set(view.shape.ties);
  const chart = section("ranking", {
    summary: `${shapeName(ranked[0])}, ${conditionName(ranked[0])}. ${sentence(verdict(view.shape))}`,
    caption: "Dots are medians, bars 95 % intervals; hollow dots cannot be told from the fastest." + (ranked.length > 40 ? ` The 40 fastest of ${ranked.length}.` : ""),
  });
  chart.style.height = `${Math.max(150, 70 + shown.length * 27)}px`;
  const ms = (name) => shown.map((row) => number(name, row));
  const names = shown.map((row) => plain(cut(candidateName(row), innerWidth < 600 ? 22 : 46)));
  const many = ms("high_ms").concat(ms("low_ms"));
  const log = Math.max(...many) / Math.min(...many) > 8;
  const ratios = shown.map((row) => (row === ranked[0] ? "" : (tied.has(row) ? "≈ " : "") + times(ratio(ranked[0], row).value)));
  const range = log ? logRange(many, 0.05) : [0, Math.max(...many) * 1.05];
  range[1] += (range[1] - range[0]) * (innerWidth < 600 ? 0.34 : 0.1); // room for the ratios
  const unit = Math.max(...many) < 1 ? 1000 : 1;
  const scaled = (values) => values.map((v) => v * unit);
  const shift = log ? Math.log10(unit) : 0;
  await Plotly.react(chart, [{
    type: "scatter", mode: "markers", x: scaled(ms("median_ms")), y: shown.map((_, i) => i),
    error_x: { type: "data", symmetric: false, array: shown.map((r) => unit * (number("high_ms", r) - number("median_ms", r))), arrayminus: shown.map((r) => unit * (number("median_ms", r) - number("low_ms", r))), thickness: 2, width: 0, color: css("--soft") },
    marker: { size: 10, symbol: shown.map((row) => symbolOf(code("strategy", row)) + (tied.has(row) ? "-open" : "")), color: shown.map((row) => colourOf(code("strategy", row))), line: { width: 2, color: shown.map((row) => colourOf(code("strategy", row))) } },
    hovertext: shown.map(hover), hovertemplate: "%{hovertext}<extra></extra>",
  }, { // the ratios, beyond the end of each bar
    type: "scatter", mode: "text", x: scaled(ms("high_ms")), y: shown.map((_, i) => i), hoverinfo: "skip",
    text: ratios.map((r) => (r ? `   ${r}` : "")), textposition: "middle right", textfont: { color: css("--soft"), size: 12 }, cliponaxis: false,
  }], layout({
    xaxis: { type: log ? "log" : "linear", title: { text: `median latency, ${unit === 1000 ? "µs" : "ms"}${log ? ", logarithmic" : ""}` },
      range: log ? range.map((v) => v + shift) : range.map((v) => v * unit), ...(log ? logTicks(scaled(many), (v) => thousands(round(v))) : { nticks: 7 }) },
    yaxis: { tickvals: shown.map((_, i) => i), ticktext: names, range: [-0.7, shown.length - 0.3], showgrid: false, ticks: "", automargin: true },
  }), CONFIG);
}
