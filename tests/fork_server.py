"""A Python that has imported what the command line imports and starts nothing; for each request it forks a process that goes on as
`python -m MODULE` or `python -c CODE` would: `python tests/fork_server.py FD`, where FD is a socket to `tests/command_line.py`.

A process that is forked is a child of whoever asked, not of this one (CLONE_PARENT): it is waited for, killed and counted as any other.
"""

import atexit
import builtins
import contextlib
import ctypes
import gc
import importlib
import importlib.machinery
import io
import os
import pickle
import pkgutil
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

__all__ = ["CLONE", "receive", "send"]

CLONE = {"x86_64": 56, "aarch64": 220}  # the number of the system call, on Linux
_CLONE_PARENT = 0x8000
_LENGTH = 8
_SHARED: set[str] = set()  # names of the modules that are there before a process is forked


def send(connection: socket.socket, value: Any, fds: list[int]) -> None:
    """Send one value, with the descriptors that belong to it."""
    told = pickle.dumps(value)
    socket.send_fds(connection, [len(told).to_bytes(_LENGTH, "big")], fds)
    connection.sendall(told)


def receive(connection: socket.socket) -> tuple[Any, list[int]] | None:
    """The next value with its descriptors; None once the other side has left."""
    head, fds, _, _ = socket.recv_fds(connection, _LENGTH, 3)
    if not head:
        return None
    left, parts = int.from_bytes(head, "big"), []
    while left:
        parts.append(connection.recv(left))
        left -= len(parts[-1])
    return pickle.loads(b"".join(parts)), fds  # noqa: S301 - from a test


def _import_all() -> None:
    """What a command may come to import, apart from the workflows: those belong to the test."""
    import agents
    import orchestrator

    for package in (orchestrator, agents):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                with contextlib.suppress(ImportError):  # an extra that is not installed
                    importlib.import_module(module.name)
    from langsmith import utils

    utils.get_env_var.cache_clear()
    utils.get_tracer_project.cache_clear()


def _forget() -> None:
    """At the very end of a process: leave others' modules as they are, as taking apart what was shared takes ten times as long as to fork.

    Our own are taken apart like the rest of what the process has made, with whatever their objects have to say to that.
    """
    others = {name: module for name, module in sys.modules.items() if name in _SHARED and not name.startswith(("orchestrator", "agents"))}
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(others))  # for good
    for name in others:
        del sys.modules[name]


def _fork() -> int:
    """As os.fork(), but the new process has our parent."""
    python = ctypes.PyDLL(None)
    python.PyOS_BeforeFork()
    pid: int = python.syscall(CLONE[os.uname().machine], _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if pid:
        python.PyOS_AfterFork_Parent()
    else:
        python.PyOS_AfterFork_Child()
    return pid


def _stream(fd: int, mode: str) -> Any:
    """A standard stream as the interpreter makes it when it starts."""
    own = getattr(sys, f"__{('stdin', 'stdout', 'stderr')[fd]}__")
    raw = io.FileIO(fd, mode, closefd=False)
    raw.name = own.name  # type: ignore[misc]
    through = own.write_through  # with PYTHONUNBUFFERED
    buffer = io.BufferedReader(raw) if mode == "r" else raw if through else io.BufferedWriter(raw)
    lines = not through and (fd == 2 or raw.isatty())
    stream = io.TextIOWrapper(buffer, own.encoding, own.errors, newline="\n", line_buffering=lines, write_through=through)
    stream.mode = mode  # type: ignore[misc]
    return stream


def _become(request: dict[str, Any], fds: list[int]) -> Callable[[], None]:
    """Make this process what was asked for; what it is to do then."""
    if request["session"]:
        os.setsid()
    for fd, theirs in enumerate(fds):
        os.dup2(theirs, fd)
        os.close(theirs)
    if request["terminal"]:
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    time.tzset()
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__ = (  # type: ignore[misc]
        _stream(0, "r"),
        _stream(1, "w"),
        _stream(2, "w"),
    )
    kind, what, *words = request["words"]
    sys.argv = [kind, *words]
    sys.orig_argv = [sys.executable, *request["words"]]
    sys.path[0] = os.getcwd() if kind == "-m" else ""
    importlib.invalidate_caches()
    main = sys.modules["__main__"] = ModuleType("__main__")
    vars(main).update(__annotations__={}, __builtins__=builtins, __loader__=importlib.machinery.BuiltinImporter)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if kind == "-m":
        return lambda: runpy._run_module_as_main(what)  # type: ignore[attr-defined]
    return lambda: exec(compile(what, "<string>", "exec"), vars(main))  # noqa: S102 - what python -c does


def _serve(connection: socket.socket) -> Callable[[], None] | None:
    """Fork for each request; gives None at the end, and in each process that was forked what it is to do."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is for the tests: they leave, and this ends
    atexit.register(_forget)  # the first, so it comes last
    _import_all()
    _SHARED.update(sys.modules)
    assert len(os.listdir("/proc/self/task")) == 1, "a thread would be missing in what is forked"
    gc.collect()
    gc.freeze()
    send(connection, {name.partition(".")[0] for name in sys.modules}, [])
    while asked := receive(connection):
        request, fds = asked
        pid = _fork()
        if not pid:
            connection.close()
            return _become(request, fds)
        for fd in fds:
            os.close(fd)
        send(connection, pid, [])
    return None


if __name__ == "__main__":
    go_on = _serve(socket.socket(fileno=int(sys.argv[1])))
    if go_on is not None:
        go_on()
