"""The pages of docs/ as tests read them: files to write, commands to run, and what these print."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# ([\w./-]+\.(?:py|toml))\n")


@dataclass(frozen=True)
class Block:
    """A fenced block: what stands behind its fence, its lines, and where it begins."""

    info: str
    body: str
    line: int

    @property
    def file(self) -> str | None:
        """The name that its first line gives the file that it is."""
        found = NAMED.match(self.body)
        return found[1] if found and self.info in ("python", "toml") else None


@dataclass(frozen=True)
class Command:
    """A command of a console block, and the lines that the page says it prints."""

    text: str
    shown: tuple[str, ...]
    line: int


def names() -> list[str]:
    """The pages, by their paths below docs/."""
    return sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def blocks(name: str) -> list[Block]:
    text = (DOCS / name).read_text()
    return [Block(m[2].strip(), m[3], text.count("\n", 0, m.start()) + 1) for m in FENCE.finditer(text)]


def commands(block: Block) -> Iterator[Command]:
    """Each ``$ `` line of a block with what follows it; a line that ends in a backslash goes on in the next one."""
    joined = re.sub(r" \\\n\s*", " ", block.body)
    first, *rest = re.split(r"^\$ ", joined, flags=re.MULTILINE)
    assert not first.strip(), f"line {block.line}: a console block begins with a command, not with {first!r}"
    for each in rest:
        text, *shown = each.splitlines()
        yield Command(text, tuple(line for line in shown if line.strip() and line.strip() != "…"), block.line)


def words(text: str) -> set[str]:
    """The words of an output: what is left without numbers, hashes, units and signs."""
    return set(re.findall(r"\b[a-z]{3,}\b", text.lower()))
