"""What ``fusionbench show`` prints: the fastest per shape, the failures, the skips and the machine."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence

import pandas as pd
from rich.cells import cell_len
from rich.console import Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from ..errors import counted, printable
from ..record import FAILED, PARTS, Environment
from .frame import NOTES_APART
from .rank import latest, ranked

Column = tuple[str, bool, list[Text]]  # heading, right-aligned, cells; the first columns are the last to go

MODES = {
    "fwd": "forward",
    "fwd_bwd": "forward + backward",
    "step": "training step",
    "decode": "decode, cached",
    "decode_uncached": "decode without the image's cache",
    "cached": "forward, context cached",
}

_GAP = 2
_NAME_WIDTH = 40
KINDS = 12  # of failures, skips and notes that are told, unless --groups asks for more


def show(
    frame: pd.DataFrame,
    environments: Mapping[str, Environment],
    problems: Sequence[str] = (),
    *,
    width: int,
    command: str,
    groups: int = 12,
    rows: int = 12,
) -> Group:
    """Everything about one run, at most ``width`` columns wide; ``command`` is what runs its suite again.

    Commands alone may be longer, so that they can be copied: print with ``crop=False``.
    """
    newest = latest(frame)
    parts = [
        *best(newest, width=width, groups=groups, rows=rows),
        *failures(newest, command, width=width, groups=max(groups, KINDS)),
        *skips(newest, width=width, reasons=max(groups, KINDS)),
        *remarks(newest, width=width, kinds=max(groups, KINDS)),
        *machines(environments, width=width),
        *damage(problems, width=width),
    ]
    return Group(*parts or [Text("no records")])


def best(newest: pd.DataFrame, *, width: int, groups: int = 12, rows: int = 12) -> list[RenderableType]:
    """One table per shape and condition: candidates fastest first, "≈" where the intervals overlap."""
    ranks = ranked(newest)
    several = ranks["environment"].nunique() > 1
    parts: list[RenderableType] = []
    for number, group in ranks[ranks["group"] < groups].groupby("group", sort=True):
        parts += [_gap() if number else Text(), *_heading(group.iloc[0], several, width)]
        parts.append(_fit(_ranking(group.head(rows)), width))
        parts += _more(len(group) - rows, "candidates", "--rows")
    left = int(ranks["group"].max()) + 1 - groups if len(ranks) else 0
    return parts + _more(left, "shapes and conditions", "--groups")


def _gap() -> Text:
    return Text("")


def _more(count: int, what: str, option: str) -> list[RenderableType]:
    if count <= 0:
        return []
    where = f"see them with {option} N, or in the page of `fusionbench report`"
    return [_folded(f"… {count:,} more {what} ({where})", "dim")]


def _line(text: str, width: int, style: str = "dim", indent: int = 0) -> Text:
    """One untrusted line: no markup, no control characters, cut at the edge."""
    line = Text(" " * indent + printable(" ".join(text.split()), 1000), style=style, no_wrap=True)
    line.truncate(width, overflow="ellipsis")
    return line


def _folded(text: str, style: str = "") -> Text:
    """One untrusted reason or remedy, whole: on several lines where it must be."""
    return Text(printable(" ".join(text.split()), 1000), style=style, overflow="fold")


def _counted(number: str, reason: str) -> Table:
    """A reason behind its number, also where it takes several lines."""
    grid = Table.grid(padding=(0, _GAP, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_row(number, _folded(reason))
    return grid


def _heading(row: pd.Series, several: bool, width: int) -> list[Text]:
    tokens = f"{row['image']} image × {row['text']} text tokens"
    facts = [row["dtype"], row["device"], MODES.get(row["mode"], row["mode"]), f"batch {row['batch']}"]
    facts += _of_systems(row) if row["preset"] else _of_sizes(row)
    facts += [f"padding {row['padding']:g}"] if row["padding"] else []
    facts += [f"{row['threads']} threads"] if row["threads"] > 1 else []
    facts += [str(row["machine"])] if several else []
    return [_line(tokens, width, "bold"), _line(" · ".join(map(str, facts)), width)]


def _of_systems(row: pd.Series) -> list[str]:
    facts = [f"systems at {row['scale']}" if row["scale"] != "1" else "systems at full size"]
    return facts + ([_terms(row["match"])] if row["match"] else [])


def _of_sizes(row: pd.Series) -> list[str]:
    facts = [f"width {row['width']}", f"{row['heads']} heads", str(row["projector"])]
    facts += ["type embedding"] if row["type_embedding"] else []
    facts += [f"depth {row['depth']}"] if row["depth"] != 1 else []
    facts += [f"ffn {row['feed_forward']}"] if row["feed_forward"] != "4 x" else []
    facts += [_terms(row["match"])] if row["match"] else []
    facts += [str(row["design"])] if row["design"] else []
    return facts


def _terms(match: str) -> str:
    """On which terms the strategies of a group are compared."""
    what, _, anchor = match.partition("=")
    return f"{'parameters' if what == 'params' else 'FLOPs'} as {anchor} has"


def _ranking(group: pd.DataFrame) -> list[Column]:
    first = group.iloc[0]
    digits = max(0, 2 - math.floor(math.log10(first["median_ms"]))) if first["median_ms"] > 0 else 3
    ties = bool(group["tie"].any())
    lines = [row for _, row in group.iterrows()]
    half = [(r["high_ms"] - r["low_ms"]) / 2 / r["median_ms"] if r["median_ms"] > 0 else math.nan for r in lines]
    return [
        ("strategy", False, [_name(r["candidate"]) for r in lines]),
        ("backend", False, [_name(r["backend"]) for r in lines]),
        ("ms", True, [Text(f"{r['median_ms']:,.{digits}f}") for r in lines]),
        ("vs best", True, [_ratio(r, ties) for r in lines]),
        ("± 95 %", True, [Text(f"{h:.1%}" if h == h else "–") for h in half]),
        ("peak MiB", True, [_number(r["peak_mib"], ",.1f") for r in lines]),
        ("cache MiB", True, [_number(r["cache_mib"], ",.3g") for r in lines]),
        ("rel. error", True, [_number(r["rel_l2"], ".1e") for r in lines]),
        ("TFLOP/s", True, [_number(r["tflops"], ".3g") for r in lines]),
        ("of bound", True, [_number(r["of_bound"], ".0%") for r in lines]),
        ("launches", True, [_number(r["launch_share"], ".0%") for r in lines]),
        ("mJ", True, [_number(r["joules_per_call"] * 1e3, ".3g") for r in lines]),
        ("waited", True, [_number(r["contention"], ".1%") for r in lines]),
        ("mostly", False, [_mostly(r) for r in lines]),
    ]


def _mostly(row: pd.Series) -> Text:
    """What most of a call's time goes to, with its share."""
    shares = {part: row[f"share_{part}"] for part in (*PARTS, "gaps") if row[f"share_{part}"] > 0}
    if not shares:
        return Text("–", style="dim")
    part = max(shares, key=lambda each: shares[each])
    return Text(f"{part.replace('_', '-')} {shares[part]:.0%}")


