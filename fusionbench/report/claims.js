// Claims: what is commonly said about fusion, with what checking it found.

const SHOWN_FIGURES = 4; // a claim that was tried at many shapes has a dozen

const figureNode = ([amount, what, interval]) => node("div", { class: "figure" },
  node("dt", {}, amount), node("dd", {}, node("bdi", {}, what), interval ? node("span", { class: "soft" }, ` ${interval}`) : null));

function claimNode(entry) {
  const [first, rest] = [entry.figures.slice(0, SHOWN_FIGURES), entry.figures.slice(SHOWN_FIGURES)];
  const remarks = [["", entry.condition], ["fine", entry.note], ["trouble", entry.error]].filter(([, text]) => text);
  return node("article", { class: "claim" },
    node("p", { class: "verdict" }, node("span", { class: "soft" }, entry.id), node("strong", { "data-outcome": entry.outcome }, entry.outcome)),
    node("div", { class: "statement" },
      node("h3", {}, node("bdi", {}, `“${entry.said}”`)), ...remarks.map(([kind, text]) => node("p", { class: kind }, node("bdi", {}, text))),
      node("details", { class: "fine" }, node("summary", {}, "How this is checked"), node("p", {}, "Checked: ", node("bdi", {}, entry.method), "."), node("p", {}, "Said in ", node("bdi", {}, entry.source), "."))),
    node("div", { class: "figures" }, first.length ? node("dl", {}, ...first.map(figureNode)) : null,
      rest.length ? node("details", {}, node("summary", { class: "fine" }, `${plural(rest.length, "more figure")}`), node("dl", {}, ...rest.map(figureNode))) : null));
}

function drawClaims() {
  $("#claims .body").replaceChildren(...D.ledgers.map((ledger) => node("div", { class: "ledger" },
    node("p", { class: "summary" }, node("strong", {}, plural(ledger.entries.length, "claim")), ...Object.entries(ledger.counts).flatMap(([outcome, count]) => [" · ", node("span", { class: "tally" }, `${outcome} ${count}`)])),
    node("p", { class: "fine" }, node("bdi", {}, ledger.facts.join(" · "))),
    ...ledger.entries.map(claimNode))));
}
