"""The date and the time, which no model knows."""

from datetime import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from orchestrator.errors import ToolError
from orchestrator.text import one_line

__all__ = ["tell_time"]


def tell_time(timezone: str = "") -> str:
    """`Saturday, 2026-11-28 13:05 CET (+0100)` in a time zone of the IANA database, or here; raises ToolError."""
    name = timezone.strip()
    try:
        now = datetime.now(ZoneInfo(name)) if name else datetime.now().astimezone()
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ToolError(f"There is no time zone {one_line(name, 40)!r}", remedy="Use a name such as Europe/Oslo or UTC") from error
    return now.strftime("%A, %Y-%m-%d %H:%M %Z (%z)")
