"""Terms: what a run grants its calls, and what they have used of it."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from orchestrator.admission import ADMISSION, Party
from orchestrator.controls import Controls
from orchestrator.errors import StopRequested
from orchestrator.events import tell
from orchestrator.journal import Journal
from orchestrator.spans import Tracer
from orchestrator.usage import Ledger, Pool

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

__all__ = ["DENIED", "Retries", "Shared", "Terms", "in_request", "in_tool", "shared"]

_MOST = 5.0  # retries that an endpoint may cost a run at once
_EARNED = 0.2  # of a retry, by each first request: a retry budget of 20 %, as in Google's "Handling Overload" (SRE book, chapter 21)

DENIED = "Denied by the user: this call was not made, and will not be. Go on without it."
"""What a model is told of a tool call that a person said no to."""

in_request: ContextVar[bool] = ContextVar("in_request", default=False)
"""Whether an Exchange makes this request: it has passed admission and the ledger, so the door of the run only tells events."""

in_tool: ContextVar[bool] = ContextVar("in_tool", default=False)
"""Whether `call_tool` makes this tool call: it has passed admission and the loop guard, so the door of the run only tells events."""


class Retries:
    """A run's retry budget for each endpoint: when everything fails, calls are made once and no more.

    Requests that are repeated because the endpoint asks for fewer of them do not draw on it.
    """

    def __init__(self, most: float = _MOST) -> None:
        self._most = most
        self._left: dict[str, float] = defaultdict(lambda: most)

    def earn(self, endpoint: str) -> None:
        """Count the first request of a call."""
        self._left[endpoint] = min(self._most, self._left[endpoint] + _EARNED)

    def take(self, endpoint: str) -> bool:
        """Whether a request may be made again; if so, it is counted."""
        if self._left[endpoint] < 1:
            return False
        self._left[endpoint] -= 1
        return True


@dataclass(eq=False, kw_only=True)
class Shared:
    """What runs that belong together have in common: their place at the door, that of their tools, budgets and retry budget.

    `terms` are those of the run, or of its attempts, that was begun with it; `counted`: the pool knows what the run has used before.
    """

    party: Party
    pool: Pool
    retries: Retries = field(default_factory=Retries)
    tools: dict[str, Party] = field(default_factory=dict)
    terms: "list[Terms]" = field(default_factory=list)
    counted: bool = False

    @classmethod
    def of(cls, controls: Controls, name: str) -> "Shared":
        """One set of limits for all the runs of `name`, such as "the batch"."""
        return cls(party=_party(controls, name), pool=Pool(controls, name))

    @contextmanager
    def run(self, *, counted: bool = False) -> "Iterator[Shared]":
        """A run that is made inside, and by tasks that are started inside, is one of them; what is given knows its `terms`."""
        own = replace(self, terms=[], counted=counted)
        token = shared.set(own)
        try:
            yield own
        finally:
            shared.reset(token)
            for terms in own.terms:
                self.pool.leave(terms.ledger)


shared: ContextVar[Shared | None] = ContextVar("shared", default=None)
"""What the run that begins here shares with others."""


def _party(controls: Controls, name: str) -> Party:
    return Party(
        name=name,
        max_concurrency=controls.max_concurrency,
        requests_per_minute=controls.requests_per_minute,
        tokens_per_minute=controls.tokens_per_minute,
        max_queue=controls.max_queue,
    )


@dataclass(eq=False, kw_only=True)
class Terms:
    """What the calls of one run keep to: its controls, its place at the door, its ledger and its retry budget.

    `ends` is the loop time of the run's deadline; once `stopped` or `over` is set no new request is made. `journal`: where every
    finished call is kept, and where an earlier attempt's answers come from; None: nothing is kept. `tracer` is told what they do.
    """

    controls: Controls = field(default_factory=Controls)
    name: str = "run"
    ends: float | None = None
    stopped: bool = False  # somebody asked for it
    over: bool = False  # the graph has ended, and what its nodes left behind may still work
    journal: Journal | None = None
    tracer: Tracer = field(default_factory=Tracer)
    permit: "Callable[[BaseTool, Mapping[str, Any]], bool] | None" = None  # whether a person lets a foreign tool call be made
    room: Callable[[], Awaitable[None]] | None = None  # waits until whoever reads the run's events has caught up
    heard: bool = True  # whether anybody reads the tokens of answers
    driven: bool = False  # whether a run of ours drives the graph: nobody else reads its stream
    asked: dict[tuple[int, str], Any] = field(init=False, default_factory=dict, repr=False)  # models by role, as exchanges know them
    stop_asked: asyncio.Event = field(init=False, default_factory=asyncio.Event, repr=False)  # set with `stopped`, for who waits for it
    party: Party = field(init=False)
    ledger: Ledger = field(init=False)
    retries: Retries = field(init=False, default_factory=Retries)
    tools: dict[str, Party] = field(init=False, default_factory=dict)  # by name, those that declare limits
    _warned: set[str] = field(init=False, default_factory=set, repr=False)

    def __post_init__(self) -> None:
        common = shared.get()
        self.party = common.party if common else _party(self.controls, self.name)
        self.ledger = Ledger(self.controls, common.pool if common else None)
        if common:
            self.ledger.counted = common.counted
            self.retries, self.tools = common.retries, common.tools
            common.terms.append(self)

    def check(self) -> None:
        """Raise StopRequested once the run was asked to stop, or is over."""
        if self.over:
            raise StopRequested("the run is over", remedy="await in a node what it starts")
        if self.stopped:
            raise StopRequested("the run was asked to stop", remedy="resume the run")

    def stop(self) -> None:
        """Begin no further request: what waits for its turn is refused, what is in flight may end."""
        self.stopped = True
        self.stop_asked.set()
        for party in (self.party, *self.tools.values()):
            ADMISSION.dismiss(party)

    def warn(self, message: str) -> None:
        """Tell a warning, once a run."""
        if message not in self._warned:
            self._warned.add(message)
            tell("log", level="warning", message=message)
