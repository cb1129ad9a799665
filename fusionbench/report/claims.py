"""The claims ledger as the page's data: plain text of bounded length, figures already written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import printable
from ..ledger import Claim, Finding, Ledger

_LONGEST = 2000  # characters of one text that the page carries


def payload(ledgers: Sequence[Ledger]) -> list[dict[str, Any]]:
    """What the page's script draws its section from; nothing for ledgers without findings."""
    return [_ledger(ledger) for ledger in ledgers if ledger.findings]


def _ledger(ledger: Ledger) -> dict[str, Any]:
    e = ledger.environment
    threads = f"{ledger.threads} thread{'' if ledger.threads == 1 else 's'}"
    facts = (e.machine, e.cpu, f"torch {e.torch}", threads, f"seed {ledger.seed}", ledger.created_at[:10])
    return {
        "facts": [printable(fact) for fact in facts if fact],
        "counts": ledger.counts,
        "entries": [_entry(claim, finding) for claim, finding in ledger.entries],
    }


def _entry(claim: Claim, finding: Finding) -> dict[str, Any]:
    texts = {
        "id": claim.id,
        "said": claim.said,
        "source": claim.source,
        "method": claim.method,
        "outcome": finding.outcome,
        "condition": finding.condition,
        "note": finding.note,
        "error": finding.error,
    }
    figures = [[printable(f.amount), printable(f.what, _LONGEST), f.interval] for f in finding.figures]
    return {name: printable(text, _LONGEST) for name, text in texts.items()} | {"figures": figures}
