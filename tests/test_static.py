"""Charts as files: what the page draws is what is written, and without the extra or a browser one line says so."""

from __future__ import annotations

import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fusionbench.cli import app
from fusionbench.errors import FusionbenchError
from fusionbench.report import page, static
from fusionbench.report.frame import frame
from tests.browser import chromium
from tests.hostile import hostile_environments, hostile_records
from tests.synthetic import ENVIRONMENTS, records

in_a_browser = pytest.mark.skipif(chromium() is None, reason="no chromium on the path (set FUSIONBENCH_CHROMIUM)")


def pictures_of(path: Path, folder: Path) -> list[str]:
    """In a process of its own: choreographer leaves threads behind that warn when pytest ends."""
    code = "import sys; from pathlib import Path; from fusionbench.report.static import write; "
    code += "print(*[p.name for p in write(Path(sys.argv[1]), Path(sys.argv[2]))])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(folder)], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@in_a_browser
@pytest.mark.browser
def test_every_chart_in_sight_is_written_as_svg_and_png(tmp_path: Path) -> None:
    pytest.importorskip("choreographer", reason="pip install fusionbench[static]")
    path = page.write(tmp_path / "r.html", frame(records(5000), ENVIRONMENTS), ENVIRONMENTS)
    names = pictures_of(path, tmp_path / "charts")
    assert {"latency.svg", "ranking.svg", "pareto.svg", "error.svg"} <= set(names)
    assert {Path(name).stem for name in names if name.endswith("svg")} == {
        Path(name).stem for name in names if name.endswith("png")
    }
    for name in names:
        data = (tmp_path / "charts" / name).read_bytes()
        if name.endswith("svg"):
            texts = "".join(ET.fromstring(data).itertext())  # noqa: S314 - our own
            assert texts
        else:
            assert data[:8] == b"\x89PNG\r\n\x1a\n"
            assert struct.unpack(">I", data[16:20])[0] == 2200
    latency = "".join(ET.parse(tmp_path / "charts" / "latency.svg").getroot().itertext())  # noqa: S314
    assert "Latency against length" in latency
    assert "concat_attention" in latency  # the legend, which the page has beside the chart
    assert "text tokens" in latency


@in_a_browser
@pytest.mark.browser
def test_hostile_names_stay_text_in_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("choreographer", reason="pip install fusionbench[static]")
    environments = hostile_environments()
    path = page.write(tmp_path / "r.html", frame(hostile_records(), environments), environments)
    for name in pictures_of(path, tmp_path / "charts"):
        if name.endswith("svg"):
            tags = {
                each.tag.rpartition("}")[2]
                for each in ET.parse(tmp_path / "charts" / name).iter()  # noqa: S314
            }
            assert not tags & {"script", "a", "image", "foreignObject"}, name


def test_without_the_extra_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "choreographer.browsers.chromium", None)
    with pytest.raises(
        FusionbenchError, match=r"^--static needs the package 'choreographer': pip install 'fusionbench\[static\]'$"
    ):
        static.refuse_missing()
    done = CliRunner().invoke(app, ["report", str(tmp_path / "none"), "--static", str(tmp_path / "charts")])
    assert "choreographer" in str(done.exception)
    assert not (tmp_path / "charts").exists()


def test_without_a_browser_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("choreographer", reason="pip install fusionbench[static]")
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chromium")
    with pytest.raises(
        FusionbenchError, match=r"needs Chromium or Chrome, and '/nowhere/chromium' is none: .*BROWSER_PATH"
    ):
        static.refuse_missing()
