"""What every test gets: a home of its own, no keys from outside, loopback sockets only, and a check that nothing blocks the loop."""

import compileall
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster
from postgres import postgres_server, postgres_url, storage_url

from orchestrator.admission import ADMISSION
from orchestrator.models import exchange

__all__ = ["documents", "home", "loop_is_not_blocked", "nobody_at_the_door", "postgres_server", "postgres_url", "storage_url", "watch"]

# What pytest makes of a test's module is kept, so that it is made once and not by every worker of every session.
sys.dont_write_bytecode = False

# They begin first: at the end one of them would keep one worker busy while the others have nothing left to do.
_LONGEST = frozenset((
    "test_100_runs_leave_no_memory", "test_stops_at_random_points_leave_nothing_behind", "test_the_tests_that_are_written_pass_as_they_are",
    "test_a_server_answers_fails_and_dies_and_the_run_goes_on", "test_broken_and_hostile_pdf_and_word_files",
    "test_the_same_tree_with_the_attributes_of_generative_ai", "test_many_runs_at_once_fit_into_400_mb_of_address_space",
    "test_a_run_that_is_stopped_under_a_lock_ends_in_time_with_its_report_and_who_looks_need_not_wait",
))  # fmt: skip

_OUTSIDE = ("OPENAI_", "LANGSMITH_", "LANGCHAIN_", "ORCHESTRATOR_", "ANTHROPIC_", "GOOGLE_")


def pytest_configure(config: pytest.Config) -> None:
    """Compile our packages once, before any worker starts."""
    if not hasattr(config, "workerinput"):
        for package in ("orchestrator", "agents", "workflows"):
            compileall.compile_dir(Path(__file__).parent.parent / package, quiet=1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests first."""
    items.sort(key=lambda item: item.name.partition("[")[0] not in _LONGEST)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ORCHESTRATOR_HOME of the test; keys and endpoints of the machine are taken away."""
    for name in [name for name in os.environ if name.startswith(_OUTSIDE)]:
        monkeypatch.delenv(name)
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(folder))
    # The processes that tests start find our modules compiled; the workflows that tests edit while they run are compiled each time.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("ORCHESTRATOR_EVENT_LOOP", "asyncio")  # what there is without the extra; the tests of stops run on both
    return folder


def _refuse_other_hosts(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook, so that no wrapper stands between a test and its sockets; it cannot be taken off again, nor need it be."""
    if event == "socket.connect":
        address = arguments[1]
        if isinstance(address, tuple) and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise AssertionError(f"a test connects to {address!r}")


sys.addaudithook(_refuse_other_hosts)


@pytest.fixture(scope="session")
def watch() -> BlockBuster:
    """What tells of calls that block; made once, as that takes as long as a small test."""
    blockbuster = BlockBuster(["orchestrator", "agents"])
    for function in blockbuster.functions.values():  # a test makes its model where it needs it; the runner does so in a thread
        function.can_block_in("orchestrator/testing/server.py", "chat_model")
    return blockbuster


@pytest.fixture(autouse=True)
def loop_is_not_blocked(watch: BlockBuster) -> Iterator[None]:
    """A call of ours that blocks the event loop is an error."""
    watch.activate()
    try:
        yield
    finally:
        watch.deactivate()


@pytest.fixture(autouse=True)
def nobody_at_the_door() -> Iterator[None]:
    """No test leaves a call in flight or waiting; what it taught about an endpoint is forgotten, as ports are used again."""
    yield
    exchange._worked.clear()
    gates = ADMISSION._gates
    left = [(endpoint, gate.in_flight, gate.waiting) for endpoint, gate in gates.items() if gate.in_flight or gate.waiting]
    gates.clear()
    assert left == []


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A folder of three small documents that belong together."""
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "resume.md").write_text(
        "# Resume\n\nThe depth of a resume is limited by the journal. The journal was designed by Ada Byron.\n", encoding="utf-8"
    )
    (folder / "ada-byron.txt").write_text("Ada Byron\n\nAda Byron was born in London on 10 December 1815.\n", encoding="utf-8")
    (folder / "budgets.md").write_text("# Budgets\n\nA budget is reserved before a call and settled after it.\n", encoding="utf-8")
    return folder
