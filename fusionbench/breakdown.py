"""A profile in a terminal: which job, what the profiler cost, and the ops that took the time."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .errors import printable
from .profiling import Profile, Row
from .record import PARTS, Parts

TOP = 20
GAP = 2
PLACES = {"device": "kernels on the device", "host": "ops on the host"}


def show(profile: Profile, width: int) -> Group:
    """The whole profile, at most ``width`` columns wide but for the trace's path: print with ``crop=False``."""
    parts: list[RenderableType] = [*_heading(profile, width)]
    for place, title in PLACES.items():
        if rows := profile.of(place):
            parts += [Text(), Text(title, style="bold"), _table(rows, profile, width)]
    parts += [Text(), *_paths(profile)]
    return Group(*parts)


def _heading(profile: Profile, width: int) -> list[Text]:
    """The job, and how far the profiler is from the truth."""
    plain, slow = _time(profile.plain_ns), _time(profile.profiled_ns)
    told = (
        f"{profile.calls} calls on {profile.device}: {slow} per call under the profiler, {plain} without "
        f"({_slowdown(profile)}). Read shares, not times: profiling slows down, short ops most of all"
    )
    spent = _lines(f"by part: {_by_part(profile.parts)}", width) if profile.parts else []
    return [Text(printable(profile.job, 1000), style="bold"), *_lines(told, width), *spent]


def _by_part(parts: Parts) -> str:
    """``attention 62 %, projections 30 %, …``, the largest first, of all ops or kernels of a call."""
    spent = {part: getattr(parts, f"{part}_ns") for part in PARTS}
    ordered = sorted((part for part in PARTS if spent[part]), key=lambda part: -spent[part])
    return ", ".join(f"{part.replace('_', '-')} {spent[part] / sum(spent.values()):.1%}" for part in ordered)


def _slowdown(profile: Profile) -> str:
    ratio = profile.profiled_ns / max(1, profile.plain_ns)
    return f"{ratio:.2f}× slower" if ratio > 1.01 else "a difference too small for the noise here"


def _lines(text: str, width: int) -> list[Text]:
    return [Text(line, style="dim") for line in textwrap.wrap(text, max(width, 20), break_on_hyphens=False)]


def _time(nanoseconds: float) -> str:
    return f"{nanoseconds / 1e6:.3g} ms" if nanoseconds >= 1e6 else f"{nanoseconds / 1e3:.3g} µs"


def _table(rows: Sequence[Row], profile: Profile, width: int) -> Table:
    """The rows with most time of their own, the others in one, and the sum; numbers are per call of the job."""
    total = sum(row.self_ns for row in rows)
    top = TOP if len(rows) > TOP + 1 else len(rows)
    cells, rest = [_cells(row, profile.calls, total) for row in rows[:top]], rows[top:]
    if rest:
        others = Row(name=f"({len(rest)} more)", place=rest[0].place, calls=sum(row.calls for row in rest),
                     self_ns=sum(row.self_ns for row in rest),
                     memory_bytes=sum(row.memory_bytes for row in rest))  # fmt: skip
        cells.append(_cells(others, profile.calls, total))
    cells.append(["all", "", f"{total / profile.calls / 1e3:,.1f}", "100.0%" if total else "–", ""])
    names = ["op", "calls", "self µs", "share", "MiB"]
    kept = 5 if any(line[4] for line in cells) else 4
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names[:kept])]
    widths[0] = max(12, min(widths[0], width - sum(widths[1:]) - GAP * (kept - 1)))
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim", show_edge=False)
    for i, name in enumerate(names[:kept]):
        table.add_column(
            name, justify="right" if i else "left", no_wrap=True, overflow="ellipsis", width=widths[i]
        )  # fmt: skip
    for number, line in enumerate(cells):
        table.add_row(*(Text(cell) for cell in line[:kept]), style="bold" if number == len(cells) - 1 else "")
    return table


def _cells(row: Row, calls: int, total: int) -> list[str]:
    name = printable(row.name, 300) + (f" [{row.shapes}]" if row.shapes else "")
    share = f"{row.self_ns / total:.1%}" if total else "–"
    mebibytes = row.memory_bytes / calls / 2**20
    memory = f"{mebibytes:,.2f}" if abs(mebibytes) >= 0.005 else ""
    return [name, f"{row.calls / calls:,.3g}", f"{row.self_ns / calls / 1e3:,.1f}", share, memory]


def _paths(profile: Profile) -> list[Text]:
    """Where the files are, whole, to be copied."""
    told = [f"trace of {profile.events:,} spans, for ui.perfetto.dev:", f"    {profile.trace}"]
    told += ["Triton's own profile, for proton-viewer:", f"    {profile.proton}"] if profile.proton else []
    return [Text(line, no_wrap=True, overflow="ignore") for line in told]
