"""The plot of a study of scale: `python -m tests.perf.scale_plot results/scale/epyc-2core.json docs/pictures`."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionbench.report import static
from tests.perf import scale_model as model

PLOTLY = Path(static.__file__).with_name("plotly-cartesian.min.js")
SIZE = {"width": 860, "height": 940}
INK, SOFT, GRID = "#1b1c1e", "#55585e", "#e3e5e8"
FONT = "system-ui, 'DejaVu Sans', Arial, sans-serif"
SWEEP, COUNT = "advice", "100000"  # of the second panel

# Okabe & Ito (2008).
COLOURS = {"1000": "#D55E00", "10000": "#009E73", "100000": "#0072B2"}
WAYS = {"one driver": "solid", "slices": "dot"}
CAUSES = {
    "measuring": "#D9DCE0",
    model.STARTING: "#CC79A7",
    model.PLANNING: "#E69F00",
    model.DISPATCH: "#F0E442",
    model.PYTHON: "#56B4E9",
    model.RAY: "#0072B2",
    model.LOOKS: "#1B1C1E99",
    model.STORE: "#009E73",
    model.TAIL: "#D55E00",
}

PAGE = """<!doctype html><meta charset="utf-8"><title>scale</title><script>{plotly}</script><script>
const figure = {figure};
window.fusionbenchReady = window.fusionbenchDrawn = 1;
window.fusionbenchPictures = async (format) =>
  [["scale", await Plotly.toImage(figure, {{ format, ...{size}, scale: format === "png" ? 1.5 : 1 }})]];
</script>"""


def draw(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write scale.svg and scale.png; raises FusionbenchError without a browser."""
    static.refuse_missing()
    text = json.dumps(figure(found)).replace("<", "\\u003c")
    with tempfile.TemporaryDirectory() as made:
        page = Path(made) / "scale.html"
        page.write_text(PAGE.format(plotly=PLOTLY.read_text(), figure=text, size=json.dumps(SIZE)))
        return static.write(page, folder)


def figure(found: Mapping[str, Any]) -> dict[str, Any]:
    """Two panels over the number of slots: efficiency, and where the slots' time goes."""
    return {
        "data": [*_efficiency(found["curves"][SWEEP]), *_stations(found["curves"][SWEEP]["one driver"][COUNT])],
        "layout": _layout(found),
    }


def _efficiency(curves: Mapping[str, Any]) -> list[dict[str, Any]]:
    traces: list[dict[str, Any]] = []
    for way, dash in WAYS.items():
        for count, colour in COLOURS.items():
            points = {int(slots): each for slots, each in curves[way][count]["efficiency"].items()}
            low, middle, high = ([100 * band[end] for band in points.values()] for end in range(3))
            slots = list(points)
            traces.append({
                "x": slots + slots[::-1], "y": high + low[::-1], "fill": "toself", "fillcolor": colour + "26",
                "line": {"width": 0}, "mode": "lines", "showlegend": False, "hoverinfo": "skip",
            })  # fmt: skip
            traces.append({
                "x": slots, "y": middle, "mode": "lines+markers", "name": f"{way}, {int(count):,} jobs",
                "line": {"color": colour, "dash": dash, "width": 2.5}, "marker": {"size": 6, "color": colour},
            })  # fmt: skip
    slots = [1, 2, 3, 5, 10, 20, 50, 100, 300, 1000, 3000]
    traces.append({
        "x": slots, "y": [100 / each for each in slots], "mode": "lines", "name": "one machine, the others idle",
        "line": {"color": SOFT, "dash": "dash", "width": 1.5, "shape": "spline"},
    })  # fmt: skip
    return traces


