"""Durations as text, such as "90s", "15m", "1h" or "30d", in microseconds."""

from __future__ import annotations

import re

from ..errors import DeclarationError

MICROSECONDS = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "w": 604_800_000_000,
}
PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|m|h|d|w)")


def parse_duration(text: str, what: str = "duration") -> int:
    """Microseconds of a duration such as "90s", "1.5h" or "30d" (m is minutes); at least one microsecond.

    what names the setting in the error. Raises DeclarationError for anything else.
    """
    match = PATTERN.fullmatch(text.strip()) if isinstance(text, str) else None
    microseconds = round(float(match[1]) * MICROSECONDS[match[2]]) if match else 0
    if not 0 < microseconds < 2**62:
        raise DeclarationError(
            f"{what}: expected a duration above zero such as '90s', '15m', '1h' or '30d' "
            f"(units {', '.join(MICROSECONDS)}), got {text!r}"
        )
    return microseconds
