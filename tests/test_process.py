"""What a process of the command line is set up with."""

import asyncio
import sys

import pytest
import uvloop

from orchestrator.errors import InputError
from orchestrator.process import loop_factory


@pytest.mark.parametrize(
    ("wanted", "debug", "kind"),
    [
        ("", False, uvloop.Loop),
        ("uvloop", False, uvloop.Loop),
        ("uvloop", True, asyncio.SelectorEventLoop),
        ("asyncio", False, asyncio.SelectorEventLoop),
    ],
)
def test_the_event_loop_is_uvloop_where_it_is_installed_and_not_turned_down(
    wanted: str, debug: bool, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_EVENT_LOOP", wanted)
    with asyncio.Runner(loop_factory=loop_factory(debug=debug)) as runner:
        assert type(runner.get_loop()) is kind


def test_without_uvloop_there_is_asyncio_and_who_asks_for_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    monkeypatch.delenv("ORCHESTRATOR_EVENT_LOOP")
    assert loop_factory() is None
    monkeypatch.setenv("ORCHESTRATOR_EVENT_LOOP", "uvloop")
    with pytest.raises(InputError, match=r"uvloop is not installed. ORCHESTRATOR_EVENT_LOOP.*orchestrator\[uvloop\]"):
        loop_factory()


def test_another_name_is_an_error_that_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_EVENT_LOOP", "twisted")
    with pytest.raises(InputError, match=r"'twisted'.*asyncio, uvloop"):
        loop_factory()
