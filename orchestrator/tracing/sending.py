"""Spans on their way to LangSmith: made plain and sent by a thread of its own, so that nothing there can hold a run up."""

import logging
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import requests
from langsmith import Client
from langsmith.run_trees import RunTree
from langsmith.utils import LangSmithAuthError, LangSmithConflictError, LangSmithError, LangSmithMissingAPIKeyWarning
from urllib3 import Retry

from orchestrator.errors import said
from orchestrator.text import one_line
from orchestrator.tracing.redaction import Redactor, packed

__all__ = ["Destination", "Operation", "Sender"]

Operation = dict[str, Any]
"""A run as LangSmith's ingestion takes it; keys are taken out of it when it is sent."""

_EVERY = 1.0  # seconds between two sendings; what begins and ends in one of them is sent once
_CONNECT, _READ = 1.5, 5.0  # seconds; the client's own are 3 and 10, three times over
_AT_ONCE = 100  # operations in one request
_WEIGHT = 8_000_000  # bytes in one request
_TOLD = ("name", "tags", "extra", "inputs", "outputs", "error")  # what may hold a key
_MOST = 20_000  # operations that wait; beyond that they are lost, and counted
_BOUNDARY = uuid.uuid4().hex
_AGAIN = 0.2  # second until what failed is tried once more
_PAUSE = 5.0  # seconds after a failure in which nothing is sent
_URL_TRIES, _URL_PAUSE = 3, 0.1  # seconds, the first of them


class _Session(requests.Session):
    """Requests that end soon, and are compressed where LangSmith says that it takes that."""

    compressing: Callable[[], bool] = staticmethod(lambda: False)

    def request(self, method: Any, url: Any, **options: Any) -> requests.Response:  # type: ignore[override]
        options["timeout"] = (_CONNECT, _READ)
        body = options.get("data")
        if isinstance(body, bytes) and str(url).endswith("/runs/multipart") and self.compressing():
            import zstandard

            options["data"] = zstandard.ZstdCompressor(level=1).compress(body)
            sizes = {"X-Pre-Compressed-Size": str(len(body)), "X-Post-Compressed-Size": str(len(options["data"]))}
            options["headers"] = {**(options.get("headers") or {}), "Content-Encoding": "zstd", **sizes}
        return super().request(method, url, **options)


class Destination(Client):
    """LangSmith's client, by which whatever is traced goes through one sender: `@traceable` functions of the user's own, too."""

    def __init__(self, put: Callable[[Operation], None], failed: Callable[[Exception], None]) -> None:
        session = _Session()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LangSmithMissingAPIKeyWarning)  # the first request says so
            super().__init__(
                session=session,
                auto_batch_tracing=False,
                timeout_ms=(int(_CONNECT * 1000), int(_READ * 1000)),
                retry_config=Retry(total=0),
                tracing_mode="langsmith",
                omit_traced_runtime_info=True,  # of every span the same: the root has it
                tracing_error_callback=failed,
            )
        self._put = put
        session.compressing = self._compresses

    def samples(self, trace_id: Any) -> bool:
        """Whether a trace is one of those that are sent, of which LangSmith's own variable says how many."""
        return bool(self._filter_for_sampling([{"id": trace_id, "trace_id": trace_id}]))

    def _compresses(self) -> bool:
        off = any(os.environ.get(f"{space}_DISABLE_RUN_COMPRESSION", "").lower() in ("true", "1") for space in ("LANGSMITH", "LANGCHAIN"))
        flags = self._info.instance_flags if self._info is not None else None
        return not off and bool((flags or {}).get("zstd_compression_enabled"))

    def create_run(self, name: str, inputs: dict[str, Any], run_type: Any, **fields: Any) -> None:
        """Take a run in; it is sent soon."""
        fields.pop("revision_id", None)
        session = fields.pop("project_name", None) or fields.pop("session_name", None)
        self._put({**fields, "session_name": session, "name": name, "inputs": inputs, "run_type": run_type})

    def update_run(self, run_id: Any, **fields: Any) -> None:
        """Take the end of a run in; it is sent soon."""
        self._put({**fields, "id": run_id, "patch": True})

    def _send_multipart_req(self, acc: Any, **options: Any) -> None:
        """As the client does it, with the parts joined at once: its own encoder takes as long as all the rest of a sending."""
        try:
            body = _joined(acc)
            [url], headers = self._write_api_urls, dict(self._headers)
        except (AttributeError, TypeError, ValueError):  # a client of another version, files, or several endpoints
            super()._send_multipart_req(acc, **options)
            return
        headers["Content-Type"] = f"multipart/form-data; boundary={_BOUNDARY}"
        for last in (False, True):
            try:
                sending = {"data": body, "headers": dict(headers)}
                self.request_with_retries("POST", f"{url}/runs/multipart", request_kwargs=sending, stop_after_attempt=1)
            except LangSmithConflictError:  # it is there already
                return
            except LangSmithError as error:  # once more: it may have been a moment's
                if last or isinstance(error, LangSmithAuthError):
                    raise
                time.sleep(_AGAIN)
            else:
                return


