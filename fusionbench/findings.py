"""The claims ledger in a terminal: a block per claim as it is checked, and which one is being checked now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .errors import printable
from .ledger import FAILED, Claim, Finding, Ledger
from .progress import duration

WIDE = 140  # columns from which the figures stand beside the claim
STYLES = {"exact": "bold green", "refuted": "bold red", FAILED: "bold yellow"}
NUMBER, VERDICT, AMOUNT = 5, 14, 11  # columns of the ID, of a verdict in two lines, of a figure's number


def block(claim: Claim, finding: Finding, width: int) -> RenderableType:
    """One claim with its verdict, condition and figures, at most ``width`` columns wide."""
    verdict = Text(finding.outcome, style=STYLES.get(finding.outcome, "bold"))
    number, said = Text(claim.id, style="dim"), _text(f"“{claim.said}”")
    if width < WIDE:
        parts: list[RenderableType] = [said, verdict, *_remarks(finding), _figures(finding)]
        return Group(_columns((number, NUMBER), (Group(*parts), width - NUMBER)), "")
    rest = width - NUMBER - VERDICT
    left = rest * 5 // 11
    statement = Group(said, *_remarks(finding))
    columns = ((number, NUMBER), (verdict, VERDICT), (statement, left), (_figures(finding), rest - left))
    return Group(_columns(*columns), "")


def _columns(*columns: tuple[RenderableType, int]) -> Table:
    """Cells side by side, each as wide as is said, with a blank column after each but the last."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    for number, (_, width) in enumerate(columns, 1):
        grid.add_column(width=width - (number < len(columns)), overflow="fold")
    grid.add_row(*(content for content, _ in columns))
    return grid


def _text(content: str, style: str = "") -> Text:
    return Text(printable(content, 2000), style=style)


def _remarks(finding: Finding) -> list[Text]:
    """Condition, note and error."""
    parts = ((finding.condition, ""), (finding.note, "dim"), (finding.error, "yellow"))
    return [_text(content, style) for content, style in parts if content]


def _figures(finding: Finding) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(justify="right", no_wrap=True, style="cyan", min_width=AMOUNT)
    grid.add_column(overflow="fold")
    for figure in finding.figures:
        what = _text(figure.what)
        if figure.interval:
            what.append(f" {figure.interval}", style="dim")
        grid.add_row(_text(figure.amount), what)
    return grid


def follow(
    claims: Sequence[Claim], findings: Iterator[Finding], out: Console, show: Callable[[Claim, Finding], None]
) -> tuple[list[Finding], bool]:
    """Take ``findings`` as they come and ``show`` each, while ``out`` says which claim is being checked: on a terminal
    in one line that goes again, else in a line each. Returns them, and whether Ctrl-C ended it early.

    Nothing is drawn while a check runs: a spinner's thread would be in the timings.
    """
    found: list[Finding] = []
    try:
        for number, claim in enumerate(claims, 1):
            line = printable(f"[{number}/{len(claims)}] {claim.id}  {claim.said}")
            out.print(Text(line[: out.width - 1]), end="\r" if out.is_terminal else "\n", soft_wrap=True)
            found.append(next(findings))
            _clear(out)
            show(claim, found[-1])
    except KeyboardInterrupt:
        _clear(out)
        out.print(Text(f"interrupted after {len(found)} of {len(claims)} claims"))
        return found, True
    return found, False


def _clear(out: Console) -> None:
    if out.is_terminal:
        out.file.write("\r\x1b[K")
        out.file.flush()


def ending(ledger: Ledger) -> Text:
    """How often each verdict was found, and where."""
    parts = [f"{outcome} {count}" for outcome, count in ledger.counts.items()]
    e, seconds = ledger.environment, sum(finding.seconds for finding in ledger.findings)
    claims = f"{len(ledger.findings)} claim{'' if len(ledger.findings) == 1 else 's'} in {duration(seconds)}"
    where = f"{e.machine}, {e.cpu}, torch {e.torch}, {ledger.threads} thread{'' if ledger.threads == 1 else 's'}"
    return Text("\n").join([_text(f"{claims}: {' · '.join(parts)}"), _text(f"{where}, seed {ledger.seed}", "dim")])
