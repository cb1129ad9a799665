// Drawer: everything that is known about one job: its samples, what it was, how it was measured, how to run it again.

// The samples of a row in ms per call, in the order in which they were taken; null where the page has none.
function samplesOf(row) {
  const s = D.samples;
  if (!s || !s.count || !s.count[row]) return null;
  if (!s.bytes) {
    s.bytes = [decoded(s.low), decoded(s.high)];
    s.first = new Int32Array(s.count.length);
    for (let r = 1; r < s.count.length; r++) s.first[r] = s.first[r - 1] + s.count[r - 1];
  }
  const [low, high] = s.bytes;
  return Float64Array.from({ length: s.count[row] }, (_, k) => {
    const at = s.first[row] + k, zigzag = low[at] | (high[at] << 8);
    return Math.exp(s.step * (s.middle[row] + ((zigzag >>> 1) ^ -(zigzag & 1)))) / 1e6;
  });
}

const roundsOf = (row) => D.samples.rounds[D.samples.round[row]];

const AS = {
  six: (v) => short(v, 6), // the page has them with six digits
  time: (v) => duration(v, 4), count: (v) => (typeof v === "number" ? thousands(v) : String(v)), plain: (v) => String(v), share,
  bytes: (v) => (v < 1024 ? `${thousands(v)} B` : `${tickMib(v / 2 ** 20)} (${thousands(v)} bytes)`), error: (v) => (v === 0 ? "0, exact" : v.toExponential(2)),
  cosine: (v) => (v > 0.9999 ? `1 − ${small(1 - v)}` : v.toFixed(6)), rate: (unit) => (v) => `${digits(v)} ${unit}`, yes: (v) => (v ? "yes" : ""), none: (v) => (v ? thousands(v) : ""),
};

// A system's own sizes are no columns of the page, where they would keep systems from being compared.
function systemOf(row) {
  if (D.systems.row && !D.systems.at) D.systems.at = new Map(D.systems.row.map((r, k) => [r, k]));
  const k = D.systems.at ? D.systems.at.get(row) : undefined;
  return k === undefined ? null : D.systems.sizes[k];
}

const own = (name) => (row) => value(name, row) ?? (systemOf(row) || {})[name] ?? null;

const interval = (row) => (value("low_ms", row) === null ? "" : `${duration(number("low_ms", row), 4)} – ${duration(number("high_ms", row), 4)}, 95 %`);
const headDim = (row) => (own("heads")(row) ? own("width")(row) / own("heads")(row) : null);

