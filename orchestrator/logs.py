"""Logs: structlog on stderr or in a file, with run and branch bound; the standard library's loggers come the same way."""

import logging
import logging.handlers
import os
import queue
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from orchestrator.events import Event, current_branch
from orchestrator.text import secrets_of, without

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

__all__ = ["LogFormat", "escaped", "log_event", "open_logs"]

LogFormat = Literal["console", "json"]

_TOLD = {"run_started", "documents", "plan", "branch_started", "branch_finished", "throttled", "fallback", "dropped", "report", "result"}
_UNTOLD = {"token", "custom"}  # output as it comes: there is no end of it
_LONGEST = 2000  # characters of one field; a model's whole answer does not belong into a log


@contextmanager
def open_logs(
    *, log_file: Path | None = None, log_format: LogFormat = "console", debug: bool = False, quiet: bool = False, run_id: str | None = None
) -> Iterator[None]:
    """Send every log record to stderr or to `log_file` (appended), as long as the block lasts.

    On stderr from WARNING on (`quiet`: ERROR), in a file our own from INFO on too; `debug`: everything.
    """
    target = _target(log_file)
    target.setFormatter(_Line())
    # Lines are made and written elsewhere: neither the import of structlog nor a slow disk or terminal may hold the event loop.
    waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = _Queued(waiting)
    handler.setFormatter(_Formatter(log_format, debug, run_id))
    writer = logging.handlers.QueueListener(waiting, target)
    root, ours = logging.getLogger(), logging.getLogger("orchestrator")
    before = (root.handlers[:], root.level, ours.level, warnings.showwarning)
    root.handlers = [handler]
    root.setLevel(logging.DEBUG if debug else logging.ERROR if quiet and log_file is None else logging.WARNING)
    ours.setLevel(logging.DEBUG if debug else logging.INFO if log_file is not None else logging.NOTSET)
    logging.captureWarnings(True)
    # Where there will be records, or somebody's workflow logs with it, it is imported now; nobody else is made to wait for that.
    if log_file is not None or debug or "structlog" in sys.modules:
        _configure_structlog()
    writer.start()
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers, warnings.showwarning = before[0], before[3]
        root.setLevel(before[1])
        ours.setLevel(before[2])
        writer.stop()
        target.close()
        if "structlog" in sys.modules:
            import structlog

            structlog.reset_defaults()


def log_event(event: Event) -> None:
    """An event of a run as a log record: what a person wants to know later at INFO, each call and step at DEBUG."""
    if event.kind in _UNTOLD:
        return
    level = logging.INFO if event.kind in _TOLD else logging.DEBUG
    if event.kind == "log":
        level = logging.getLevelNamesMapping().get(str(event.fields.get("level", "info")).upper(), logging.INFO)
    if not logging.getLogger("orchestrator").isEnabledFor(level):
        return
    fields, message = dict(event.fields), str(event.kind)
    where = {key: value for key, value in (("branch", event.branch), ("role", event.role)) if value}
    if event.kind == "log":
        fields.pop("level", None)
        message = str(fields.pop("message", ""))
    elif event.kind == "result":
        fields = {key: fields.get(key) for key in ("status", "error", "seconds")}
    raised = fields.pop("exception", None)
    logging.getLogger("orchestrator").log(level, "%s", message, exc_info=raised, extra={"fields": {**where, **fields}})


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at that moment: a live view puts itself there, and lines then come above it."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            self.stream = sys.stderr
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """A log line that cannot be written, because the reader has left, is lost and no more than that."""


class _Queued(logging.handlers.QueueHandler):
    """Puts records on the queue, each with what makes its line in the context where it arose: run and branch are known there."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        queued = logging.makeLogRecord(record.__dict__)
        if isinstance(record.msg, dict):  # structlog's own: what is being handled can be told here alone
            text = self.format(record)
            queued.line = lambda: text
        else:
            queued.msg, queued.args = record.getMessage(), None
            queued.line = partial(copy_context().run, self.format, queued)
        return queued


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: Callable[[], str] = record.__dict__["line"]
        return line()


def _target(log_file: Path | None) -> logging.Handler:
    if log_file is None:
        return _Stderr()
    # The file is made by the first record: nothing is written before the input was found good.
    return logging.FileHandler(log_file, encoding="utf-8", errors="backslashreplace", delay=True)


def _configure_structlog() -> None:
    import structlog

    if not structlog.is_configured():
        structlog.configure(
            processors=[
                structlog.stdlib.filter_by_level,
                *_shared(),
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
            ],
            logger_factory=structlog.stdlib.LoggerFactory(),
            wrapper_class=structlog.stdlib.BoundLogger,
            cache_logger_on_first_use=False,
        )


def _shared() -> "list[Processor]":
    import structlog

    return [
        structlog.contextvars.merge_contextvars,
        _add_branch,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
    ]


class _Formatter(logging.Formatter):
    """structlog's formatter, made for the first record: a run that has nothing to log does not wait for the import."""

    def __init__(self, log_format: LogFormat, debug: bool, run_id: str | None) -> None:
        super().__init__()
        self._made = cache(lambda: _formatter(log_format, debug, run_id))

    def format(self, record: logging.LogRecord) -> str:
        return self._made().format(record)


