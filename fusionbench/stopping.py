"""The user's wish to stop: the first SIGINT or SIGTERM is noted, a second one ends everything at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Stop:
    """Whether the user asked to stop, and by which signal (0: not yet), whose name ``told`` gets at once."""

    told: Callable[[str], object]
    number: int = 0

    def asked(self) -> bool:
        return self.number != 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear signals until the end of the block; the second one raises KeyboardInterrupt."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number
        self.told(signal.Signals(number).name)