// What is shown of a job and in which unit: [label, column or function of the row, how].
const SECTIONS = {
  "Outcome": [["Status", (row) => (isOk(row) ? "" : value("status", row)), AS.plain], ["Step", "phase", AS.plain], ["Reason", "reason", AS.plain]],
  "What was measured": [
    ["Strategy", "name", AS.plain], ["Backend", "backend", AS.plain], ["As candidate", (row) => (value("name", row) === value("strategy", row) ? "" : value("strategy", row)), AS.plain], ["Treatment", "treatment", AS.plain],
    ["Image tokens", "image", AS.count], ["Text tokens", "text", AS.count], ["Image width", own("image_width"), AS.count], ["Text width", own("text_width"), AS.count], ["Batch", "batch", AS.count],
    ["Inner width", own("width"), AS.count], ["Heads", own("heads"), AS.count], ["Head dim", headDim, AS.count], ["Layers", own("depth"), AS.count], ["Feed-forward ratio", "ffn", AS.none], ["Feed-forward width", "hidden", AS.none],
    ["Projector", own("projector"), AS.plain], ["Type embedding", own("type_embedding"), AS.yes], ["Padding", (row) => value("padding", row) || "", share], ["Design", own("design"), AS.plain],
    ["Preset", own("preset"), AS.plain], ["Scale", (row) => (value("scale", row) === "1" ? "" : value("scale", row)), AS.plain], ["On equal", "match", AS.plain], ["Dtype", "dtype", AS.plain], ["Device", "device", AS.plain], ["Mode", (row) => MODES[value("mode", row)] || value("mode", row), AS.plain],
  ],
  "Time per call": [
    ["Median", "median_ms", AS.time], ["Interval of the median", interval, AS.plain], ["Shortest", "min_ms", AS.time], ["90th percentile", "p90_ms", AS.time], ["99th percentile", "p99_ms", AS.time], ["First call of all", "first_call_ms", AS.time],
    ["Hot cache", "hot_ms", AS.time], ["CUDA graph", "graph_ms", AS.time], ["Kernels alone", "kernel_ms", AS.time], ["Host side", "host_ms", AS.time], ["No kernel ran for", "launch_share", share],
    ["Rate of FLOPs", "tflops", AS.rate("TFLOP/s")], ["Rate of bytes", "gb_per_s", AS.rate("GB/s")], ["Least possible time", "bound_ms", AS.time], ["Of what is possible", "of_bound", share], ["Bound by", "bound_by", AS.plain], ["No bound", "no_bound", AS.plain],
  ],
  "Sampling": [
    ["Samples", "samples", AS.count], ["Rounds", "rounds", AS.count], ["Calls per sample", "loops", AS.count], ["Ended", "stop", AS.plain], ["Taken again, throttled", "discarded", AS.none], ["Timer", "timer", AS.plain], ["Cache", "cache", AS.plain], ["Threads", "threads", AS.count], ["Whole job took", (row) => { const v = value("wall_s", row); return v === null ? null : v * 1000; }, duration],
  ],
  "Memory": [["Peak above what rests", (row) => { const v = value("peak_mib", row); return v === null ? null : Math.round(v * 2 ** 20); }, AS.bytes], ["Resting: inputs, weights", "resting_bytes", AS.bytes], ["Keys and values kept", (row) => { const v = value("cache_mib", row); return v === null ? null : Math.round(v * 2 ** 20); }, AS.bytes]],
  "Accuracy": [
    ["Relative L2 error", "rel_l2", AS.error], ["Eager PyTorch's", "yardstick_rel_l2", AS.error], ["Largest error", "max_abs", AS.error], ["Mean error", "mean_abs", AS.error], ["Cosine", "cosine", AS.cosine], ["Reference", "reference", AS.plain],
    ["Gradients, relative L2", "grad_rel_l2", AS.error], ["Gradients, eager PyTorch's", "grad_yardstick_rel_l2", AS.error], ["Gradients, largest error", "grad_max_abs", AS.error], ["Gradients, cosine", "grad_cosine", AS.cosine],
  ],
  "Costs": [
    ["FLOPs", "flops", AS.six], ["FLOPs counted", "counted_flops", AS.six], ["Parameters", "params", AS.count], ["Of these trained", "trainable_params", AS.count], ["Bytes to move at least", "min_bytes", AS.bytes], ["Activations", "activation_bytes", AS.bytes],
    ["Optimiser states", "optimizer_bytes", AS.bytes], ["Launches per call", "launches", AS.count], ["Energy per call", (row) => { const v = value("joules_per_call", row); return v === null ? null : v * 1000; }, AS.rate("mJ")],
  ],
  "Conditions": [["Waited for a core", "contention", share], ["SM clock", "sm_mhz", AS.rate("MHz")], ["Power", "power_watts", AS.rate("W")], ["Temperature", "temperature_c", AS.rate("°C")], ["Throttled", "throttle", AS.plain], ["Others on the GPU", "foreign", AS.none]],
  "Provenance": [["Measured", "started_at", AS.plain], ["Machine", "machine", AS.plain], ["Processor", "hardware", AS.plain], ["PyTorch", "torch", AS.plain], ["Commit", "commit", AS.plain], ["Environment", "environment", AS.plain], ["Hash of the code", "source", AS.plain], ["Kernels that ran", "kernels", AS.plain]],
};

function factsNode(title, entries, row) {
  const facts = entries.map(([label, what, show]) => {
    const v = typeof what === "function" ? what(row) : value(what, row);
    return [label, v === null || v === "" || (typeof v === "number" && Number.isNaN(v)) ? "" : show(v)];
  }).filter(([, text]) => text !== "" && text !== null);
  return facts.length ? node("section", {}, node("h3", {}, title), node("dl", { class: "facts-list" }, ...facts.flatMap(([label, text]) => [node("dt", {}, label), node("dd", {}, node("bdi", {}, text))]))) : null;
}

