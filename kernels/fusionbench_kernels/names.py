"""The words a caller can choose between."""

from __future__ import annotations

from typing import Literal

Variant = Literal["auto", "streaming", "resident", "split", "descriptor"]
Ran = Literal["streaming", "resident", "split", "descriptor", "pytorch"]  # "auto" is a wish, "pytorch" no kernel
