"""The command line as tests run it: a process of its own, forked from one that has imported everything, which is most of the work."""

import atexit
import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fork_server import CLONE, receive, send

__all__ = ["FORKS", "ROOT", "Python", "environ", "orchestrator", "own_terminal", "python", "started"]

ROOT = Path(__file__).parent.parent
FORKS = sys.platform == "linux" and os.uname().machine in CLONE  # elsewhere each command is a new interpreter
_OUTSIDE = ("OPENAI_", "LANGSMITH_", "LANGCHAIN_", "ORCHESTRATOR_", "ANTHROPIC_", "GOOGLE_")
# What an interpreter or a library reads once, when it starts or is imported.
_AT_START = re.compile(
    "PYTHON|LC_|LANG$|LANGUAGE$|LANGGRAPH_|NO_COLOR|FORCE_COLOR|AIOHTTP_|PSYCOPG_|PYDANTIC_|OTEL_P|MALLOC_|LD_|OPENSSL_|SSL_"
)


def environ(**more: str) -> dict[str, str]:
    """The variables of this process and more, with our own code first on the path; workflows that a test edits are compiled each time."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **more}


_OURS = environ()  # read now, as a test may change them before it runs the first command


def own_terminal() -> None:
    """For `preexec_fn`: the terminal that is stdin is the terminal of the new session, which its Ctrl-C and its closing reach."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _at_start(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if _AT_START.match(name)}


class _Server:
    """The process that is forked, started with the first command of this process."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        variables = {name: value for name, value in _OURS.items() if not name.startswith(_OUTSIDE)}
        command = [sys.executable, str(Path(__file__).with_name("fork_server.py")), str(theirs.fileno())]
        null = subprocess.DEVNULL
        self._process = subprocess.Popen(command, env=variables, pass_fds=[theirs.fileno()], stdin=null, stdout=null)
        theirs.close()
        self._connection, self._lock, self._at_start = ours, threading.Lock(), _at_start(variables)
        self._modules: set[str] = self._received()
        atexit.register(self._end)

    def _received(self) -> Any:
        got = receive(self._connection)
        assert got is not None, "the fork server has died"
        return got[0]

    def _end(self) -> None:
        self._connection.close()
        self._process.wait(20)

    def serves(self, folder: Path, variables: Mapping[str, str]) -> bool:
        """Whether a fork would do as a new interpreter: no setting that is read at the start, no module that would be found elsewhere."""
        found = {name.partition(".")[0] for name in os.listdir(folder)} if folder != ROOT else set()
        return _at_start(variables) == self._at_start and not found & self._modules

    def fork(self, request: dict[str, Any], fds: list[int]) -> int:
        with self._lock:
            send(self._connection, request, fds)
            pid: int = self._received()
        return pid


_servers: list[_Server] = []
_starting = threading.Lock()


def _server() -> _Server:
    with _starting:
        if not _servers:
            _servers.append(_Server())
        return _servers[0]


class Python(subprocess.Popen[Any]):
    """`subprocess.Popen` of `-m MODULE ...` or `-c CODE ...`: forked where that makes no difference, else a new interpreter."""

    def __init__(self, *words: str | bytes, env: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__([sys.executable, *words], env=environ() if env is None else env, **options)

    # The one method of Popen that makes the process; all else works as it is, as the process is our own child.
    def _execute_child(  # type: ignore[override]
        self,
        args: list[str],
        executable: Any,
        preexec_fn: Any,
        close_fds: bool,
        pass_fds: Any,
        cwd: Any,
        env: Mapping[str, str],
        *rest: Any,
    ) -> None:
        _, _, _, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, _, _, _, _, _, session, _ = rest
        folder, variables = Path(cwd or "").absolute(), env
        plain = args[1] in ("-m", "-c") and preexec_fn in (None, own_terminal) and not pass_fds
        if not (plain and FORKS and _server().serves(folder, variables)):
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)  # type: ignore[misc]
            return
        request = {"words": [os.fsdecode(word) for word in args[1:]], "cwd": str(folder), "environ": dict(variables), "session": session}
        fds = [own if fd == -1 else fd for own, fd in enumerate((p2cread, c2pwrite, errwrite))]
        try:
            self.pid = _server().fork({**request, "terminal": preexec_fn is own_terminal}, fds)
            self._child_created = True
        finally:
            self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]


def python(*words: str | bytes, text: bool = True, **options: Any) -> "subprocess.CompletedProcess[Any]":
    """`subprocess.run` of the same, with what it wrote; nobody is at its terminal."""
    given, seconds = options.pop("input", None), options.pop("timeout", 60)
    pipes = {"stdin": subprocess.DEVNULL if given is None else subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Python(*words, text=text, **{**pipes, **options}) as process:
        try:
            out, err = process.communicate(given, seconds)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def orchestrator(folder: Path | None, *words: str | bytes, **options: Any) -> "subprocess.CompletedProcess[Any]":
    """The command line to its end."""
    return python("-m", "orchestrator", *words, cwd=folder, **options)


@contextlib.contextmanager
def started(folder: Path | None, *words: str, python: Sequence[str] = ("-m", "orchestrator"), **options: Any) -> Iterator[Python]:
    """The command line with pipes of bytes, killed at the latest when the block ends."""
    pipe = subprocess.PIPE
    process = Python(*python, *words, cwd=folder, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, **options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
