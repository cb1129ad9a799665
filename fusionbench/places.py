"""Where this machine keeps what can be found out again: measured ceilings, and names for a Tab."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder that FUSIONBENCH_CACHE names, else one in the user's cache. Raises OSError where there is no home."""
    named, shared = os.environ.get("FUSIONBENCH_CACHE"), Path(os.environ.get("XDG_CACHE_HOME", ""))
    if named:
        return Path(named)
    if shared.is_absolute():  # others are to be ignored, says the XDG base directory specification
        return shared / "fusionbench"
    try:
        return Path("~/.cache").expanduser() / "fusionbench"
    except RuntimeError as error:
        raise OSError(str(error)) from error
