"""What an endpoint says in its headers about asking again."""

import email.utils
import math
import time
from typing import Any

__all__ = ["asked_to_repeat", "asked_to_wait"]


def asked_to_wait(headers: Any) -> float | None:
    """Seconds by `retry-after-ms` or `Retry-After` (seconds or a date, RFC 9110 10.2.3); None where neither can be read."""
    if headers is None:
        return None
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name) or "nan") * unit
        except ValueError:
            continue
        if not math.isnan(seconds):
            return max(0.0, min(seconds, 1e9))
    try:
        date = email.utils.parsedate_tz(headers.get("retry-after"))
        return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def asked_to_repeat(headers: Any) -> bool | None:
    """What `x-should-retry`, which OpenAI's SDK obeys, says; None where it is not there."""
    return {"true": True, "false": False}.get(str((headers or {}).get("x-should-retry")).lower())