def _stations(curve: Mapping[str, Any]) -> list[dict[str, Any]]:
    lost = {int(slots): shares for slots, shares in curve["lost"].items()}
    slots = list(lost)
    shares = {cause: [100 * each[cause] for each in lost.values()] for cause in CAUSES if cause != "measuring"}
    measuring = [100 - sum(each) for each in zip(*shares.values(), strict=True)]
    areas = [
        {
            "x": slots, "y": values, "stackgroup": "time", "mode": "lines", "name": cause, "legend": "legend2",
            "line": {"width": 0.5, "color": "#ffffff"}, "fillcolor": CAUSES[cause], "xaxis": "x2", "yaxis": "y2",
        }
        for cause, values in {"measuring": measuring, **shares}.items()
    ]  # fmt: skip
    busy = [100 * (each[model.PYTHON] + each[model.RAY] + each[model.LOOKS]) for each in curve["busy"].values()]
    thread = {
        "x": slots, "y": busy, "mode": "lines+markers", "name": "driver computes (once planned)", "legend": "legend2",
        "line": {"color": INK, "width": 2.5}, "marker": {"size": 6, "color": INK}, "xaxis": "x2", "yaxis": "y2",
    }  # fmt: skip
    return [*areas, thread]


def _layout(found: Mapping[str, Any]) -> dict[str, Any]:
    ticks = [1, 3, 10, 30, 100, 300, 1000, 3000]
    axis = {
        "gridcolor": GRID, "linecolor": SOFT, "ticks": "outside", "tickcolor": SOFT, "zeroline": False, "showline": True,
    }  # fmt: skip
    slots = {
        **axis,
        "type": "log",
        "tickvals": ticks,
        "ticktext": [f"{each:,}" for each in ticks],
        "range": [-0.03, 3.52],
    }
    share = {**axis, "ticksuffix": " %", "range": [0, 103], "dtick": 25}
    mean = found["sweeps"][SWEEP]["mean_s"]
    return {
        "font": {"family": FONT, "size": 14, "color": INK},
        "paper_bgcolor": "#ffffff", "plot_bgcolor": "#ffffff",
        "margin": {"l": 70, "r": 20, "t": 56, "b": 72},
        "xaxis": {**slots, "domain": [0, 0.66], "anchor": "y"},
        "yaxis": {**share, "domain": [0.57, 1], "anchor": "x"},
        "xaxis2": {**slots, "domain": [0, 0.66], "anchor": "y2", "title": {"text": "device slots", "font": {"size": 14}}},
        "yaxis2": {**share, "domain": [0, 0.43], "anchor": "x2"},
        "legend": {"x": 0.69, "y": 1, "yanchor": "top", "font": {"size": 13}},
        "legend2": {"x": 0.69, "y": 0.43, "yanchor": "top", "font": {"size": 13}, "traceorder": "reversed"},
        "annotations": [
            _head(1.0, "Simulated efficiency: time spent measuring ÷ time of all slots"),
            _head(0.43, f"Where the slots' time goes: one driver, {int(COUNT):,} jobs"),
            {
                "xref": "paper", "yref": "paper", "x": 0.69, "y": 0.57, "xanchor": "left", "yanchor": "bottom",
                "align": "left", "showarrow": False, "font": {"size": 12, "color": SOFT},
                "text": f"Costs of CPU jobs<br>({mean:.1f} s each on average);<br>not measured on GPUs.<br>Bands: 5 drawn sweeps.",
            },
        ],
        "shapes": [{
            "type": "line", "xref": "x domain", "yref": "y", "x0": 0, "x1": 1, "y0": 50, "y1": 50,
            "line": {"color": SOFT, "width": 1},
        }],
    }  # fmt: skip


def _head(y: float, text: str) -> dict[str, Any]:
    return {
        "xref": "paper", "yref": "paper", "x": 0, "y": y, "yshift": 12, "xanchor": "left", "yanchor": "bottom",
        "showarrow": False, "text": f"<b>{text}</b>", "font": {"size": 15},
    }  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    path, folder = map(Path, arguments)
    for written in draw(json.loads(path.read_text()), folder):
        sys.stdout.write(f"{written}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
