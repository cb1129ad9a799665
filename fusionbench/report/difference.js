// Difference: the second of two runs against the first, job by job, as a forest plot; what is judged was judged in Python.

const VERDICTS = {
  slower: ["▲", "bad"], broken: ["✗", "bad"], missing: ["−", "bad"], faster: ["▼", "good"], fixed: ["✓", "good"],
  same: ["=", "soft"], unclear: ["?", "soft"], new: ["+", "soft"],
};
const WORSE = ["slower", "broken", "missing"], BETTER = ["faster", "fixed"];
const FOREST_PAGE = 40; // jobs that are listed at once
const REACH = 20; // ratios beyond this, or below its inverse, are drawn at the edge with an arrow

const isWorse = (i) => WORSE.includes(D.difference.verdict[i]) || D.difference.changes[i].some(([, worse]) => worse);
const isBetter = (i) => BETTER.includes(D.difference.verdict[i]) || D.difference.changes[i].some(([, worse]) => !worse);
const KEPT = {
  "": ["All jobs", () => true], changed: ["Changed", (i) => isWorse(i) || isBetter(i) || D.difference.verdict[i] === "new"],
  slower: ["Only regressions", isWorse], faster: ["Only improvements", isBetter],
};
let forestShown = FOREST_PAGE;

const jobText = (view, i) => (view.row[i] < 0 ? view.key[i] : jobKey(view.row[i]));
const ratioAt = (i) => D.difference.ratio[i];

// The jobs that the page's filters leave, by their rows; one that the table does not have is kept while nothing is filtered.
function amongRows(view, rows) {
  const wanted = new Uint8Array(D.rows);
  for (const row of rows) wanted[row] = 1;
  const whole = rows.length === D.rows;
  return view.row.map((_, i) => i).filter((i) => (view.row[i] < 0 ? whole : wanted[view.row[i]] === 1));
}

// What is worse first: jobs that broke, then by ratio, then what has no ratio.
function forestOrder(kept) {
  const sign = state.diff === "faster" ? 1 : -1;
  const rank = (i) => (D.difference.verdict[i] === "broken" ? 0 : ratioAt(i) !== null ? 1 : WORSE.includes(D.difference.verdict[i]) ? 0.5 : 2);
  const size = (i) => (state.diff === "changed" ? -Math.abs(Math.log(ratioAt(i))) : sign * ratioAt(i));
  return [...kept].sort((a, b) => rank(a) - rank(b) || (rank(a) === 1 ? size(a) - size(b) : a - b));
}

// One scale for all rows; at least a twentieth to either side, so that noise looks small.
function forestScale(kept) {
  const ends = kept.filter((i) => ratioAt(i) !== null).flatMap((i) => [D.difference.low[i], D.difference.high[i]]).filter((v) => v > 0);
  const reach = Math.min(REACH, Math.max(1.05, ...ends.map((v) => Math.max(v, 1 / v)))) * 1.02;
  const at = (ratio) => 50 + (50 * Math.log(Math.min(reach, Math.max(1 / reach, ratio)))) / Math.log(reach);
  const steps = reach < 1.12 ? [0.9, 0.95, 1.05, 1.1] : reach < 1.45 ? [0.8, 0.9, 1.1, 1.25] : reach < 2.6 ? [0.5, 0.75, 1.5, 2] : [0.1, 0.2, 0.5, 2, 5, 10];
  return { reach, at, ticks: [1, ...steps].filter((v) => at(v) > 6 && at(v) < 94) };
}

const upRight = (x, kind) => svg("line", { x1: `${x}%`, x2: `${x}%`, y1: 0, y2: "100%", class: kind });
const MARKS = { slower: "M-5 4.500h10l-5-9z", faster: "M-5-4.500h10l-5 9z", same: "M-4-4h8v8h-8z", unclear: "M0-4.500l4.500 4.500-4.500 4.500-4.500-4.500z" };

