// Errors: how far each candidate's output is from the reference, by dtype, beside eager PyTorch's.

VIEWS.error = drawError;

async function drawError(view) {
  const worst = new Map(); // dtype → candidate → its worst row
  for (const row of view.rows) {
    if (!(number("rel_l2", row) >= 0)) continue;
    const dtype = value("dtype", row), who = candidate(row, view.by);
    if (!worst.has(dtype)) worst.set(dtype, new Map());
    const held = worst.get(dtype).get(who);
    if (held === undefined || number("rel_l2", row) > number("rel_l2", held)) worst.get(dtype).set(who, row);
  }
  const dtypes = DTYPES.filter((d) => worst.has(d)).concat([...worst.keys()].filter((d) => !DTYPES.includes(d)));
  if (!dtypes.length) { section("error", { summary: "No error was measured under these filters.", empty: true }); return; }
  const order = [...new Set(dtypes.flatMap((d) => [...worst.get(d).keys()]))].sort((a, b) => a - b);
  const step = Math.min(0.12, 0.72 / Math.max(1, order.length - 1));
  const place = (d, who) => {
    const here = order.filter((other) => worst.get(d).has(other));
    return dtypes.indexOf(d) + (here.indexOf(who) - (here.length - 1) / 2) * step;
  };
  const points = dtypes.flatMap((d) => [...worst.get(d)].map(([who, row]) => ({ x: place(d, who), row, error: number("rel_l2", row), yard: number("yardstick_rel_l2", row) })));
  const positive = points.flatMap((p) => [p.error, p.yard]).filter((v) => v > 0);
  const floor = (positive.length ? Math.min(...positive) : 1e-8) / 4;
  const exact = points.filter((p) => p.error === 0).length;
  const summary = dtypes.map((d) => {
    const errors = [...worst.get(d).values()].map((r) => number("rel_l2", r));
    const [low, high] = [small(Math.min(...errors)), small(Math.max(...errors))];
    return low === high ? `${d}: ${low}` : `${d}: ${low} to ${high}`;
  }).join("; ") + " (worst relative L2 error of each candidate over the shapes shown).";
  const chart = section("error", { summary, caption: "Against a reference in higher precision. The short grey line is the yardstick: eager PyTorch on the same job."
    + (exact ? ` ${plural(exact, "exact result")} (error 0) drawn at the lower edge.` : "") });
  const at = (v) => Math.max(v, floor);
  const dense = order.length * dtypes.length * (innerWidth < 600 ? 3 : 1) > 96;
  const ys = points.flatMap((p) => [at(p.error), p.yard >= 0 ? at(p.yard) : at(p.error)]);
  const yardstick = { type: "scatter", mode: "markers", name: "eager PyTorch", x: points.map((p) => p.x), y: points.map((p) => (p.yard >= 0 ? at(p.yard) : null)),
    marker: { symbol: "line-ew-open", size: dense ? 6 : 11, color: css("--soft"), line: { width: 2, color: css("--soft") } }, hoverinfo: "skip" };
  const groups = [...groupBy(points, (p) => code("strategy", p.row))];
  const traces = groups.map(([s, members]) => ({
    type: "scatter", mode: "markers", name: plain(value("strategy", members[0].row)), x: members.map((p) => p.x), y: members.map((p) => at(p.error)),
    marker: { symbol: symbolOf(s), size: dense ? 6 : 10, color: colourOf(s) },
    text: members.map((p) => `<b>${plain(candidateName(p.row))}</b>, ${plain(value("dtype", p.row))}<br>${plain(shapeName(p.row))}<br>error ${small(p.error)}, eager PyTorch ${small(p.yard)}`), hovertemplate: "%{text}<extra></extra>",
  }));
  await Plotly.react(chart, [yardstick, ...traces], layout({
    xaxis: { tickvals: dtypes.map((_, i) => i), ticktext: dtypes.map(plain), range: [-0.5, dtypes.length - 0.5], showgrid: false, ticks: "" },
    yaxis: { type: "log", title: { text: innerWidth < 600 ? "" : "relative L2 error" }, range: logRange(ys), ...logTicks(ys, tickError) },
  }), CONFIG);
  legend("error", [...groups.map(([s, members]) => ({ mark: icon(s), name: value("strategy", members[0].row) })), { mark: node("span", { class: "yard" }), name: "eager PyTorch (yardstick)" }]);
}
