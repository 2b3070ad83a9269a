"""How the demo says what happens: lines that stay, and one live line that follows the progress."""

from __future__ import annotations

import time
from typing import TextIO

from rich.console import Console, RenderableType

CLEAR = "\r\033[K"
WIDTH = 120  # of tables, where the output is no terminal


class Say:
    """Writes to `out`. The live line is overwritten in a terminal; elsewhere it is a line of its own, now and then and
    where it has changed.
    """

    def __init__(self, out: TextIO, every_seconds: float = 3.0) -> None:
        self.out, self.every_seconds = out, every_seconds
        self._is_terminal = out.isatty()
        self._console = Console(file=out, width=None if self._is_terminal else WIDTH, highlight=False)
        self._said, self._shown = time.monotonic(), ""

    def __call__(self, what: RenderableType) -> None:
        """A line, or a table, that stays."""
        self._clear()
        if isinstance(what, str):
            print(what, file=self.out, flush=True)  # as it is: what can be copied must not be wrapped
        else:
            self._console.print(what, new_line_start=True)
            self.out.flush()
        self._said = time.monotonic()

    def progress(self, text: str) -> None:
        """The live line; cut to the width of the terminal."""
        if self._is_terminal:
            self._clear()
            print(f"  {text}"[: self._console.width - 1], end="", file=self.out, flush=True)
        elif text != self._shown and time.monotonic() - self._said >= self.every_seconds:
            self._shown = text
            self(f"  {text}")

    def _clear(self) -> None:
        if self._is_terminal:
            print(CLEAR, end="", file=self.out)
