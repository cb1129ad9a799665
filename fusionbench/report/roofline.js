// Roofline: the rate each candidate reaches against its arithmetic intensity, under what the device was measured to do.

VIEWS.roofline = drawRoofline;

const LAUNCHING = 0.5; // share of the time without a running kernel, from which launching is what a call mostly does
const si = (v, unit) => { const [f, p] = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([f]) => v >= f * 0.9995) || [1, ""]; return `${round(v / f)} ${p}${unit}`; };
const intensity = (row) => number("flops", row) / number("min_bytes", row);
const rate = (row, by = "median_ms") => number("flops", row) / number(by, row) * 1e3;

async function drawRoofline(view) {
  const timed = view.shape ? view.shape.ranked : [];
  const rows = timed.filter((row) => intensity(row) > 0 && Number.isFinite(intensity(row)));
  if (!rows.length) {
    section("roofline", { summary: timed.length ? "What was timed here has no matrix products, whose FLOPs a roofline is about." : "Nothing was timed at this shape under these filters.", empty: true });
    return;
  }
  const ceiling = ceilingOf(rows[0]);
  const roofs = ceiling ? roofsOf(ceiling, rows[0]) : [];
  const xs = [...rows.map(intensity), ...roofs.slice(-1).map((roof) => roof.ridge)];
  const ys = [...rows.flatMap((row) => [rate(row, "low_ms"), rate(row, "high_ms")]), ...roofs.slice(0, 1).map((roof) => roof.peak)];
  const [xRange, yRange] = [logRange(xs, 0.15), logRange(ys, 0.12)];
  const chart = section("roofline", { summary: rooflineSummary(rows, timed, ceiling, roofs), caption: rooflineCaption(rows[0], roofs) });
  const lines = roofs.map((roof, i) => roofTrace(roof, i === roofs.length - 1, 10 ** xRange[0], 10 ** xRange[1]));
  await Plotly.react(chart, [...lines, ...(roofs.length ? [ridgeTrace(roofs.at(-1), 10 ** yRange[0], far(roofs.at(-1), 10 ** xRange[0], 10 ** xRange[1]))] : []), pointsTrace(rows)], layout({
    xaxis: { type: "log", title: { text: "FLOPs per least byte moved" }, range: xRange, ...logTicksAcross(xs, (v) => (v < 1000 ? String(round(v)) : si(v, "").trim())) },
    yaxis: { type: "log", title: { text: innerWidth < 600 ? "" : "FLOP/s" }, range: yRange, ...logTicks(ys, (v) => si(v, "FLOP/s")) },
  }), CONFIG);
  legend("roofline", rows.map((row) => ({ mark: icon(code("strategy", row)), name: candidateName(row), note: boundName(row) || `${digits(intensity(row))} FLOP/byte` })));
}

// Rows of one shape share their condition, and with it the ceiling.
const ceilingOf = (row) => D.rooflines.find((c) => ["device", "dtype", "threads", "environment"].every((name) => c[name] === value(name, row)));

// Rising roofs, the caches' before memory's: sets that move at one rate are one roof. Flushed caches leave memory's.
function roofsOf(ceiling, row) {
  const levels = value("cache", row) === "cold" ? ceiling.bytes_per_s.slice(-1) : ceiling.bytes_per_s;
  const last = levels.filter(([, moved], i) => i === levels.length - 1 || moved !== levels[i + 1][1]);
  return last.map(([bytes, moved], i) => ({ moved, peak: ceiling.flops_per_s, ridge: ceiling.flops_per_s / moved, name: i === last.length - 1 ? "memory" : `caches to ${tickMib(bytes / 2 ** 20)}` }));
}

const far = (roof, left, right) => Math.log(roof.ridge / left) / Math.log(right / left); // the ridge's place along the axis

function roofTrace(roof, main, left, right) {
  const x = [left, ...(roof.ridge > left && roof.ridge < right ? [roof.ridge] : []), right];
  return {
    type: "scatter", mode: "lines+text", name: roof.name, x, y: x.map((at) => Math.min(roof.peak, at * roof.moved)), hoverinfo: "skip",
    text: x.map((_, i) => (i === 0 && left < roof.ridge ? `${roof.name} ${si(roof.moved, "B/s")}` : main && i === x.length - 1 && far(roof, left, right) < 0.5 ? si(roof.peak, "FLOP/s") : "")), textposition: x.map((_, i) => (i ? "top left" : "bottom right")),
    textfont: { size: 12, color: css("--soft") }, line: { color: css(main ? "--ink" : "--soft"), width: main ? 2 : 1, dash: main ? "solid" : "dot" },
  };
}