function notesNode(row) {
  const notes = notesOf(row);
  return notes.length ? node("section", { class: "noted" }, node("h3", {}, plural(notes.length, "warning")), node("ul", {}, ...notes.map((note) => node("li", {}, node("bdi", {}, note))))) : null;
}

const boundsText = (where) => Object.entries(where).map(([name, most]) => `${name} ≤ ${most}`).join(", ") || "any size";

// Which block sizes a call got can depend on sizes that no record holds: then each row that it may have had is shown.
function kernelsNode(row) {
  const ours = (value("kernels", row) || "").split("; ").filter((name) => name.startsWith("triton:"));
  if (!ours.length || !String(value("device", row)).startsWith("cuda")) return null; // elsewhere they are interpreted
  const head = node("h3", {}, "The kernels, compiled");
  if (!D.kernels) return node("section", {}, head, node("p", { class: "fine" }, "Registers, spills and shared memory stand here after ", node("code", {}, "fusionbench inspect --json kernels.json"), " in a report made with ", node("code", {}, "--kernels kernels.json"), "."));
  const rows = D.kernels.lists[D.kernels.list[row]].map((at) => D.kernels.profiles[at]);
  if (!rows.length) return node("section", {}, head, node("p", { class: "fine" }, "The profile has no row of these kernels for the chip that ran them."));
  const line = (p) => node("tr", {}, node("th", { scope: "row" }, node("bdi", {}, p.kernel), node("div", { class: "fine" }, node("bdi", {}, `${p.arch}, ${boundsText(p.where)}`))),
    ...(p.error ? [node("td", { colspan: 4, class: "trouble" }, node("bdi", {}, p.error))] : [
      node("td", { class: "right" }, thousands(p.registers)), node("td", { class: p.spill_bytes ? "right trouble" : "right" }, p.spill_bytes ? `⚠ ${thousands(p.spill_bytes)} B` : "none"),
      node("td", { class: p.shared_bytes > p.shared_limit_bytes ? "right trouble" : "right" }, `${(p.shared_bytes / 1024).toFixed(0)} of ${(p.shared_limit_bytes / 1024).toFixed(0)} KiB`),
      node("td", { class: "fine" }, Object.entries(p.config).map(([name, v]) => `${name} ${v}`).join(", "))]));
  return node("section", { class: "profile" }, head,
    node("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Profile of the kernels" }, node("table", { class: "plain" }, node("thead", {}, node("tr", {}, ...["Kernel", "Registers", "Spilled", "Shared memory", "Blocks"].map((t, i) => node("th", { scope: "col", class: i && i < 4 ? "right" : "" }, t)))), node("tbody", {}, ...rows.map(line)))),
    node("p", { class: "fine" }, `Compiled by Triton ${D.kernels.triton} without running. ${rows.length > ours.length ? "Which of several rows a kernel had depends on sizes that the record does not hold." : ""}`));
}

function samplesText(row, samples) {
  const all = value("samples", row), rounds = roundsOf(row).length, middle = number("median_ms", row);
  const near = samples.filter((v) => Math.abs(v / middle - 1) <= 0.01).length / samples.length;
  const [least, most] = [samples.reduce((a, b) => Math.min(a, b)), samples.reduce((a, b) => Math.max(a, b))];
  return { summary: `${plural(all, "sample")} in ${plural(rounds, "round")}, from ${duration(least, 4)} to ${duration(most, 4)}; ${share(near)} of them within 1 % of the median ${duration(middle, 4)}.`,
    caption: (samples.length < all ? `Shown are ${thousands(samples.length)} of them, evenly spaced. ` : "") + "The line is the median, the band its 95 % interval" + (rounds > 1 ? "; shades tell rounds apart, each a process of its own." : ".") };
}