function forestMark(i, scale) {
  const { low, high, verdict } = D.difference;
  const [from, to, middle] = [low[i], high[i], ratioAt(i)].map(scale.at), kind = VERDICTS[verdict[i]][1];
  const beyond = [[high[i] > scale.reach, "M-7-4l6 4-6 4z", "100%"], [low[i] < 1 / scale.reach, "M7-4l-6 4 6 4z", "0%"]].filter(([is]) => is).map(([, d, x]) => svg("svg", { x, y: "50%", overflow: "visible" }, svg("path", { d, class: `arrow ${kind}` })));
  return svg("svg", { class: "forest-row", "aria-hidden": "true", "data-verdict": verdict[i] },
    svg("rect", { x: `${scale.at(1 / (1 + D.difference.tolerance))}%`, width: `${scale.at(1 + D.difference.tolerance) - scale.at(1 / (1 + D.difference.tolerance))}%`, y: 0, height: "100%", class: "tolerated" }), ...scale.ticks.map((v) => upRight(scale.at(v), v === 1 ? "even" : "tick")),
    svg("line", { x1: `${from}%`, x2: `${to}%`, y1: "50%", y2: "50%", class: `bar ${kind}` }), svg("svg", { x: `${middle}%`, y: "50%", overflow: "visible" }, svg("path", { d: MARKS[verdict[i]] || MARKS.unclear, class: `point ${kind}${verdict[i] === "unclear" ? " open" : ""}` })), ...beyond);
}

function forestRow(i, scale) {
  const view = D.difference, [symbol, kind] = VERDICTS[view.verdict[i]], timed = ratioAt(i) !== null;
  const [strategy, backend, ...rest] = jobText(view, i).split("/");
  const name = backend === undefined ? breakable(strategy) : node("span", {}, breakable(`${strategy} · ${backend}`));
  const changes = view.changes[i].map(([text, worse]) => node("div", { class: worse ? "fine slower" : "fine faster" }, node("bdi", {}, `${worse ? "▲" : "▼"} ${text}`)));
  const span = timed ? `${duration(view.base_ns[i] / 1e6, 4)} → ${duration(view.head_ns[i] / 1e6, 4)}` : "–";
  return node("tr", {}, node("th", { scope: "row" }, view.row[i] < 0 ? name : node("button", { type: "button", class: "link", onclick: () => openDetail(view.row[i]) }, name), node("div", { class: "fine" }, node("bdi", {}, cut(rest.join("/"), 300)))),
    node("td", { class: `verdict ${kind}` }, node("span", { class: "mark", "aria-hidden": "true" }, symbol), " ", view.verdict[i], node("div", { class: "fine" }, node("bdi", {}, cut(view.reason[i], 300))), ...changes),
    node("td", { class: timed ? "right span" : "right none" }, span),
    node("td", { class: timed ? "right ratio" : "right none" }, timed ? node("strong", {}, ratioAt(i).toFixed(3)) : "–", timed ? node("div", { class: "fine" }, `${view.low[i].toFixed(3)} – ${view.high[i] < 1000 ? view.high[i].toFixed(3) : "∞"}`) : null),
    node("td", { class: timed ? "forest" : "forest none" }, timed ? forestMark(i, scale) : ""));
}

const forestAxis = (scale) => svg("svg", { class: "forest-axis", "aria-hidden": "true" }, ...scale.ticks.map((v) => svg("text", { x: `${scale.at(v)}%`, y: "12", "text-anchor": "middle" }, v === 1 ? "1" : `${v} ×`)));

function drawForest(kept) {
  const shown = forestOrder(kept).slice(0, forestShown), scale = forestScale(kept);
  $("#difference .forest-wrap").replaceChildren(shown.length ? node("table", { class: "plain" },
    node("thead", {}, node("tr", {}, ...["Job", "Verdict", "Base → head", "Ratio"].map((t, k) => node("th", { scope: "col", class: k > 1 ? "right" : "" }, t)), node("th", { scope: "col", class: "forest" }, node("span", { class: "ends" }, node("span", {}, "◂ faster"), node("span", {}, "slower ▸")), forestAxis(scale)))),
    node("tbody", {}, ...shown.map((i) => forestRow(i, scale)))) : node("p", { class: "soft" }, "No job of this kind under these filters."));
  const more = $("#difference .more");
  more.hidden = shown.length === kept.length;
  more.textContent = `Show ${thousands(Math.min(FOREST_PAGE, kept.length - shown.length))} more of ${thousands(kept.length - shown.length)}`;
}