def _joined(form: Any) -> bytes:
    """A multipart form as bytes; raises TypeError where a part of it is a file."""
    pieces: list[bytes] = []
    for name, (_, content, kind, headers) in form.parts:
        told = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\nContent-Type: {kind}\r\n{told}\r\n'
        pieces += (head.encode(), content, b"\r\n")
    return b"".join([*pieces, f"--{_BOUNDARY}--\r\n".encode()])


class Sender:
    """The thread that sends; one for all runs of the process that trace at the same time.

    `made` are functions that make operations, called by the thread: what a span holds is made plain there.
    """

    def __init__(self, redactor: Redactor) -> None:
        self.redactor = redactor
        self.lost = 0
        self.cause = ""
        self._refused = False  # for good: the key is wrong
        self._failures: list[Exception] = []
        self._quiet_until = 0.0
        self._waiting: list[Callable[[], Operation | None]] = []
        self._also: list[Callable[[], None]] = []
        self._condition = threading.Condition()
        self._busy = 0
        self._hurry = False
        self._closed = False
        self._projects: dict[str, Any] = {}
        self._urls: dict[str, str] = {}  # by project, with {} for the run
        self.client = Destination(self._foreign, self._failures.append)
        self._thread = threading.Thread(target=self._run, name="orchestrator trace", daemon=True)
        self._thread.start()

    def put(self, make: Callable[[], Operation | None], *, now: bool = False) -> None:
        """Take an operation in, which `make` gives when its time has come; from any thread."""
        with self._condition:
            if len(self._waiting) >= _MOST or self._closed:
                self.lost += 1
                return
            self._waiting.append(make)
            if now:
                self._hurry = True
                self._condition.notify_all()

    def also(self, act: Callable[[], None]) -> None:
        """Have the thread do something, once what was put before is sent."""
        with self._condition:
            self._also.append(act)
            self._hurry = True
            self._condition.notify_all()

    @property
    def works(self) -> bool:
        """Whether nothing has failed so far."""
        return not self.cause

    def flush(self, seconds: float) -> None:
        """Send what waits, and wait for that no longer than `seconds`; call it in a thread."""
        until = time.monotonic() + seconds
        with self._condition:
            self._hurry = True
            self._condition.notify_all()
            while (self._waiting or self._also or self._busy) and (left := until - time.monotonic()) > 0:
                self._condition.wait(left)

    def close(self) -> int:
        """Take nothing more in; how many operations were lost, those that are still on their way included."""
        with self._condition:
            self._closed = True
            self.lost += len(self._waiting) + self._busy
            self._waiting.clear()
            self._condition.notify_all()
        with suppress(Exception):
            self.client.session.close()
        return self.lost

    def _foreign(self, operation: Operation) -> None:
        def made() -> Operation:
            told: dict[str, Any] = {
                name: self.redactor.body(operation[name]) for name in ("inputs", "outputs") if operation.get(name) is not None
            }
            told |= {name: operation[name] for name in ("name", "tags", "extra") if operation.get(name) is not None}
            if operation.get("error"):
                told["error"] = self.redactor.error(str(operation["error"]), "failed")
            return {**operation, **told}

        self.put(made)

    def _run(self) -> None:
        log = logging.getLogger("langsmith")
        log.setLevel(logging.CRITICAL)  # what goes wrong is told once, at the end
        while not self._closed:
            with self._condition:
                if not self._hurry:
                    self._condition.wait(_EVERY)
                self._hurry = False
                waiting, self._waiting = self._waiting, []
                also, self._also = self._also, []
                self._busy = len(waiting) + len(also)
            try:
                if waiting:
                    self._send(waiting)
                for act in also:
                    act()
            finally:
                with self._condition:
                    self._busy = 0
                    self._condition.notify_all()

    def _send(self, waiting: Sequence[Callable[[], Operation | None]]) -> None:
        batch: list[tuple[Operation, dict[str, Any], bytes | None]] = []
        weight = 0
        for make in waiting:
            try:
                operation = make()
            except Exception as error:  # noqa: BLE001 - a value that cannot be made plain costs its span alone
                self._lose(1, error)
                continue
            if operation is None:
                continue
            told = {name: operation.pop(name) for name in _TOLD if name in operation}
            part = packed(told)
            batch.append((operation, told, part))
            weight += len(part or repr(told))
            if len(batch) >= _AT_ONCE or weight > _WEIGHT:
                self._clean_and_ship(batch)
                batch, weight = [], 0
        if batch:
            self._clean_and_ship(batch)

    def _clean_and_ship(self, batch: Sequence[tuple[Operation, dict[str, Any], bytes | None]]) -> None:
        clean = self.redactor.clean_all([(told, part) for _, told, part in batch])
        self._ship([{**operation, **told} for (operation, _, _), told in zip(batch, clean, strict=True)])

    def _ship(self, batch: list[Operation]) -> None:
        """Send operations in one request; those that do not arrive are lost."""
        if self._refused or self._closed or time.monotonic() < self._quiet_until:
            self._lose(len(batch), None)
            return
        create = [operation for operation in batch if not operation.pop("patch", False)]
        made = {id(operation) for operation in create}
        update = [operation for operation in batch if id(operation) not in made]
        self._failures.clear()
        try:
            self.client.multipart_ingest(create=create, update=update)
        except Exception as error:  # noqa: BLE001 - whatever LangSmith's client raises, the run goes on
            self._failures.append(error)
        if self._failures:
            self._refused = isinstance(self._failures[0], LangSmithAuthError)
            self._quiet_until = time.monotonic() + _PAUSE
            self._lose(len(batch), self._failures[0])

    def _lose(self, count: int, error: Exception | None) -> None:
        with self._condition:
            self.lost += count
            if error is not None and not self.cause:
                self.cause = one_line(self.redactor.text(said(error)))

    def url_of(self, run: Mapping[str, Any]) -> str | None:
        """The address of a run in LangSmith; None where it does not say. Asks it: only for the thread."""
        project, run_id = str(run["session_name"]), str(run["id"])
        for attempt in range(_URL_TRIES):
            if self.cause:
                break
            with suppress(Exception):  # a project that is only just being made, or a server that does not know this
                url = RunTree(**run, project_id=self._project(project), ls_client=self.client).get_url()
                self._urls[project] = url.replace(run_id, "{}") if run_id in url else ""
                return url
            time.sleep(_URL_PAUSE * (attempt + 1))
        return None

    def known_url(self, project: str, run_id: Any) -> str | None:
        """The address of a run in a project of which another run's address is known: that of the next differs in the run's id alone."""
        return self._urls[project].format(run_id) if self._urls.get(project) else None

    def _project(self, name: str) -> Any:
        if name not in self._projects:
            self._projects[name] = self.client.read_project(project_name=name).id
        return self._projects[name]

    def feedback(self, run: Mapping[str, Any], scores: Mapping[str, float | int]) -> None:
        """Send scores of a run: only for the thread."""
        for key, score in scores.items():
            if self.cause:
                self._lose(1, None)
                continue
            try:
                known = {"session_id": self._project(str(run["session_name"])), "start_time": run["start_time"]}
                self.client.create_feedback(run["id"], key, score=score, trace_id=run["trace_id"], stop_after_attempt=1, **known)
            except Exception as error:  # noqa: BLE001 - as above
                self._lose(1, error)
