// Pictures: every chart as it is drawn now, with the title and the legend that the page has around it.

const PICTURE = { width: 1100, head: 76 };

function figure(card, chart) {
  const about = $(".summary", card)?.textContent ?? "";
  const title = {
    text: plain($("h2", card).textContent), subtitle: { text: inert(cut(about, 150)), font: { size: 12.5, color: css("--soft") } },
    x: 0, xref: "container", xanchor: "left", y: 1, yref: "container", yanchor: "top", pad: { t: 14, l: 20 }, font: { size: 18, color: css("--ink") },
  };
  const named = chart.data.filter((trace) => trace.name).length > 1;
  const { width: _, height: __, autosize: ___, ...layout } = chart.layout;
  return {
    data: chart.data.map((trace) => ({ showlegend: Boolean(trace.name), ...trace })),
    layout: { ...layout, title, showlegend: named, legend: { font: { color: css("--ink") } }, paper_bgcolor: css("--card"), margin: { ...layout.margin, t: PICTURE.head } },
  };
}

// What `fusionbench report --static` asks for: [name, data URL] of all that is in sight.
window.fusionbenchPictures = async (format) => {
  const found = [];
  for (const chart of document.querySelectorAll("main .chart")) {
    const card = chart.closest("section[id]");
    if (!card || !chart.data || !chart.checkVisibility()) continue;
    const nth = found.filter(([name]) => name.replace(/-\d+$/, "") === card.id).length;
    const height = chart.clientHeight + PICTURE.head;
    found.push([nth ? `${card.id}-${nth + 1}` : card.id, await Plotly.toImage(figure(card, chart), { format, width: PICTURE.width, height, scale: format === "png" ? 2 : 1 })]);
  }
  return found;
};