def _name(value: object) -> Text:
    name = Text(printable(str(value), 200), no_wrap=True)
    name.truncate(_NAME_WIDTH, overflow="ellipsis")
    return name


def _number(value: float, form: str) -> Text:
    return Text("–", style="dim") if pd.isna(value) else Text(format(value, form))


def _ratio(row: pd.Series, ties: bool) -> Text:
    if row["rank"] == 0:
        return Text("≈ 1" if ties else "1", style="" if ties else "bold green")
    return Text(f"≈ {row['ratio']:.2f}" if row["tie"] else f"{row['ratio']:.2f} ×")


def _fit(columns: list[Column], width: int) -> Table:
    """As many of the first columns as fit; if not even two do, the first is cut."""
    columns = [c for c in columns if any(cell.plain != "–" for cell in c[2])]
    widths = [max(cell_len(heading), *(cell.cell_len for cell in cells)) + _GAP for heading, _, cells in columns]
    while len(widths) > 5 and sum(widths) - _GAP > width:
        widths.pop()
    while len(widths) > 2 and sum(widths) - _GAP - (widths[0] - 14) > width:
        widths.pop()
    widths[0] = max(4, min(widths[0], width - sum(widths[1:]) + _GAP))
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="dim", show_edge=False)
    for heading, right, _ in columns[: len(widths)]:
        side: JustifyMethod = "right" if right else "left"
        room = widths[len(table.columns)] - _GAP
        table.add_column(heading, justify=side, no_wrap=True, overflow="ellipsis", width=room)
    for cells in zip(*(c[2] for c in columns[: len(widths)]), strict=True):
        table.add_row(*cells)
    return table


