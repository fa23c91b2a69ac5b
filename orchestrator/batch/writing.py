"""The results of a batch: one line of JSON for each input, appended as they come, to a file that one process writes at a time."""

import contextlib
import errno
import json
import os
import re
import stat
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from orchestrator.batch.reading import Item
from orchestrator.errors import InputError, OutputError
from orchestrator.text import secrets_of, without

__all__ = ["Output", "add_usage", "failed_result", "result_line"]

_SYNC_EVERY = 1.0  # seconds: what a power failure takes is written again from the store
_LONGEST = 256 * 1024 * 1024  # bytes of a line of ours
_HEAD = 4096  # bytes of a line of ours in which its run's id stands
_OURS = {"run_id", "workflow", "status"}
_ODD = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]")


class Output:
    """The results file of a batch: `written` has the status of each result that is there, by its run's id.

    `used` is what they used, in all. A file that holds anything else is refused unless `append`. The last line of a process that was
    killed while it wrote is cut.
    """

    def __init__(self, path: Path, batch: str, *, append: bool = False) -> None:
        self.path = path
        self.written: dict[str, str] = {}
        self.used: dict[str, Any] = {}
        self.batch = batch
        self._append = append
        self._secrets = set(secrets_of(os.environ).values())
        self._writing = threading.Lock()
        self._handle = -1
        self._size = 0
        self._synced = 0.0

    def look(self) -> None:
        """Lock the file and read what is there, if there is one; nothing is written.

        Raises InputError where it is another's, or another process writes it.
        """
        if not self.path.exists():
            return
        self._open(0)
        self._size = self._scan()

    def begin(self) -> None:
        """Make the file, or cut what an earlier process left unfinished. Raises OutputError, InputError."""
        if self._handle < 0:
            self._open(os.O_CREAT | os.O_EXCL)
        try:
            os.ftruncate(self._handle, self._size)
            if self._size and os.pread(self._handle, 1, self._size - 1) != b"\n":
                self._write(b"\n")
        except OSError as error:
            raise self._failed(error) from error

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a result, whole or not at all; from any thread. Raises OutputError."""
        content = _encoded(line, self._secrets)
        with self._writing:
            try:
                self._check_same()
                self._write(content)
                self.written[str(line["run_id"])] = str(line["status"])
                if time.monotonic() >= self._synced + _SYNC_EVERY:
                    os.fsync(self._handle)
                    self._synced = time.monotonic()
            except OSError as error:
                raise self._failed(error) from error

    def close(self) -> None:
        """Bring everything to the disk, and let others write the file; called again it does nothing. Raises OutputError."""
        if self._handle < 0:
            return
        handle, self._handle = self._handle, -1
        try:
            os.fsync(handle)
        except OSError as error:
            raise self._failed(error) from error
        finally:
            os.close(handle)

    def _open(self, flags: int) -> None:
        try:
            self._handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | flags, 0o666)
            _check_regular(self._handle, self.path)
            _lock(self._handle, self.path)
        except FileExistsError:
            raise _busy(self.path) from None
        except OSError as error:
            self._let_go()
            raise self._failed(error) from error
        except InputError:
            self._let_go()
            raise

    def _let_go(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _scan(self) -> int:
        """Read the lines that are there; the size of the file without what was left unfinished."""
        end = 0
        with os.fdopen(os.dup(self._handle), "rb") as file:
            file.seek(0)
            while content := file.readline(_LONGEST):
                own = self._take(content)
                if not own and not content.endswith(b"\n") and _is_torn(content, self.batch):
                    return end
                if not own and not self._append:
                    self._let_go()
                    raise InputError(
                        "the output file exists, and holds what this batch did not write",
                        where=f"{self.path}, at byte {end:,}",
                        remedy="name another --output, or write behind it with --append",
                    )
                end += len(content)
        return end

    def _take(self, content: bytes) -> bool:
        """Count a line that is this batch's own; whether it is."""
        try:
            line = json.loads(content)
            run_id, status, usage = line["run_id"], line["status"], line["usage"]
            if not run_id.startswith(f"{self.batch}-"):
                return False
            add_usage(self.used, usage)
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        self.written[run_id] = str(status)
        return True

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        try:
            while left:
                left = left[os.write(self._handle, left) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, self._size)
            raise
        self._size += len(content)

    def _check_same(self) -> None:
        """Raises OutputError where the file was deleted, replaced or written by others: what we write would be lost."""
        found = os.fstat(self._handle)
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (found.st_dev, found.st_ino):
            what = "the output file was deleted or replaced while the batch wrote it"
        elif found.st_size != self._size:
            what = "the output file was changed while the batch wrote it"
        else:
            return
        raise OutputError(what, where=str(self.path), remedy="start the same command again: what is finished is written from the store")

    def _failed(self, error: OSError) -> OutputError:
        what = f"the output cannot be written: {error.strerror or error}"
        remedy = "make room, or mend it, and start the same command again: what is finished is in the store, and nothing is lost"
        return OutputError(what, where=str(self.path), remedy=remedy)


