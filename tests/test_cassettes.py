"""A finished run as a folder that is a test: readable, without secrets or this machine's paths, and true elsewhere."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from command_line import orchestrator

from agents import prompts, researcher
from orchestrator import run
from orchestrator.errors import InputError
from orchestrator.testing import model_server, replay_cassette, save_cassette
from tests.research_made import topics_script, write_topics

DB = "sqlite:///runs.db"


async def recorded(folder: Path, *, count: int = 3, run_id: str = "r") -> None:
    """A run, started in `folder`, of topics in its folder `topics`; saved as `cassette`."""
    await asyncio.to_thread(write_topics, folder / "topics", count)
    async with model_server(topics_script(count)) as server:
        given = {"question": "What is said of every topic?", "documents": ["topics"]}
        await run("research", given, model=server.chat_model(), run_id=run_id, db=DB)
        made = len(server.requests)
        saved = await save_cassette(run_id, "cassette", db=DB)
        assert (saved.identical, saved.answered, len(server.requests)) == (True, made, made)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that runs are started in."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


async def test_a_cassette_is_true_elsewhere(place: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another machine: another folder, no documents but its own, another index, no database."""
    await recorded(place)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (place / "cassette").rename(elsewhere / "cassette")
    monkeypatch.chdir(elsewhere)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(home))
    await asyncio.to_thread(write_topics, elsewhere / "others", 7)
    from orchestrator.documents import open_library

    await (await open_library(["others"])).aclose()  # the documents have other numbers in this index
    played = await asyncio.to_thread(replay_cassette, "cassette")
    assert (played.identical, played.result.status) == (True, "complete")
    assert not (home / "runs.db").exists()


async def test_what_changes_a_request_fails_it_with_the_difference(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await recorded(place, count=1)
    monkeypatch.setattr(researcher, "RESEARCHER", prompts.RESEARCHER.replace("Read the passages.", "Read them."))
    with pytest.raises(AssertionError) as caught:
        await asyncio.to_thread(replay_cassette, "cassette")
    told = str(caught.value).splitlines()
    assert told[0] == "cassette: the run is not what was recorded"
    assert any(line.startswith("-Read the passages. Where") for line in told)
    assert any(line.startswith("+Read them. Where") for line in told)


async def test_an_outcome_that_was_changed_by_hand_fails(place: Path) -> None:
    await recorded(place, count=1)
    path = place / "cassette" / "run.json"
    path.write_text(path.read_text().replace("one of many", "none of many"))
    with pytest.raises(AssertionError, match="output 'report' differs"):
        await asyncio.to_thread(replay_cassette, "cassette")


async def test_a_call_that_is_no_longer_made_fails_it(place: Path) -> None:
    await recorded(place, count=1)
    path = place / "cassette" / "calls.json"
    calls = json.loads(path.read_text())
    path.write_text(json.dumps([*calls, {**calls[0], "request": "another"}]))
    with pytest.raises(AssertionError, match="the request was made in the run, and is not made now"):
        await asyncio.to_thread(replay_cassette, "cassette")


async def test_it_is_readable_in_a_stable_order_and_holds_no_secret(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_API_KEY", "said of topic 1 it is")
    await recorded(place)
    files = sorted(str(path.relative_to(place / "cassette")) for path in (place / "cassette").rglob("*") if path.is_file())
    assert files == ["calls.json", "files/topics/topic-0.md", "files/topics/topic-1.md", "files/topics/topic-2.md", "run.json"]
    text = "".join((place / "cassette" / name).read_text() for name in ("run.json", "calls.json"))
    assert str(place) not in text
    assert "test-key" not in text
    assert "said of topic 1 it is" not in text
    calls: list[dict[str, Any]] = json.loads((place / "cassette" / "calls.json").read_text())
    places = list(dict.fromkeys(call["scope"] for call in calls))
    assert places[:3] == ["branch t1", "branch t2", "branch t3"]
    await save_cassette("r", "cassette", db=DB)
    assert "".join((place / "cassette" / name).read_text() for name in ("run.json", "calls.json")) == text


async def test_what_cannot_be_a_cassette_is_refused(place: Path, tmp_path: Path) -> None:
    await recorded(place, count=1)
    (place / "notes").mkdir()
    (place / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is there, and is no cassette"):
        await save_cassette("r", "notes", db=DB)
    with pytest.raises(InputError, match="no run 'odd'"):
        await save_cassette("odd", "other", db=DB)
    with pytest.raises(InputError, match=r"'notes' is no cassette.*replay RUN --save notes"):
        await asyncio.to_thread(replay_cassette, "notes")
    outside = write_topics(tmp_path / "outside", 1)
    async with model_server(topics_script(1)) as server:
        given = {"question": "What is said of every topic?", "documents": [str(outside)]}
        await run("research", given, model=server.chat_model(), run_id="absolute", db=DB)
        with pytest.raises(InputError, match="lies outside of the folder that the run was started in"):
            await save_cassette("absolute", "other", db=DB)
    assert not (place / "other").exists()


def test_the_command_line_saves_one(place: Path) -> None:
    write_topics(place / "topics", 2)
    given = ("research", "What is said of topic 1?", "--documents", "topics", "--run-id", "r", "--quiet")
    assert orchestrator(None, *given).returncode == 0
    saved = orchestrator(None, "replay", "r", "--save", "tests/cassettes/topic")
    told = "saved in tests/cassettes/topic; a test of it: orchestrator.testing.replay_cassette('tests/cassettes/topic')\n"
    assert (saved.returncode, saved.stderr) == (0, told)
    assert replay_cassette("tests/cassettes/topic").identical
