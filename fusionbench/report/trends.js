// Trends: the history of the page's jobs over three or more runs, those that changed most first.

const TRENDS_PAGE = 12; // jobs that are listed at once
let trendsShown = TRENDS_PAGE;

function drawTrends(rows) {
  const view = D.trends, card = $("#trends");
  card.hidden = !view.series;
  if (card.hidden) return;
  const found = amongRows(view, rows).map((i) => view.series[i]), shown = found.slice(0, trendsShown);
  const moved = found.filter((s) => s.changes.length).length, facts = found.filter((s) => s.steps.length).length;
  const dates = view.runs.map((run) => run.measured_at).filter(Boolean), when = dates.length ? `, ${dates[0].slice(0, 10)} to ${dates.at(-1).slice(0, 10)}` : "";
  $(".summary", card).textContent = `${plural(view.runs.length, "run")}${when}; ${plural(found.length, "job")} in more than one of them. ` + (moved ? `${thousands(moved)} took another time from some run on.` : "No change of time beyond the noise was found.") + (facts ? ` Status, memory, FLOPs or kernels changed in ${thousands(facts)}.` : "");
  $("#trends .list").replaceChildren(...shown.map(jobNode));
  const more = $(".more", card);
  more.hidden = shown.length === found.length;
  more.textContent = `Show ${thousands(Math.min(TRENDS_PAGE, found.length - shown.length))} more of ${thousands(found.length - shown.length)}`;
  more.onclick = () => { trendsShown += TRENDS_PAGE; drawTrends(rows); };
  const left = view.all > view.series.length ? `The ${thousands(view.series.length)} that changed most of ${thousands(view.all)}. ` : "";
  $(".caption", card).textContent = `${left}${view.note ? `${sentenceCase(view.note)}. ` : `A change point needs ${view.side} runs of one environment on either side of it and more than ${view.tolerance}. `}A folder of runs has a page of its own: fusionbench history FOLDER --report history.html`;
}