def add_usage(total: dict[str, Any], usage: Mapping[str, Any]) -> None:
    """Add the usage of a result to a total in the same form; with a cost that is not known that of the total is None."""
    for name in ("model_calls", "estimated_calls", "input_tokens", "output_tokens"):
        total[name] = total.get(name, 0) + (usage.get(name) or 0)
    costs = total.get("cost_usd", 0.0), usage.get("cost_usd", 0.0)
    total["cost_usd"] = None if None in costs else round(sum(costs), 6)
    for role, used in (usage.get("by_role") or {}).items():
        add_usage(total.setdefault("by_role", {}).setdefault(role, {}), used)


def result_line(item: Item, result: Mapping[str, Any]) -> dict[str, Any]:
    """A result with the id and the line of its input."""
    return {"id": item.id, "line": item.line, **result, "run_id": item.run_id}


def failed_result(workflow: str, error: str) -> dict[str, Any]:
    """What stands in for the result of an input that could not be run."""
    usage = {"model_calls": 0, "estimated_calls": 0, "input_tokens": 0, "output_tokens": 0, "cost_usd": 0.0, "by_role": {}}
    result = {"run_id": "", "workflow": workflow, "status": "failed", "output": {}, "branches": [], "usage": usage, "seconds": 0.0}
    return {**result, "model": "", "trace_url": None, "error": error}


def _encoded(line: Mapping[str, Any], secrets: Collection[str]) -> bytes:
    """A line of JSON: keys, tokens and passwords are taken out, and what a terminal obeys or ends a line stands as an escape."""
    text = json.dumps(line, ensure_ascii=False)
    if any(secret in text for secret in secrets):
        text = json.dumps(_cleaned(line, secrets), ensure_ascii=False)
    return (_ODD.sub(lambda odd: f"\\u{ord(odd[0]):04x}", text) + "\n").encode()


def _cleaned(value: Any, secrets: Collection[str]) -> Any:
    if isinstance(value, str):
        return without(secrets, value, "[redacted]")
    if isinstance(value, Mapping):
        return {key: item if key in _OURS else _cleaned(item, secrets) for key, item in value.items()}
    return [_cleaned(item, secrets) for item in value] if isinstance(value, list) else value


def _is_torn(content: bytes, batch: str) -> bool:
    """Whether this is the beginning of a line of ours, and not the whole: what a process leaves that is killed while it writes."""
    if not content.strip(b"\0"):
        return True  # of a machine that lost its power
    try:
        json.loads(content)
    except ValueError:
        start = content[:_HEAD]
        return batch.encode() in start or (len(content) < _HEAD and b'{"id": '.startswith(start[:7]))
    return False


def _check_regular(handle: int, path: Path) -> None:
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        what = "the output is no regular file, and a batch that goes on reads what is there"
        raise InputError(what, where=str(path), remedy="name a file")


def _busy(path: Path) -> InputError:
    what = "another process is writing this output"
    return InputError(what, where=str(path), remedy="wait for its end, or name another --output")


def _lock(handle: int, path: Path) -> None:
    """Raises InputError where another process has the lock; where files cannot be locked, nothing does."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # on Windows
        return
    except BlockingIOError:
        raise _busy(path) from None
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS):
            raise