def _formatter(log_format: LogFormat, debug: bool, run_id: str | None) -> logging.Formatter:
    import structlog

    _configure_structlog()

    def add_run(logger: "WrappedLogger", method: str, record: "EventDict") -> "EventDict":
        if run_id is not None:
            record.setdefault("run_id", run_id)
        return record

    last: list[Processor] = [_Redact(os.environ), _render_line]
    if log_format == "json":
        # ASCII only: whatever a field holds is escaped, and nothing is lost.
        last[1] = structlog.processors.JSONRenderer(ensure_ascii=True, default=str)
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_shared(), _from_record],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            add_run,
            structlog.processors.format_exc_info if debug else _name_exception,
            _cut,
            *last,
        ],
    )


def _add_branch(logger: "WrappedLogger", method: str, record: "EventDict") -> "EventDict":
    branch = current_branch()
    if branch is not None:
        record.setdefault("branch", branch)
    return record


def _from_record(logger: "WrappedLogger", method: str, record: "EventDict") -> "EventDict":
    """When it arose, and the fields of an event of a run."""
    arose = datetime.fromtimestamp(record["_record"].created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {**record, "timestamp": arose, **getattr(record["_record"], "fields", {})}


def _name_exception(logger: "WrappedLogger", method: str, record: "EventDict") -> "EventDict":
    """The exception in one line; its traceback is for --debug."""
    raised = record.pop("exc_info", None)
    if raised is True:
        raised = sys.exc_info()
    error = raised[1] if isinstance(raised, tuple) else raised
    if isinstance(error, BaseException):
        record["exception"] = escaped(f"{type(error).__name__}: {error}")
    return record


def _cut(logger: "WrappedLogger", method: str, record: "EventDict") -> "EventDict":
    return {key: _shortened(value) if key != "exception" else value for key, value in record.items()}


def _shortened(value: object) -> object:
    if isinstance(value, bool | int | float | None):
        return value
    text = value if isinstance(value, str) else str(value)
    return value if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


class _Redact:
    """Takes the values of keys, tokens and passwords of the environment out of every field."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._secrets = set(secrets_of(environ).values())

    def __call__(self, logger: "WrappedLogger", method: str, record: "EventDict") -> "EventDict":
        return {key: self._clean(value) for key, value in record.items()} if self._secrets else record

    def _clean(self, value: Any) -> Any:
        text = value if isinstance(value, str) else str(value)
        cleaned = without(self._secrets, text, "[redacted]")
        return value if cleaned == text else cleaned


def _render_line(logger: "WrappedLogger", method: str, record: "EventDict") -> str:
    """`2026-01-01T00:00:00Z WARNING httpx: message key=value`; a traceback follows on lines of its own."""
    record = dict(record)
    exception = record.pop("exception", "")
    stamp, level, name = (str(record.pop(key, "")) for key in ("timestamp", "level", "logger"))
    message = escaped(str(record.pop("event", "")))
    pairs = "".join(f" {escaped(str(key))}={escaped(value if isinstance(value, str) else repr(value))}" for key, value in record.items())
    lines = str(exception).splitlines()
    if len(lines) == 1:
        return f"{stamp} {level.upper()} {escaped(name)}: {message}{pairs} ({escaped(lines[0])})"
    return "\n".join([f"{stamp} {level.upper()} {escaped(name)}: {message}{pairs}", *(f"  | {escaped(line)}" for line in lines)])


def escaped(text: str) -> str:
    """`text` on one line, every control, bidirectional, zero-width and line-breaking character as its escape, such as `\\n`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
