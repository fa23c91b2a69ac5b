"""What can go wrong, as data first and a sentence second.

OrchestratorError            what happened, where, what to do; `exit_code` 1
├── InputError               bad input or usage: nothing was started; exit code 2
│   ├── WorkflowNotFoundError   no module of that name
│   ├── WorkflowLoadError       the module cannot be imported, or offers no workflow
│   ├── GraphError              the graph fails the checks at load; carries every problem found
│   ├── ModelSpecError          a model string, key or base URL that cannot work
│   ├── DocumentsError          documents that are missing or that nothing can be read from
│   └── DatabaseOpenError       a database that cannot be opened: its URL, its rights, what it holds, its version
├── ModelCallError           a model call that gave no usable answer; carries the branch status, and whether another try may help
│   ├── CallFailedError         the endpoint refused the call or was not reached
│   │   └── ThrottledError         the endpoint asks for fewer requests (429, 503)
│   ├── CallTimeoutError        the call took longer than one of its clocks
│   ├── RefusedError            a content filter or the model itself refused
│   ├── TruncatedError          the answer was cut: length limit, or no finish reason
│   ├── EmptyAnswerError        no content and no tool call
│   └── InvalidAnswerError      the answer does not fit its schema after the allowed repairs
├── ToolError                a tool that could not do its work; its text is fed back to the model
│   └── FetchRefusedError       the policy forbids this URL
├── BranchTimeoutError       a branch took longer than branch_timeout
├── StorageError             what should be stored or read was not
│   ├── StorageTypeError        a type that is not stored, or not loaded: it is unknown
│   └── LostRunError            the run belongs to another process by now: nothing was written
├── OutputError              stdout or a file that cannot be written: the run is over, its output lost
└── LimitReached             a stop signal: a limit of the run ended it; exit code 4
    ├── BudgetExceeded          a call did not fit what is left of a budget
    ├── DeadlineReached         the run's own clock
    ├── LoopStopped             an agent went round without an end
    ├── QueueFull               too many calls wait for their turn at an endpoint
    └── StopRequested           somebody asked the run to stop: it begins no new call
        └── Declined                a person said no to what the run was about to do
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from orchestrator.text import one_line

__all__ = [
    "BranchTimeoutError",
    "BudgetExceeded",
    "CallFailedError",
    "CallTimeoutError",
    "DatabaseOpenError",
    "DeadlineReached",
    "Declined",
    "DocumentsError",
    "EmptyAnswerError",
    "FetchRefusedError",
    "GraphError",
    "InputError",
    "InvalidAnswerError",
    "LimitReached",
    "LoopStopped",
    "LostRunError",
    "ModelCallError",
    "ModelSpecError",
    "OrchestratorError",
    "OutputError",
    "QueueFull",
    "RefusedError",
    "StopRequested",
    "StorageError",
    "StorageTypeError",
    "ThrottledError",
    "ToolError",
    "TruncatedError",
    "WorkflowLoadError",
    "WorkflowNotFoundError",
    "said",
]


class OrchestratorError(Exception):
    """Every error of ours: `what` happened, `where`, and the `remedy`; each is one printable line."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what = one_line(what, 400)
        self.where = one_line(where, 300)
        self.remedy = one_line(remedy, 300)
        super().__init__(self.what, self.where, self.remedy)

    def __str__(self) -> str:
        return " ".join(line if line[-1] in ".?!:" else f"{line}." for line in self.lines()).removesuffix(".")

    def lines(self) -> list[str]:
        """What, where and remedy: one line each, the empty ones left out."""
        return [line for line in (self.what, self.where, self.remedy) if line]


class InputError(OrchestratorError):
    """Bad input or usage; nothing was started."""

    exit_code = 2


class WorkflowNotFoundError(InputError):
    """No module answers to this workflow name."""


class WorkflowLoadError(InputError):
    """The module cannot be imported, or offers no workflow."""


class GraphError(InputError):
    """The graph fails the checks at load; `problems` holds a sentence for each."""

    def __init__(self, what: str, problems: Sequence[str], *, where: str = "", remedy: str = "") -> None:
        self.problems = [one_line(problem, 300) for problem in problems]
        super().__init__(what, where=where, remedy=remedy)

    def lines(self) -> list[str]:
        """What, where, each problem, and the remedy."""
        return [line for line in (self.what, self.where, *self.problems, self.remedy) if line]


class ModelSpecError(InputError):
    """A model string, key or base URL that cannot work."""


class DocumentsError(InputError):
    """Documents that are missing, or that nothing can be read from."""


class DatabaseOpenError(InputError):
    """A database that cannot be opened, or is none of ours; nothing was written to it."""


class ModelCallError(OrchestratorError):
    """A model call that gave no usable answer; `status` is what its branch ends as.

    `retry`: the same request may succeed when it is made again. `retry_after`: seconds that the server asks to wait, None: it said nothing.
    """

    status: ClassVar[Literal["failed", "refused", "timed_out"]] = "failed"
    retry: bool = False
    retry_after: float | None = None


class CallFailedError(ModelCallError):
    """The endpoint refused the call, or was not reached."""


class ThrottledError(CallFailedError):
    """The endpoint asks for fewer requests; `overloaded`: it has no room for the call now (503, 529), whatever their rate is."""

    retry = True
    overloaded: bool = False


class CallTimeoutError(ModelCallError):
    """The call took longer than one of its clocks; `seconds` is what that clock allows."""

    status = "timed_out"
    seconds: float = 0.0


class RefusedError(ModelCallError):
    """A content filter, or the model itself, refused to answer."""

    status = "refused"


class TruncatedError(ModelCallError):
    """The answer was cut: the length limit was reached, or the stream ended without a finish reason."""


class EmptyAnswerError(ModelCallError):
    """The answer has no content and no tool call."""


class InvalidAnswerError(ModelCallError):
    """The answer does not fit its schema after the allowed repairs."""


class ToolError(OrchestratorError):
    """A tool could not do its work; the text is fed back to the model that called it."""


class FetchRefusedError(ToolError):
    """The policy forbids this URL."""


class BranchTimeoutError(OrchestratorError):
    """A branch took longer than branch_timeout, waiting for a turn left out."""


class StorageError(OrchestratorError):
    """What should be stored or read was not; what was acknowledged before is still there."""


class StorageTypeError(StorageError):
    """A type that is not stored, or not loaded: it is none of those that are known to be data."""


class LostRunError(StorageError):
    """The run belongs to another process by now, so that nothing of this one was written."""


class OutputError(OrchestratorError):
    """Stdout or a file cannot be written: the run is over, and its output is lost."""


class LimitReached(OrchestratorError):  # noqa: N818 - a stop signal says what happened
    """A limit of the run ended it."""

    exit_code = 4


class BudgetExceeded(LimitReached):
    """A call did not fit what is left of a budget."""


class DeadlineReached(LimitReached):
    """The run took longer than its deadline."""


class LoopStopped(LimitReached):
    """An agent went round without an end: too many model calls."""


class QueueFull(LimitReached):
    """Too many calls wait for their turn at an endpoint."""


class StopRequested(LimitReached):
    """Somebody asked the run to stop: what is in flight ends, and no new call is begun."""


class Declined(StopRequested):
    """A person said no to what the run was about to do."""


def said(error: BaseException) -> str:
    """An error in one sentence; one that is not ours is named by its type."""
    return str(error) if isinstance(error, OrchestratorError) else one_line(f"{type(error).__name__}: {error}", 400)
