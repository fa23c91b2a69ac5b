"""Which process a run belongs to, and whether it is still there."""

import asyncio
import functools
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.text import one_line

__all__ = ["LEASE", "Owner", "drop", "hold", "is_living", "new_owner"]

LEASE = 30.0
"""Seconds after its last heartbeat for which a run on another machine counts as running."""

_COMMAND = "command-"
_processes: dict[int, tuple[str, str, str]] = {}  # what a claim says of this one, by its number: a fork has another
_held: set[str] = set()  # tokens of the claims that this process works for


@dataclass(frozen=True)
class Owner:
    """One claim of a run: `token` is its own, the rest is its process. `born` tells that from a later one with the same number.

    `space` is the boot of the machine and the process namespace on it: only in there does the number mean anything.
    """

    token: str
    pid: int
    born: str
    host: str
    space: str

    @property
    def ends_on_signal(self) -> bool:
        """Whether its process is the command line's, which ends its run, and then itself, on SIGTERM."""
        return self.token.startswith(_COMMAND)

    def here(self) -> bool:
        """Whether its process would be seen from this one."""
        return (self.host, self.space) == _place()

    def gone(self) -> bool:
        """Whether its process was looked for and is not there, or works for the run no more; False where nobody here can tell."""
        if not self.here() or not self.born:
            return False
        if self.pid == os.getpid() and self.born == _own_birth(self.pid):
            return self.token not in _held
        return _born(self.pid) != self.born

    def said(self, since: float | None) -> str:
        """`pid 123, host, since 2026-11-20 21:56:09`, in local time."""
        began = "" if since is None else f", since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(since))}"
        return f"pid {self.pid}, {one_line(self.host, 60)}{began}"


async def new_owner() -> Owner:
    """A new claim of this process; it is held until `drop`."""
    pid = os.getpid()
    if pid not in _processes:
        _processes[pid] = await asyncio.to_thread(lambda: (_own_birth(pid), *_place()))  # which reads files
    kind = _COMMAND if getattr(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), "ends_runs", False) else ""
    owner = Owner(kind + secrets.token_hex(8), pid, *_processes[pid])
    hold(owner.token)
    return owner


def hold(token: str) -> None:
    """This process works for the claim `token`."""
    _held.add(token)


def drop(token: str) -> None:
    """This process works for the claim `token` no more: another one in it may take the run."""
    _held.discard(token)


def is_living(owner: Owner | None, heartbeat: float | None) -> bool:
    """Whether somebody works for a run: its process where it can be seen, else a heartbeat that is no older than LEASE."""
    if owner is None:
        return False
    if owner.here() and owner.born:
        return not owner.gone()
    return heartbeat is not None and time.time() - heartbeat < LEASE


@functools.cache
def _place() -> tuple[str, str]:
    """The machine's name, and its boot and process namespace where the system has such."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return socket.gethostname(), f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname(), ""


@functools.lru_cache(maxsize=2)
def _own_birth(pid: int) -> str:
    return _born(pid)


def _born(pid: int) -> str:
    """When a process was started, as the system tells it; "" where there is none, or it has ended and only waits to be fetched."""
    if sys.platform == "linux":
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in "ZX" else fields[19]  # man proc: state is field 3, starttime is field 22
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the system's own, with a number
    except FileNotFoundError:
        return ""
    return told.stdout.strip()
