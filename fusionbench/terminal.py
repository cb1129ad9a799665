"""Consoles: how wide they are, and text from outside that they may show."""

from __future__ import annotations

import os
import sys
from typing import Literal

from rich.console import Console
from rich.text import Text

from .errors import printable
from .remote import told


def console(*, stderr: bool = False) -> Console:
    """A console that is 120 columns wide where its output is no terminal, and honours NO_COLOR and COLUMNS."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else 120
    plain = bool(os.environ.get("NO_COLOR"))  # neither colour nor bold
    system: Literal["auto"] | None = None if plain else "auto"
    return Console(stderr=stderr, width=width, highlight=False, emoji=False, color_system=system)


def note(out: Console, text: str) -> None:
    """One line of untrusted text, never cut."""
    out.print(Text(printable(told(text), 1000)), soft_wrap=True)
