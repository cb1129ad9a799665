"""A module imports only from lower layers, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fusionbench"

# The layers of DESIGN.md, lowest first; a package stands for all of its modules.
LAYERS = (
    ("errors", "exits", "outlet", "stopping", "spec", "stats", "cost", "collector", "device_loss", "places"),
    (
        *("record", "delta", "turns", "presets", "suite", "disk", "generation", "nvml", "revisions"),
        *("slices", "estimate", "remote"),
    ),
    (
        *("shard", "store", "survey", "compare", "environment", "ledger", "rounds", "remarks"),
        *("fitness", "device_lock", "roofline", "paired", "facts", "standings"),
    ),
    ("baseline", "comparison", "judge", "inspection", "notices", "mirror", "staging"),
    ("change_points", "history"),
    ("timeline", "wording", "fitting", "live"),
    ("adapt", "prune", "registry", "attention", "parts", "streams", "blocks", "joint", "vectors", "int8"),
    ("strategies", "backends", "inputs"),
    ("footprint", "matching", "slicing", "plan", "meters", "subject", "verify", "settings", "honesty"),
    ("measuring", "schedule", "ceilings", "calibration"),
    ("worker", "runner"),
    ("site", "pool"),
    ("engines",),
    (
        "report",
        "export",
        "sealed",
        "launch",
        "merging",
        "advice",
        "trial",
        "pairing",
        "claims",
        "doctor",
        "profiling",
    ),
    (
        "terminal",
        "progress",
        "present",
        "findings",
        "diagnosis",
        "breakdown",
        "summary",
        "archive",
        "trend",
        "counsel",
        "serving",
    ),
    ("session", "paired_session", "checking", "advising", "cli", "__main__", "testing", "pytest_plugin"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Rooms whose files build on each other, in this order where it matters; elsewhere a file may use any sibling.
SAME_ROOM = {
    ("errors", "spec"),
    ("attention", "blocks"),
    ("adapt", "registry"),
    ("prune", "registry"),
    ("parts", "streams"),
    ("parts", "blocks"),
    ("streams", "blocks"),
    ("streams", "vectors"),
    ("presets", "suite"),
    ("attention", "joint"),
    ("parts", "joint"),
    ("streams", "joint"),
    ("blocks", "joint"),
    ("shard", "store"),
    ("shard", "survey"),
    ("rounds", "store"),
    ("store", "survey"),
    ("baseline", "comparison"),
    ("mirror", "staging"),
    ("verify", "footprint"),
    ("footprint", "plan"),
    ("matching", "plan"),
    ("slicing", "plan"),
    ("site", "pool"),
    ("subject", "verify"),
    ("meters", "verify"),
    ("subject", "honesty"),
    ("verify", "honesty"),
    ("trial", "pairing"),
    ("report", "export"),
    ("report", "sealed"),
    ("terminal", "present"),
    ("summary", "trend"),
    ("summary", "counsel"),
    ("progress", "findings"),
    ("fitting", "live"),
    ("session", "checking"),
    ("session", "advising"),
    ("advising", "cli"),
    ("paired_session", "checking"),
    ("session", "cli"),
    ("checking", "cli"),
    ("cli", "__main__"),
    ("testing", "pytest_plugin"),
}
HEAVY = {"torch", "pandas", "plotly", "scipy", "rich", "jinja2", "pyarrow"}
SHOWING = {"report", "export", "sealed"}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path, source: str) -> set[str]:
    """The rooms of the package that a file imports, wherever in the file it does so."""
    parents = [PACKAGE.name, *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            names = [*base, *(node.module or "").split(".")] if node.module else base
            if names[:1] == [PACKAGE.name]:
                found |= {names[1]} if len(names) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith(PACKAGE.name + ".")}
    return {name for name in found if not name.startswith("__")}


def violations(path: Path, source: str) -> list[str]:
    own = room(path)
    if own == "__init__":
        return []
    wrong = []
    for other in imported_rooms(path, source) - {own}:
        if LEVEL[other] > LEVEL[own] or (LEVEL[other] == LEVEL[own] and (other, own) not in SAME_ROOM):
            wrong.append(f"{path.name} imports {other}, which is not below {own}")
    return wrong


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_lower_layers(path: Path) -> None:
    assert violations(path, path.read_text()) == []


def test_the_layer_test_can_fail() -> None:
    assert violations(PACKAGE / "spec.py", "from . import runner") == [
        "spec.py imports runner, which is not below spec"
    ]
    assert violations(PACKAGE / "meters" / "time.py", "from ..cli import app")
    assert violations(PACKAGE / "runner.py", "def f():\n    from .worker import serve")
    assert violations(PACKAGE / "store.py", "import fusionbench.cli")


def top_level_imports(path: Path) -> set[str]:
    """The third-party packages that importing the file imports."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_pandas_and_plotly_are_imported_only_where_results_are_shown(path: Path) -> None:
    heavy = top_level_imports(path) & {"pandas", "plotly", "scipy", "jinja2", "pyarrow"}
    assert not heavy or room(path) in SHOWING


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


def test_help_imports_no_heavy_library() -> None:
    code = "from fusionbench.cli import app\ntry: app(['--help'])\nexcept SystemExit: pass"
    loaded = modules_after(code)
    assert "fusionbench.cli" in loaded
    assert loaded & (HEAVY | {"numpy", "msgspec"}) == set()


def test_results_are_read_and_judged_without_torch() -> None:
    loaded = modules_after(
        "import fusionbench.checking, fusionbench.export.formats, fusionbench.sealed, fusionbench.report.page, "
        "fusionbench.report.table, fusionbench.archive, fusionbench.summary.terminal"
    )
    assert "pandas" in loaded
    assert "torch" not in loaded


def test_the_measuring_path_needs_no_library_that_shows_results() -> None:
    loaded = modules_after("import fusionbench.launch, fusionbench.worker, fusionbench.engines.local")
    assert "torch" in loaded
    assert loaded & {"pandas", "plotly", "scipy", "rich", "pyarrow"} == set()


def test_planning_never_initialises_cuda() -> None:
    code = (
        "from fusionbench import suite, plan\nlist(plan.Plan(suite.read('smoke')))\n"
        "import torch\nassert not torch.cuda.is_initialized()"
    )
    assert "torch" in modules_after(code)
