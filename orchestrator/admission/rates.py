"""Requests and tokens a minute, over everybody who uses an endpoint."""

from collections import deque
from dataclasses import dataclass

__all__ = ["Entry", "Meter", "Window"]

_MINUTE = 60.0
_TOKEN_BURST = 10.0  # seconds' worth of tokens that may come at once
_GRAINS = 240  # entries that a window is cut into at most
_MOST_PACES = 32


@dataclass(slots=True)
class Entry:
    """What was used between `first` and `last` (seconds); it counts until `last` leaves the window."""

    first: float
    last: float
    amount: int
    live: bool = True


class Window:
    """What was used in the last `seconds`: a sliding log, whose entries closer than 1/240 of it count as one, at the later time.

    So it never shows less than was used, and its size is bounded.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.used = 0
        self.entries: deque[Entry] = deque()
        self._grain = seconds / _GRAINS

    def add(self, now: float, amount: int) -> Entry:
        """Counts `amount`, and returns the entry in which it counts."""
        entries = self.entries
        if entries and entries[0].last + self.seconds <= now:
            self.forget(now)
        self.used += amount
        if entries and now - entries[-1].first < self._grain:
            entry = entries[-1]
            if now > entry.last:
                entry.last = now
            entry.amount += amount
            return entry
        entry = Entry(now, now, amount)
        entries.append(entry)
        return entry

    def change(self, entry: Entry, difference: int) -> None:
        """Counts more or less in an entry, as long as it counts at all."""
        entry.amount += difference
        if entry.live:
            self.used += difference

    def forget(self, now: float) -> None:
        """Lets go of what left the window."""
        entries = self.entries
        while entries and entries[0].last + self.seconds <= now:
            entry = entries.popleft()
            entry.live = False
            self.used -= entry.amount

    def ready(self, now: float, amount: int, limit: float) -> float:
        """When `amount` fits under `limit`: `now`, or a later time. More than the whole limit fits into an empty window."""
        self.forget(now)
        left = self.used
        if left + amount <= limit or left == 0:
            return now
        when = now
        for entry in self.entries:
            left -= entry.amount
            when = entry.last + self.seconds
            if left + amount <= limit or left == 0:
                break
        return when


class Meter:
    """Requests and tokens at one endpoint. Limits are given with each question, as parties may have different ones.

    Requests: at most N in any 60 s by a sliding log, paced by the generic cell rate algorithm (ITU-T I.371, virtual scheduling) with a
    burst of one second's worth. Tokens: two sliding logs, N in any 60 s and N/6 in any 10 s; one call larger than that is let in alone,
    when nothing counts any more, rather than never.
    """

    def __init__(self) -> None:
        self._requests = Window(_MINUTE)
        self._tokens = Window(_MINUTE)
        self._burst = Window(_TOKEN_BURST)
        self._paces: dict[int, float] = {}  # requests a minute: the theoretical arrival time of the next request

    def ready(self, now: float, requests: int | None, per_minute: int | None, tokens: int) -> float:
        """When a call of `tokens` may go, by a limit of `requests` a minute and `per_minute` tokens: `now`, or a later time."""
        when = now
        if requests is not None:
            due = self._pace(requests)
            burst = max(1, requests // 60)
            when = max(when, due - (burst - 1) * _MINUTE / requests, self._requests.ready(now, 1, requests))
        if per_minute is not None and tokens:
            when = max(when, self._tokens.ready(now, tokens, per_minute))
            when = max(when, self._burst.ready(now, tokens, max(1.0, per_minute * _TOKEN_BURST / _MINUTE)))
        return when

    def use(self, now: float, tokens: int) -> tuple[Entry, Entry] | None:
        """Counts a call; what it returns settles the tokens."""
        self._requests.add(now, 1)
        for requests, due in self._paces.items():
            self._paces[requests] = max(due, now) + _MINUTE / requests
        return (self._tokens.add(now, tokens), self._burst.add(now, tokens)) if tokens else None

    def settle(self, charge: tuple[Entry, Entry] | None, difference: int) -> None:
        """The call took `difference` tokens more than was charged."""
        if charge is not None:
            self._tokens.change(charge[0], difference)
            self._burst.change(charge[1], difference)

    def blank(self, now: float) -> bool:
        """Whether nothing counts any more."""
        for window in (self._requests, self._tokens, self._burst):
            window.forget(now)
        return not self._requests.entries and not self._tokens.entries

    def _pace(self, requests: int) -> float:
        if requests not in self._paces:
            due = 0.0
            for entry in self._requests.entries:
                due = max(due, entry.last) + entry.amount * _MINUTE / requests
            if len(self._paces) >= _MOST_PACES:
                self._paces.clear()  # each is found again from the log
            self._paces[requests] = due
        return self._paces[requests]
