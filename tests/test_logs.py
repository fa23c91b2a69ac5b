"""Logs: one road for structlog and the standard library, with run and branch, and nothing that a terminal obeys."""

import json
import logging
import re
import subprocess
import sys
import warnings
from datetime import datetime
from pathlib import Path

import pytest
import structlog

from orchestrator.events import Event, in_branch
from orchestrator.logs import LogFormat, escaped, log_event, open_logs

HOSTILE = "a\x1b[2J\x1b]52;c;aGk=\x07b\r\nERROR forged\u202e\x9b31m\x85\u2028"


def log_error(logger: str, message: str, error: Exception) -> None:
    """Log as a handler of `error` does."""
    logging.getLogger(logger).error(message, exc_info=error)


def without_time(line: str) -> str:
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z ", line)
    return line.partition(" ")[2]


def records(path: Path) -> list[dict[str, object]]:
    """The JSON lines of a log file without their times."""
    lines = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    return [{key: value for key, value in line.items() if key != "timestamp"} for line in lines]


def test_every_logger_comes_the_same_way_with_run_and_branch(capsys: pytest.CaptureFixture[str]) -> None:
    with open_logs(run_id="r1"), in_branch("t2"):
        logging.getLogger("httpx").info("request %s", 1)
        logging.getLogger("openai").warning("retry %s", 1)
        structlog.get_logger("mine").warning("slow", seconds=3)
        structlog.get_logger("mine").info("fast")
        warnings.showwarning("odd", UserWarning, "module.py", 3)

    out, err = capsys.readouterr()
    lines = [without_time(line) for line in err.splitlines()]
    assert (out, lines[:2], len(lines)) == (
        "",
        ["WARNING openai: retry 1 branch=t2 run_id=r1", "WARNING mine: slow seconds=3 branch=t2 run_id=r1"],
        3,
    )
    assert lines[2].startswith("WARNING py.warnings: module.py:3: UserWarning: odd")


