"""Durations of a declaration: text such as "90s", "15m", "1h" or "7d" to microseconds, and back."""

from __future__ import annotations

from ..models.durations import MICROSECONDS, parse_duration

__all__ = ["format_duration", "parse_duration"]


def format_duration(microseconds: int) -> str:
    """The shortest text that `parse_duration` reads as this many microseconds: in days at most, never in weeks."""
    for unit in ("d", "h", "m", "s", "ms"):
        if microseconds and microseconds % MICROSECONDS[unit] == 0:
            return f"{microseconds // MICROSECONDS[unit]}{unit}"
    return f"{microseconds}us"