// Why jobs have no verdict by time: each reason once, with how many it is said of.
function drawUncompared(among) {
  const view = D.difference, why = (i) => view.reason[i] || (view.verdict[i] === "unclear" ? "the intervals allow both no change and one that matters" : "");
  const reasons = groupBy(among.filter((i) => why(i) && ["unclear", "same"].includes(view.verdict[i])), why);
  const lines = [...[...reasons.values()].sort((a, b) => b.length - a.length).slice(0, 40).map((group) => [plural(group.length, "job"), why(group[0])]), ...view.notes.slice(0, 40).map((note) => ["", note])];
  const box = $("#difference .uncompared");
  box.hidden = !lines.length;
  box.replaceChildren(node("summary", {}, "Why some are not compared, or not sure"), node("table", { class: "plain" }, node("tbody", {}, ...lines.map(([count, text]) => node("tr", {}, node("td", { class: "right count" }, count), node("td", {}, node("bdi", {}, text)))))));
}

function sideText(side) {
  return [side.name, side.machine, side.commit ? `commit ${side.commit.slice(0, 10)}${side.dirty ? "+" : ""}` : "", side.measured_at.slice(0, 16).replace("T", " ")].filter(Boolean).join(" · ");
}

function differenceSummary(among) {
  const counts = groupBy(among, (i) => D.difference.verdict[i]);
  const told = Object.keys(VERDICTS).filter((verdict) => counts.has(verdict)).map((verdict) => `${VERDICTS[verdict][0]}\u00a0${thousands(counts.get(verdict).length)}\u00a0${verdict}`);
  const facts = among.filter((i) => D.difference.changes[i].length).length;
  return `${plural(among.length, "job")}: ${told.join(", ")}${facts ? `; facts that no noise moves changed in ${thousands(facts)}` : ""}.`;
}

function drawDifference(rows) {
  const view = D.difference, card = $("#difference");
  card.hidden = !view.row;
  if (card.hidden) return;
  if (!Object.hasOwn(KEPT, state.diff)) state.diff = "";
  const among = amongRows(view, rows), chosen = KEPT[state.diff][1];
  const worse = among.filter(isWorse).length, better = among.filter(isBetter).length;
  const unsure = among.some((i) => view.verdict[i] === "unclear");
  $("h2", card).textContent = `Head against base: ${worse ? `${plural(worse, "job")} got worse` : better ? `nothing got worse, ${plural(better, "job")} better` : unsure ? "no clear change" : "no change"}`;
  $(".summary", card).textContent = differenceSummary(among);
  $(".sides", card).replaceChildren(...[["Base", view.base], ["Head", view.head]].flatMap(([label, side]) => [node("dt", {}, label), node("dd", {}, node("bdi", {}, sideText(side)))]));
  const apart = $(".apart", card);
  apart.hidden = !view.differences.length;
  apart.replaceChildren(node("strong", {}, "Times are not compared: "), node("bdi", {}, view.differences.slice(0, 20).map((text) => cut(text, 160)).join("; ")));
  $(".kinds", card).replaceChildren(...Object.entries(KEPT).map(([name, [label, is]]) => node("button", { type: "button", class: "chip", "data-diff": name || "all", "aria-pressed": String(state.diff === name), onclick: () => { state.diff = name; forestShown = FOREST_PAGE; writeFragment(); drawDifference(rows); $(`[data-diff="${name || "all"}"]`, card).focus(); } }, label, node("span", { class: "count" }, thousands(among.filter(is).length)))));
  const kept = among.filter(chosen);
  drawForest(kept);
  $(".more", card).onclick = () => { forestShown += FOREST_PAGE; drawForest(kept); };
  drawUncompared(among);
}
