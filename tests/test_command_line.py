"""The processes that tests fork are as an interpreter that was started would be."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import FORKS, Python, environ, orchestrator, python, started

pytestmark = pytest.mark.skipif(not FORKS, reason="here each command is a new interpreter")
# What a program can see of how it was started; modules that are imported already are the one difference.
SEEN = """
import json, logging, os, random, signal, sys, threading
streams = [(s.name, s.mode, s.encoding, s.errors, s.line_buffering, s.write_through, type(s.buffer).__name__, s.fileno(), s.newlines)
           for s in (sys.stdin, sys.stdout, sys.stderr)]
print(json.dumps({
    "argv": sys.argv, "path": sys.path, "flags": str(sys.flags), "name": __name__, "globals": sorted(globals()), "cwd": os.getcwd(),
    "executable": sys.executable, "environ": dict(os.environ), "parent": os.getppid(), "streams": streams, "given": sys.stdin.read(),
    "group": os.getpgrp() == os.getpid(), "session": os.getsid(0) == os.getpid(), "umask": os.umask(0),
    "signals": {str(s): str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP, signal.SIGCHLD)},
    "blocked": [int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])], "threads": [t.name for t in threading.enumerate()],
    "handlers": len(logging.root.handlers), "files": sorted(os.listdir("/proc/self/fd"))[:3],
}))
"""


def seen(new: bool, *words: str, **options: Any) -> dict[str, Any]:
    """What a process sees, of an interpreter that is new or of one that is forked."""
    options = {"env": environ(PLANTED="1"), "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, **options}
    process = subprocess.Popen([sys.executable, *words], **options) if new else Python(*words, **options)
    with process:
        told = json.loads(process.communicate("given\n", timeout=50)[0])
    assert (process.returncode, told["parent"]) == (0, os.getpid())
    return dict(told)


@pytest.mark.parametrize("options", [{}, {"start_new_session": True}], ids=["plain", "session"])
@pytest.mark.parametrize("how", ["-c", "-m"])
def test_a_fork_sees_what_a_new_interpreter_sees(how: str, options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "seen_here.py").write_text(SEEN, encoding="utf-8")
    words = ("-c", SEEN, "a", "b c") if how == "-c" else ("-m", "seen_here", "a", "b c")
    new, forked = (seen(fresh, *words, cwd=tmp_path, **options) for fresh in (True, False))
    assert forked == new


def test_ends_are_those_of_a_process(tmp_path: Path) -> None:
    codes = {"raise SystemExit(5)": 5, "1 / 0": 1, "raise KeyboardInterrupt": -signal.SIGINT, "import os; os.kill(os.getpid(), 9)": -9}
    done = {code: python("-c", code, cwd=tmp_path) for code in codes}
    assert {code: each.returncode for code, each in done.items()} == codes
    assert done["1 / 0"].stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
    with started(tmp_path, python=("-c", "print('begun', flush=True)\nwhile True: pass")) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM


def test_forks_have_their_own_chance_and_nothing_of_each_other(tmp_path: Path) -> None:
    code = "import os, random, uuid; print(random.random(), uuid.uuid4(), os.environ.get('LEFT')); os.environ['LEFT'] = '1'"
    told = [python("-c", code, cwd=tmp_path).stdout for _ in range(2)]
    assert (told[0] != told[1], [each.split()[2] for each in told]) == (True, ["None", "None"])


def test_where_a_fork_would_differ_there_is_a_new_interpreter(tmp_path: Path) -> None:
    code = "import sys; print('langgraph' in sys.modules, sys.stdout.encoding)"
    assert python("-c", code, cwd=tmp_path).stdout == "True utf-8\n"
    assert python("-c", code, cwd=tmp_path, env=environ(PYTHONIOENCODING="ascii")).stdout == "False ascii\n"
    (tmp_path / "agents").mkdir()  # a module of the user's in place of one that was imported
    assert python("-c", code, cwd=tmp_path).stdout == "False utf-8\n"


def test_the_command_line_is_forked(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-m", "orchestrator", "list"], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as new:
        told, _ = new.communicate(timeout=50)
    assert (orchestrator(tmp_path, "list").stdout, new.returncode) == (told, 0)
