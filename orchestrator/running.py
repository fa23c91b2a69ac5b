"""The runs that are going on: a small file for each, so that another shell can stop one, and no two have the same id."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.errors import InputError
from orchestrator.events import RUN_ID
from orchestrator.text import one_line

__all__ = ["Running", "registered", "running", "stop_run"]

_TRIES = 5
_LOOK = 0.05  # seconds between two looks at a process that is to end


@dataclass(frozen=True)
class Running:
    """A run that is going on. `born` tells its process from a later one with the same number; `since` is seconds since the epoch."""

    run_id: str
    pid: int
    born: str
    host: str
    workflow: str
    since: float

    def alive(self) -> bool:
        """Whether its process is there; of another machine's nobody here can tell, so it counts as alive."""
        return self.host != socket.gethostname() or (bool(self.born) and _born(self.pid) == self.born)

    def __str__(self) -> str:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"pid {self.pid}, {one_line(self.host, 60)}, since {began}"


@contextlib.contextmanager
def registered(run_id: str, workflow: str) -> Iterator[Callable[[], None]]:
    """Inside, the run is among those that are running, until the end or until what is given is called.

    Raises InputError where a run of this id is, and OSError where it cannot be written down.
    """
    path = _folder() / f"{run_id}.json"
    _enter(path, Running(run_id, os.getpid(), _born(os.getpid()), socket.gethostname(), workflow, time.time()))

    def leave() -> None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            path.parent.rmdir()  # as long as no other run is in it

    try:
        yield leave
    finally:
        leave()


def running() -> list[Running]:
    """The runs that are going on, the oldest first; what a process left behind that is gone is removed."""
    folder = _folder()
    if not folder.is_dir():
        return []
    with _locked(folder):
        found = [(path, _read(path)) for path in folder.glob("*.json")]
        for path, run in found:
            if run is None or not run.alive():
                path.unlink(missing_ok=True)
    return sorted((run for _, run in found if run is not None and run.alive()), key=lambda run: run.since)


def stop_run(run_id: str, seconds: float) -> bool:
    """Ask the process of a run to end, and wait up to `seconds`: whether it did. Raises InputError where there is no such run."""
    path = _folder() / f"{run_id}.json"
    run = _read(path) if RUN_ID.fullmatch(run_id) else None
    if run is not None and not run.alive():
        path.unlink(missing_ok=True)
        raise InputError(f"run {run_id!r} of workflow {run.workflow!r} has ended: its process is gone", where=str(run))
    if run is None:
        raise InputError(f"no run {one_line(run_id, 80)!r} is running", where=_named(running()))
    if run.host != socket.gethostname():
        raise InputError(f"run {run_id!r} is on another machine", where=str(run), remedy=f"cancel it on {one_line(run.host, 60)}")
    try:
        os.kill(run.pid, signal.SIGTERM)
    except ProcessLookupError:
        return True
    except PermissionError:
        raise InputError(f"run {run_id!r} is another user's", where=str(run), remedy="ask its user, or cancel it as root") from None
    end = time.monotonic() + seconds
    while run.alive() and time.monotonic() < end:
        time.sleep(_LOOK)
    return not run.alive()


def _named(runs: list[Running]) -> str:
    if not runs:
        return "no run is going on"
    return "these are running: " + "; ".join(f"{run.run_id} ({one_line(run.workflow, 40)}, {run})" for run in runs[:10])


def _folder() -> Path:
    from orchestrator.documents.store import default_home

    return default_home() / "running"


def _enter(path: Path, run: Running) -> None:
    for _ in range(_TRIES):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with _locked(path.parent):
                other = _read(path)
                if other is not None and other.alive():
                    raise InputError(
                        f"run {run.run_id!r} is already running",
                        where=f"{other}",
                        remedy=f"give another --run-id, or: python -m orchestrator cancel {run.run_id}",
                    )
                _write(path, json.dumps(asdict(run)))
                return
        except FileNotFoundError:  # the folder went with the last run that was in it
            continue
    raise FileNotFoundError(str(path.parent))


def _write(path: Path, text: str) -> None:
    """The whole file or none, for the user alone."""
    new = path.with_suffix(f".{os.getpid()}")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(new, path)


def _read(path: Path) -> Running | None:
    """What a file says; None where there is none, or it says nothing."""
    try:
        return Running(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time looks at the folder and changes it; where locks are unknown, several."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except ImportError:  # on Windows
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _born(pid: int) -> str:
    """When a process was started, as the system tells it; "" where there is none, or it has ended and only waits to be fetched."""
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in "ZX" else fields[19]  # man proc: state is field 3, starttime is field 22
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the system's own, with a number
    return told.stdout.strip()
