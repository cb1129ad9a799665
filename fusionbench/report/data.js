// Data: unpack the columns, filter them, and write numbers and names for people.
"use strict";

const $ = (selector, within = document) => within.querySelector(selector);
const DTYPES = ["fp32", "tf32", "fp16", "bf16", "int8"];
const LABELS = {
  strategy: "Strategy", backend: "Backend", dtype: "Dtype", device: "Device", mode: "Mode", status: "Status",
  image: "Image tokens", text: "Text tokens", batch: "Batch", width: "Width", heads: "Heads", image_width: "Image width",
  text_width: "Text width", depth: "Depth", feed_forward: "FFN", projector: "Projector", type_embedding: "Type embedding",
  padding: "Padding", machine: "Machine", environment: "Environment", timer: "Timer", cache: "Cache", threads: "Threads",
  preset: "Preset", scale: "Scale", match: "On equal", design: "Design",
};
const ALWAYS = ["strategy", "backend", "dtype", "device", "mode", "status"];
const SOMETIMES = ["width", "batch", "image", "text", "heads", "image_width", "text_width", "depth", "feed_forward", "projector",
  "type_embedding", "padding", "preset", "scale", "match", "design", "environment", "timer", "cache", "threads"];
const CONDITION = ["dtype", "device", "mode", "width", "batch", "heads", "image_width", "text_width", "depth", "feed_forward", "projector",
  "type_embedding", "padding", "preset", "scale", "match", "design", "environment", "timer", "cache", "threads"];
const FAILED = ["wrong", "error", "oom", "crash", "timeout"];

let D = null; // everything from the file

// The data and plotly are packed: unpacked they would be four times as long, and plotly would be read before the results.
async function inflated(selector) {
  const text = $(selector).textContent;
  $(selector).remove();
  return new Response(new Blob([decoded(text)]).stream().pipeThrough(new DecompressionStream("gzip")));
}

// Reading plotly takes longer than reading 100,000 results: it begins when they can be looked at.
let plotly = null;
const charting = () => (plotly ??= inflated("#plotly").then((unpacked) => unpacked.text()).then((text) => document.head.append(node("script", {}, text))));

// See packing.py: the length of a JSON text, the text, the bytes of the columns.
async function unpack(selector) {
  const bytes = new Uint8Array(await (await inflated(selector)).arrayBuffer());
  let at = 4 + new DataView(bytes.buffer).getUint32(0, true);
  const data = JSON.parse(new TextDecoder().decode(bytes.subarray(4, at)));
  const next = ({ type, length, all }) => {
    if (all !== undefined) return new KINDS[type](length).fill(all);
    const width = Number(type[1]), planes = bytes.subarray(at, (at += length * width));
    return new KINDS[type](width === 1 ? planes.slice().buffer : woven(planes, length, width));
  };
  for (const column of Object.values(data.columns)) Object.assign(column, UNPACK[column.kind](column, column.arrays.map(next)));
  for (const column of Object.values(data.columns)) if (column.of) multiply(column, data.columns[column.of].numbers);
  for (const column of Object.values(data.columns)) if (column.words) spell(column);
  return data;
}

const KINDS = { i1: Int8Array, i2: Int16Array, i4: Int32Array, f4: Float32Array, f8: Float64Array };
const UNPACK = {
  codes: (_, [codes]) => ({ codes }),
  numbers: (_, [numbers]) => ({ numbers }),
  moments: ({ first }, [seconds]) => ({ numbers: Float64Array.from(seconds, (s) => (s < 0 ? NaN : first + s)) }),
  texts: (_, [codes, flat, counts]) => ({ codes, flat, counts }),
};

function woven(planes, length, width) {
  const bytes = new Uint8Array(length * width);
  for (let plane = 0; plane < width; plane++) {
    for (let i = 0, from = plane * length, to = plane; i < length; i++, to += width) bytes[to] = planes[from + i];
  }
  return bytes.buffer;
}

function multiply({ numbers, power }, by) {
  if (power === 1) for (let row = 0; row < numbers.length; row++) numbers[row] *= by[row];
  else for (let row = 0; row < numbers.length; row++) numbers[row] /= by[row];
}