function ridgeTrace(roof, bottom, along) {
  return { type: "scatter", mode: "lines+markers+text", name: "ridge", x: [roof.ridge, roof.ridge], y: [bottom, roof.peak], hoverinfo: "skip", text: ["", `ridge ${digits(roof.ridge)}`], textposition: along > 0.7 ? "top left" : along < 0.3 ? "top right" : "top center",
    textfont: { size: 12, color: css("--soft") }, line: { color: css("--soft"), width: 1, dash: "dash" }, marker: { size: [0, 7], symbol: "diamond-open", color: css("--ink") }, cliponaxis: false };
}

function pointsTrace(rows) {
  const tint = rows.map((row) => colourOf(code("strategy", row)));
  return {
    type: "scatter", mode: "markers", name: "candidates", x: rows.map(intensity), y: rows.map((row) => rate(row)), marker: { size: 11, symbol: rows.map((row) => symbolOf(code("strategy", row))), color: tint },
    error_y: { type: "data", symmetric: false, array: rows.map((row) => rate(row, "low_ms") - rate(row)), arrayminus: rows.map((row) => rate(row) - rate(row, "high_ms")), thickness: 1, width: 3, color: css("--soft") },
    hovertext: rows.map((row) => `${hover(row)}<br>${si(rate(row), "FLOP/s")} at ${digits(intensity(row))} FLOP/byte<br>${boundName(row) || "no measured ceiling"}`), hovertemplate: "%{hovertext}<extra></extra>",
  };
}

// What limits a call: its launches where they take most of it, else the roof above it.
const boundOf = (row) => (number("launch_share", row) >= LAUNCHING ? "launch" : value("bound_by", row));

function boundName(row) {
  const bound = boundOf(row), part = number("of_bound", row);
  if (bound === "launch") return `launch bound: no kernel runs for ${share(number("launch_share", row))} of the time`;
  return bound && Number.isFinite(part) ? `${bound} bound, ${share(part)} of its roof` : "";
}

function rooflineSummary(rows, timed, ceiling, roofs) {
  const where = `${shapeName(rows[0])}, ${conditionName(rows[0])}. `;
  const without = timed.length > rows.length ? ` ${timed.length - rows.length} without matrix products are not drawn.` : "";
  if (!ceiling) return `${where}No ceiling was measured for ${value("dtype", rows[0])} on ${value("device", rows[0])} with ${plural(value("threads", rows[0]) ?? 1, "thread")}: the points have no roof, and what bounds them is not known.${without}`;
  const { peak, moved, ridge } = roofs.at(-1);
  const counts = ["compute", "memory", "launch"].map((kind) => [kind, rows.filter((row) => boundOf(row) === kind).length]).filter(([, count]) => count);
  const best = [...rows].filter((row) => number("of_bound", row) >= 0).sort((a, b) => number("of_bound", b) - number("of_bound", a))[0];
  return `${where}Measured ceilings: ${si(peak, "FLOP/s")} and ${si(moved, "B/s")} of memory, which meet at ${digits(ridge)} FLOP/byte. `
    + `${counts.map(([kind, count]) => `${count} ${kind} bound`).join(", ") || "No bound is known"}.${best === undefined ? "" : ` Nearest its roof: ${candidateName(best)} with ${share(number("of_bound", best))}.`}${without}`;
}

function rooflineCaption(row, roofs) {
  const caches = roofs.length > 1 ? ` Dotted roofs are those of the caches (${roofs.slice(0, -1).map((roof) => `${roof.name.replace("caches ", "")}: ${si(roof.moved, "B/s")}`).join(", ")}); a call whose data fit there is held against them.` : "";
  const training = ["fwd_bwd", "step"].includes(value("mode", row)) ? " The bytes are those of the forward pass alone, so that points of a training step lie too far to the right." : "";
  const launches = D.columns.launch_share ? "" : " Calls that mostly launch are told only where a GPU’s timers were read.";
  return `Bytes are the least that a call must move: inputs, weights and output once. The line is what this machine was measured to do at best, level where products are the limit and rising where memory is.${caches}${training}${launches}`;
}