// Alternate rounds are shaded; the first few are named.
function roundShapes(sizes) {
  let end = 0;
  const spans = sizes.map((size) => [end, (end += size)]);
  const shapes = spans.flatMap(([from, to], k) => (k % 2 ? [{ type: "rect", x0: from + 0.5, x1: to + 0.5, y0: 0, y1: 1, yref: "paper", layer: "below", fillcolor: css("--hover"), line: { width: 0 } }] : []));
  const named = sizes.length > 1 && sizes.length <= (innerWidth < 600 ? 6 : 12);
  const annotations = named ? spans.map(([from, to], k) => ({ x: (from + to + 1) / 2, y: 1, yref: "paper", yanchor: "bottom", text: innerWidth < 600 ? `${k + 1}` : `round ${k + 1}`, showarrow: false, font: { size: 11, color: css("--soft") } })) : [];
  return { shapes, annotations };
}

async function drawSamples(row, chart, samples) {
  await charting();
  const unit = number("median_ms", row) < 1 ? 1000 : 1, y = Array.from(samples, (v) => v * unit), colour = colourOf(code("strategy", row));
  const [least, most] = [Math.min(...y), Math.max(...y)], log = most / least > 4, { shapes, annotations } = roundShapes(roundsOf(row));
  const [middle, low, high] = ["median_ms", "low_ms", "high_ms"].map((name) => number(name, row) * unit);
  const across = { type: "line", x0: 0, x1: 1, xref: "paper" };
  const band = { type: "rect", x0: 0, x1: 1, xref: "paper", y0: low, y1: high, layer: "below", fillcolor: `${colour}30`, line: { width: 0 } };
  const room = Math.max((most - least) * 0.06, most * 0.005);
  const times = { type: "scatter", mode: "markers", x: y.map((_, k) => k + 1), y, marker: { color: colour, size: y.length > 300 ? 4 : 6, opacity: 0.8 }, hovertemplate: `sample %{x}: %{y:.4g} ${unit === 1 ? "ms" : "µs"}<extra></extra>` };
  const spread = y.length < 6 ? [] : [{ type: "violin", y, x0: 0, xaxis: "x2", side: "positive", points: false, spanmode: "hard", line: { color: colour, width: 1.2 }, fillcolor: `${colour}50`, hoverinfo: "skip", width: 1.7 }];
  await Plotly.react(chart, [times, ...spread], layout({
    margin: { l: innerWidth < 600 ? 44 : 64, r: 8, t: annotations.length ? 24 : 8, b: 44 },
    xaxis: { domain: [0, spread.length ? 0.82 : 1], title: { text: "sample, in the order taken" }, range: [0.2, y.length + 0.8], showgrid: false, nticks: 8 },
    xaxis2: { domain: [0.84, 1], visible: false, range: [-0.02, 1] },
    yaxis: { type: log ? "log" : "linear", title: { text: unit === 1000 ? "µs" : "ms" }, ...(log ? { range: logRange(y), ...logTicks(y, (v) => thousands(round(v))) } : { range: [least - room, most + room], nticks: 6 }) },
    shapes: [...shapes, band, { ...across, y0: middle, y1: middle, layer: "below", line: { color: css("--ink"), width: 1.2 } }], annotations,
  }), CONFIG);
}

function openDetail(row) {
  const dialog = $("#detail"), samples = samplesOf(row), told = samples ? samplesText(row, samples) : null;
  const chart = samples ? node("div", { class: "chart", role: "img", "aria-label": `Samples of ${candidateName(row)}: ${told.summary}` }) : null;
  const none = !samples && isOk(row) ? node("p", { class: "fine" }, "This page has too many jobs to carry their samples; a report of fewer has them.") : null;
  $("#detail-title").textContent = candidateName(row);
  $(".body", dialog).replaceChildren(...[
    node("p", { class: "soft" }, `${shapeName(row)}, ${conditionName(row)}`),
    samples ? node("section", { class: "samples" }, node("h3", {}, "Samples over time, and how they are spread"), node("p", { class: "summary" }, told.summary), chart, node("p", { class: "caption" }, told.caption)) : none,
    notesNode(row),
    node("div", { class: "sections" }, ...Object.entries(SECTIONS).map(([title, entries]) => factsNode(title, entries, row))
      .filter(Boolean)),
    kernelsNode(row),
    node("section", {}, node("h3", {}, "Run this job again"), node("code", { class: "command" }, command(row))),
  ].filter(Boolean));
  dialog.showModal();
  dialog.scrollTop = 0;
  return samples ? drawSamples(row, chart, samples) : null;
}
