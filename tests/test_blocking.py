"""What --debug tells of a blocked event loop, and of tasks that are left over."""

import asyncio
import logging
import re
import threading
import time

import pytest
from blockbuster import BlockingError
from command_line import ROOT

from orchestrator.blocking import watching


def blocks(seconds: float) -> None:
    time.sleep(seconds)


def told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What was said of `blocks`; a busy machine may hold up anything else."""
    return [record for record in caplog.records if "in blocks" in record.getMessage()]


async def test_a_block_is_told_once_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    with watching():
        await asyncio.sleep(0.05)
        blocks(0.4)
        await asyncio.sleep(0.1)
    (record,) = told(caplog)
    assert record.levelno == logging.WARNING
    said = re.fullmatch(
        r"the event loop stood still for (\d\.\d\d) s in test_blocking\.py:\d+ in blocks: nothing else went on meanwhile",
        record.getMessage(),
    )
    assert said
    assert float(said[1]) >= 0.4


async def test_two_blocks_are_two(caplog: pytest.LogCaptureFixture) -> None:
    with watching():
        for _ in range(2):
            blocks(0.3)
            await asyncio.sleep(0.1)
    assert len(told(caplog)) == 2


async def test_a_thread_that_works_blocks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with watching():
        await asyncio.to_thread(blocks, 0.4)
    assert told(caplog) == []


async def test_a_task_that_is_left_over_is_named_with_what_it_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    async def inner() -> None:
        await asyncio.Event().wait()

    async def outer() -> None:
        await inner()

    with watching():
        left = asyncio.create_task(outer(), name="left over")
        await asyncio.sleep(0)
    left.cancel()
    (record,) = [record for record in caplog.records if "pending" in record.getMessage()]
    assert re.fullmatch(r"the task 'left over' is still pending: it waits in test_blocking\.py:\d+ in inner", record.getMessage())


async def test_nothing_is_left_of_the_watcher() -> None:
    before = threading.active_count()
    with watching():
        await asyncio.sleep(0)
    for _ in range(100):
        if threading.active_count() == before:
            break
        await asyncio.sleep(0.01)
    assert threading.active_count() == before


async def test_a_call_of_ours_that_blocks_fails_its_test() -> None:
    """What watches every test, see conftest.py."""
    ours = compile("import time\ntime.sleep(0.01)", str(ROOT / "orchestrator" / "made.py"), "exec")
    with pytest.raises(BlockingError):
        exec(ours)  # noqa: S102 - as if it were a module of ours