// Keys are spelled when they are asked for: one of a row, or all for a search.
function spell(column) {
  const ends = new Int32Array(column.counts.length);
  column.counts.forEach((count, i) => { ends[i] = (i ? ends[i - 1] : 0) + count; });
  column.text = (c) => Array.from(column.flat.subarray(c ? ends[c - 1] : 0, ends[c]), (word) => column.words[word]).join("");
  let all = null;
  Object.defineProperty(column, "values", { get: () => (all ??= Array.from(ends, (_, c) => column.text(c))) });
}

function decoded(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

function value(name, row) {
  const column = D.columns[name];
  if (!column) return null;
  if (column.numbers) return Number.isNaN(column.numbers[row]) ? null : column.kind === "moments" ? moment(column.numbers[row]) : known(column.numbers[row]);
  const code = column.codes[row];
  return code < 0 ? null : column.text ? column.text(code) : column.values[code];
}

const moment = (seconds) => new Date(seconds * 1000).toISOString().replace(".000", "");
// A column's floats hold whole numbers to 2 ** 17 and five digits of others: what is behind them is the float's own.
const known = (v) => (Number.isInteger(v) && Math.abs(v) <= 131072 ? v : Number(v.toPrecision(5)));
const number = (name, row) => (D.columns[name] ? D.columns[name].numbers[row] : NaN);
const code = (name, row) => D.columns[name].codes[row];
const isOk = (row) => D.ok[row] === 1;

function prepare(data) {
  D = data;
  const status = D.columns.status;
  const good = status.values.indexOf("ok");
  const median = D.columns.median_ms?.numbers;
  D.ok = new Uint8Array(D.rows);
  if (median) for (let row = 0; row < D.rows; row++) D.ok[row] = status.codes[row] === good && median[row] > 0 ? 1 : 0;
  D.facets = [...ALWAYS, ...SOMETIMES.filter((name) => D.columns[name].values.length > 1)];
  D.order = Object.fromEntries(D.facets.map((name) => [name, sortedCodes(name)]));
  D.varying = distinguishing().filter((name) => !["dtype", "device", "mode"].includes(name));
}

// The columns that tell conditions apart: heads that always follow the width would say nothing.
function distinguishing() {
  const seen = new Map(), none = D.columns.condition.codes;
  for (let row = 0; row < D.rows; row++) if ((row === 0 || none[row] !== none[row - 1]) && !seen.has(none[row])) seen.set(none[row], row);
  const rows = [...seen.values()];
  let signatures = rows.map(() => ""), count = Math.min(1, rows.length);
  return CONDITION.filter((name) => {
    const finer = rows.map((row, i) => `${signatures[i]},${code(name, row)}`);
    const distinct = new Set(finer).size;
    if (distinct === count) return false;
    [signatures, count] = [finer, distinct];
    return true;
  });
}

function sortedCodes(name) {
  const values = D.columns[name].values;
  const rank = (v) => (name === "dtype" && DTYPES.includes(v) ? DTYPES.indexOf(v) : v);
  const order = values.map((_, c) => c);
  return ["strategy", "backend"].includes(name) ? order
    : order.sort((a, b) => (rank(values[a]) > rank(values[b]) ? 1 : rank(values[a]) < rank(values[b]) ? -1 : 0));
}

// A row that misses one facet still counts on that facet's chips: they say what a click would add.
function filterRows(chosen) {
  const active = D.facets.filter((name) => chosen[name] && chosen[name].size);
  const counts = Object.fromEntries(D.facets.map((name) => [name, new Int32Array(D.columns[name].values.length)]));
  const masks = active.map((name) => {
    const mask = new Uint8Array(D.columns[name].values.length);
    D.columns[name].values.forEach((v, c) => { if (chosen[name].has(String(v))) mask[c] = 1; });
    return mask;
  });
  const activeCodes = active.map((name) => D.columns[name].codes);
  const allCodes = D.facets.map((name) => D.columns[name].codes);
  const allCounts = D.facets.map((name) => counts[name]);
  const rows = new Int32Array(D.rows);
  let kept = 0;
  for (let row = 0; row < D.rows; row++) {
    let missed = -1, misses = 0;
    for (let k = 0; k < masks.length && misses < 2; k++) {
      const c = activeCodes[k][row];
      if (c < 0 || !masks[k][c]) { misses++; missed = k; }
    }
    if (misses === 0) {
      rows[kept++] = row;
      for (let k = 0; k < allCodes.length; k++) if (allCodes[k][row] >= 0) allCounts[k][allCodes[k][row]]++;
    } else if (misses === 1) {
      const c = activeCodes[missed][row];
      if (c >= 0) counts[active[missed]][c]++;
    }
  }
  return { rows: rows.subarray(0, kept), counts };
}

function node(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, content] of Object.entries(attributes)) {
    if (name === "class") element.className = content;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), content);
    else if (content !== null && content !== undefined && content !== false) element.setAttribute(name, content === true ? "" : content);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined).map((c) => (c instanceof Node ? c : String(c))));
  return element;
}

