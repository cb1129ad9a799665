// Machines: where the page's jobs were measured, and in what those places differ.

const factText = (name, v) => (name === "memory_bytes" ? `${(v / 2 ** 30).toFixed(0)} GiB` : v === true ? "yes" : v);

// What forbids comparing the timings of an environment with those of the first one.
function movesNode(k) {
  const [first, own, moves] = [D.environments[0], D.environments[k], D.moves[k]];
  return node("div", { class: "moves" }, node("h3", {}, node("bdi", {}, own.machine), " against ", node("bdi", {}, first.machine)),
    moves.length ? node("ul", {}, ...moves.map((text) => node("li", {}, node("bdi", {}, text)))) : node("p", { class: "fine" }, "Nothing that bears on a timing."));
}

function drawMachines() {
  const several = D.environments.length > 1;
  $("#machines .body").replaceChildren(
    several ? node("div", {}, node("p", { class: "summary" }, `${D.environments.length} environments: their timings are not ranked against each other. What differs:`), ...D.environments.slice(1, 20).map((_, k) => movesNode(k + 1))) : "",
    node("div", { class: "environments" }, ...D.environments.map((each) => node("dl", { class: "facts-list" }, ...Object.entries(each).filter(([, v]) => v !== "" && v !== null && v !== false && v !== 0)
      .flatMap(([name, v]) => [node("dt", {}, name.replace(/_/g, " ")), node("dd", {}, node("bdi", {}, factText(name, v)))])))));
  $("#machines").hidden = !D.environments.length;
}