def failures(
    newest: pd.DataFrame, command: str, *, width: int, groups: int = KINDS, each: int = 20
) -> list[RenderableType]:
    """Failed jobs with the same end are told together, each with the command that repeats it."""
    failed = newest[newest["status"].isin(FAILED)]
    if failed.empty:
        return []
    parts: list[RenderableType] = [_gap(), _line(f"{len(failed):,} failed", width, "bold red")]
    kinds = failed.groupby(["status", "phase", "reason"], sort=False, dropna=False)
    largest = kinds.size().sort_values(ascending=False, kind="stable")
    for kind in largest.index[:groups]:
        status, phase, reason = kind
        jobs = kinds.get_group(kind)["key"].tolist()
        where = f" in {phase}" if phase else ""
        parts.append(_folded(f"{status}{where}, {counted(len(jobs), 'job')}: {reason}"))
        parts += [_whole(f"{command} --job {shlex.quote(key)}") for key in jobs[:each]]
        parts += [_line(f"… and {len(jobs) - each:,} more like it", width, indent=4)] if len(jobs) > each else []
    return parts + _more(len(largest) - groups, "kinds of failure", "--groups")


def _whole(command: str) -> Text:
    """A command is never cut: half a command is no command."""
    return Text("    " + printable(command, 2000), style="cyan", no_wrap=True, overflow="ignore")


def skips(newest: pd.DataFrame, *, width: int, reasons: int = KINDS) -> list[RenderableType]:
    """Skipped jobs by reason, the most frequent first."""
    counts = newest.query("status == 'skipped'")["reason"].value_counts()
    if counts.empty:
        return []
    parts: list[RenderableType] = [_gap(), _line(f"{int(counts.sum()):,} skipped", width, "bold")]
    digits = len(f"{counts.iloc[0]:,}")
    for reason, count in counts[:reasons].items():
        parts.append(_counted(f"{count:,}".rjust(digits), str(reason)))
    return parts + _more(len(counts) - reasons, "reasons", "--groups")


def remarks(newest: pd.DataFrame, *, width: int, kinds: int = KINDS) -> list[RenderableType]:
    """What the records note about their measurement, those that differ in their numbers alone told together."""
    notes = newest.loc[newest["notes"] != "", "notes"].str.split(NOTES_APART, regex=False).explode()
    if notes.empty:
        return []
    kind = notes.str.replace(r"[0-9][0-9.,e+-]*", "#", regex=True)
    counts = kind.value_counts()
    parts: list[RenderableType] = [_gap(), _line("noted", width, "bold")]
    digits = len(f"{counts.iloc[0]:,}")
    for text, count in counts[:kinds].items():
        parts.append(_counted(f"{count:,}".rjust(digits), str(notes[kind == text].iloc[0])))
    return parts + _more(len(counts) - kinds, "kinds of notes", "--groups")


def machines(environments: Mapping[str, Environment], *, width: int) -> list[RenderableType]:
    """Who measured, one short paragraph per environment."""
    parts: list[RenderableType] = []
    for e in environments.values():
        gpu = f"{e.gpu_count} × {e.gpu}, driver {e.driver}, CUDA {e.cuda}" if e.gpu else "no GPU"
        dirty = " with uncommitted changes" if e.dirty else ""
        parts += [
            _gap(),
            _line(e.machine, width, "bold"),
            _line(f"{e.cpu}, {e.cores} cores, {e.memory_bytes / 2**30:.0f} GiB · {gpu}", width),
            _line(f"torch {e.torch}, triton {e.triton}, Python {e.python}, {e.system}", width),
            _line(f"fusionbench {e.fusionbench}, commit {e.commit or 'unknown'}{dirty}", width),
        ]
    return parts


def damage(problems: Sequence[str], *, width: int) -> list[RenderableType]:
    """What could not be read."""
    if not problems:
        return []
    return [_gap(), _line("damage found while reading", width, "bold yellow"), *map(_folded, problems)]