// Long names break after ":", "_" and before the backend, not in the middle of a word.
const breakable = (name) => node("bdi", {}, ...cut(String(name), 100).split(/(?<=[:_]|·\u00a0)/).flatMap((part) => [part, node("wbr")]));

const thousands = (n) => n.toLocaleString("en-US");
const plural = (n, word) => `${thousands(n)} ${word}${n === 1 ? "" : "s"}`;

function digits(v, n = 3) {
  if (v === null || !Number.isFinite(v)) return "–";
  if (v === 0) return "0";
  const decimals = Math.max(0, n - 1 - Math.floor(Math.log10(Math.abs(v))));
  return decimals > 8 ? v.toExponential(n - 1) : v.toLocaleString("en-US", { minimumFractionDigits: Math.min(decimals, 8), maximumFractionDigits: Math.min(decimals, 8) });
}

function duration(ms, n = 3) {
  if (ms === null || !Number.isFinite(ms)) return "–";
  if (ms < 1) return `${digits(ms * 1000, n)}\u00a0µs`;
  return ms < 1000 ? `${digits(ms, n)}\u00a0ms` : `${digits(ms / 1000, n)}\u00a0s`;
}

const share = (v) => (Number.isFinite(v) && v !== null ? `${(100 * v).toFixed(1)} %` : "–");
const small = (v) => (v === null || !Number.isFinite(v) ? "–" : v === 0 ? "0" : v.toExponential(1));

const cut = (text, limit) => (text.length > limit ? `${text.slice(0, limit - 1)}…` : text);

// plotly reads <b>, <a> and &…; in its texts, and does not break lines.
const inert = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const plain = (text) => inert(cut(String(text), 80));
const quote = (text) => (/^[A-Za-z0-9_@%+=:,./-]+$/.test(text) ? text : `'${text.replace(/'/g, "'\"'\"'")}'`);

function jobKey(row) {
  const treatment = value("treatment", row);
  return [value("name", row), value("backend", row), ...(treatment ? [treatment] : []), value("case", row)].join("/");
}
const command = (row) => `${D.command} --job ${quote(jobKey(row))}`;
const shapeName = (row) => `${thousands(value("image", row))} image × ${thousands(value("text", row))} text tokens`;

const MODES = {
  fwd: "forward", fwd_bwd: "forward + backward", step: "training step", decode: "decode, cached",
  decode_uncached: "decode without the image's cache", cached: "forward, context cached",
};
const mainCondition = (row) => [value("dtype", row), value("device", row), MODES[value("mode", row)] || value("mode", row)];

function otherConditions(row) {
  const parts = [];
  for (const name of D.varying) {
    const v = value(name, row);
    if (v === null || v === "") continue;
    if (name === "environment") parts.push(value("machine", row) ?? v);
    else if (["projector", "timer", "cache", "preset", "design"].includes(name)) parts.push(v);
    else if (name === "match") parts.push(v.replace("=", " as ").replace("params", "parameters").replace("flops", "FLOPs"));
    else if (name === "type_embedding") { if (v) parts.push("type embedding"); }
    else parts.push(`${LABELS[name].toLowerCase()} ${v}`);
  }
  return parts;
}

const conditionName = (row) => [...mainCondition(row), ...otherConditions(row)].join(" · ");