def test_structlog_is_imported_where_lines_are_written_and_they_say_when_they_arose() -> None:
    code = """
import logging, sys, threading, time
from orchestrator.events import Event
from orchestrator.logs import log_event, open_logs

class Importing:
    def find_spec(self, name, path=None, target=None):
        if name == "structlog":
            time.sleep(0.3)
            print(threading.current_thread() is threading.main_thread())

sys.meta_path.insert(0, Importing())
with open_logs():
    print(time.time_ns())
    logging.getLogger("mine").warning("one")
    log_event(Event("log", {"level": "warning", "message": "two"}))
    print(time.time_ns())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50)
    times = sorted(int(line) for line in done.stdout.splitlines() if line.isdigit())
    assert [line for line in done.stdout.splitlines() if not line.isdigit()] == ["False"]
    lines = done.stderr.splitlines()
    assert [without_time(line) for line in lines] == ["WARNING mine: one", "WARNING orchestrator: two"]
    arose = [datetime.fromisoformat(line.partition(" ")[0]).timestamp() * 1e9 for line in lines]
    assert times[0] - 1e6 <= arose[0] <= arose[1] <= times[1] + 1e6


def test_debug_tells_everything_with_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    with open_logs(debug=True):
        logging.getLogger("httpx").debug("connect")
        log_event(Event("log", {"level": "debug", "message": "the run failed", "exception": ValueError("x\ny")}))

    lines = capsys.readouterr().err.splitlines()
    assert [without_time(line) for line in lines[:2]] == ["DEBUG httpx: connect", "DEBUG orchestrator: the run failed"]
    assert lines[2:] == ["  | ValueError: x", "  | y"]


def test_without_debug_an_exception_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with open_logs():
        log_error("mine", "broken", ValueError("x\ny"))

    assert [without_time(line) for line in capsys.readouterr().err.splitlines()] == ["ERROR mine: broken (ValueError: x\\ny)"]


def test_quiet_tells_errors_only(capsys: pytest.CaptureFixture[str]) -> None:
    with open_logs(quiet=True):
        logging.getLogger("mine").warning("no")
        logging.getLogger("mine").error("yes")

    assert [without_time(line) for line in capsys.readouterr().err.splitlines()] == ["ERROR mine: yes"]


@pytest.mark.parametrize("log_format", ["console", "json"])
@pytest.mark.parametrize("debug", [False, True])
def test_nothing_untrusted_reaches_the_terminal(log_format: LogFormat, debug: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with open_logs(log_format=log_format, debug=debug, run_id=HOSTILE), in_branch(HOSTILE):
        logging.getLogger(f"lib{HOSTILE}").warning("said %s", HOSTILE)
        structlog.get_logger("mine").warning(HOSTILE, **{f"key{HOSTILE}": HOSTILE, "nested": {"x": HOSTILE}})
        log_error("mine", HOSTILE, ValueError(HOSTILE))

    err = capsys.readouterr().err
    assert re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", err) == []
    assert [line for line in err.split("\n") if line.startswith("ERROR")] == []


def test_a_log_file_holds_json_lines_and_stderr_stays_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.log"
    with open_logs(log_file=path, log_format="json", run_id="r1"):
        assert not path.exists()  # made by the first record: a run that never starts leaves no file
        log_event(Event("plan", {"tasks": [], "round": 1}))
        log_event(Event("model_started", {"model": "m"}, branch="t1", role="researcher"))
        log_event(Event("branch_finished", {"status": "ok", "findings": 2}, branch="t1"))
        log_event(Event("result", {"status": "complete", "error": None, "seconds": 1.5, "output": {"report": "long"}}))
        logging.getLogger("httpx").info("request")

    common = {"logger": "orchestrator", "level": "info", "run_id": "r1"}
    assert records(path) == [
        {"event": "plan", "tasks": [], "round": 1, **common},
        {"event": "branch_finished", "branch": "t1", "status": "ok", "findings": 2, **common},
        {"event": "result", "status": "complete", "error": None, "seconds": 1.5, **common},
    ]
    assert capsys.readouterr() == ("", "")


def test_values_of_keys_never_enter_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-1234567890")
    path = tmp_path / "run.log"
    with open_logs(log_file=path, log_format="json", debug=True):
        logging.getLogger("openai").debug("headers %s", {"Authorization": "Bearer sk-canary-1234567890"})
        structlog.get_logger("mine").info("x", header={"key": "sk-canary-1234567890"})
        log_error("mine", "sk-canary-1234567890", ValueError("sk-canary-1234567890"))

    text = path.read_text(encoding="ascii")
    assert ("sk-canary" in text, text.count("[redacted]")) == (False, 4)


def test_long_fields_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    with open_logs(log_file=path, log_format="json"):
        structlog.get_logger("orchestrator").info("x" * 100_000)
    assert len(str(records(path)[0]["event"])) == 2000


def test_afterwards_logging_is_as_it_was() -> None:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, warnings.showwarning)
    with open_logs(debug=True):
        pass
    assert (root.handlers, root.level, warnings.showwarning) == before


def test_escapes_are_visible() -> None:
    assert escaped("a\nb\x1b[0m\u202eü€\ud800") == "a\\nb\\x1b[0m\\u202eü€\\ud800"


def test_what_holds_a_run_up_is_logged_and_its_output_is_not(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    with open_logs(log_file=path, log_format="json", debug=True):
        log_event(Event("token", {"text": "a piece"}))
        log_event(Event("custom", {"data": {"a": 1}}))
        log_event(Event("throttled", {"host": "api.example.org", "seconds": 2.0, "in_flight": 45}))
        log_event(Event("retry", {"attempt": 1, "seconds": 0.5, "error": "500"}, branch="t1"))
    kept = [(record["level"], record["event"]) for record in records(path) if record["logger"] == "orchestrator"]
    assert kept == [("info", "throttled"), ("debug", "retry")]
