"""What a run leaves in its store: a workflow's own types come back in another process; secrets and encrypted text are not to be found."""

import base64
import json
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_line import environ, orchestrator

from orchestrator import run
from orchestrator.storage.cipher import KEY_VARIABLE, Cipher
from orchestrator.storage.codec import Codec

TYPED = '''"""A workflow whose state has types of its own."""
from dataclasses import dataclass
from enum import Enum
from operator import add
from typing import Annotated, Any

from langgraph.graph import START, StateGraph
from langgraph.types import Send, interrupt
from pydantic import BaseModel
from typing_extensions import TypedDict


class Colour(Enum):
    RED = 1


@dataclass
class Note:
    text: str
    parts: tuple = ()
    colour: Colour = Colour.RED


class Item(BaseModel):
    note: Note


class State(TypedDict, total=False):
    question: str
    notes: Annotated[list[Note], add]
    item: Item
    said: str
    loose: Any


class Work(TypedDict):
    note: Note


async def plan(state: State):
    return {"item": Item(note=Note(state["question"], (1, 2)))}


async def work(state: Work):
    return {"notes": [state["note"]]}


async def ask(state: State):
    answer = interrupt("go on?")
    return {"said": f"{answer} {state['item'].note.parts!r} {[note.text for note in state['notes']]} {state['notes'][0].colour}"}


class Unnamed(BaseModel):
    x: int


async def loose(state: State):
    return {"loose": Unnamed(x=1)} if state["question"] == "loose" else {}


builder = StateGraph(State)
builder.add_node("plan", plan)
builder.add_node("work", work, input_schema=Work)
builder.add_node("ask", ask)
builder.add_node("loose", loose)
builder.add_edge(START, "plan")
builder.add_conditional_edges("plan", lambda state: [Send("work", {"note": Note(str(number))}) for number in range(3)], ["work"])
builder.add_edge("work", "ask")
builder.add_edge("ask", "loose")
graph = builder
'''
CANARY = "planted-canary-0123456789"
KEY = base64.b64encode(b"k" * 32).decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "typed.py").write_text(TYPED, encoding="utf-8")
    return tmp_path


def cli(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return orchestrator(folder, *words, "--db", "sqlite:///runs.db", env=environ(**variables))


def stored(folder: Path, codec: Codec) -> str:
    """Every value of the database, unpacked where it is a blob of ours, as one text."""
    with sqlite3.connect(folder / "runs.db") as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        cells = [cell for name in names for row in connection.execute(f"SELECT * FROM {name}") for cell in row]  # noqa: S608 - names that the database gave
    return "\n".join(_readable(cell, codec) for cell in cells)


def _readable(cell: Any, codec: Codec) -> str:
    if not isinstance(cell, bytes) or len(cell) == 16:
        return str(cell)
    return repr(codec._open(cell)[1])


def test_types_of_the_workflow_come_back_in_another_process(folder: Path) -> None:
    asked = cli(folder, "./typed.py", "why?", "--model", "offline", "--run-id", "one", "--json")
    assert asked.returncode == 5, asked.stderr
    done = cli(folder, "resume", "one", "--answer", "yes", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"]["said"] == "yes (1, 2) ['0', '1', '2'] Colour.RED"


async def test_types_of_a_workflow_that_was_edited_in_between_are_stored(folder: Path) -> None:
    """In one process, as in a notebook: its file is loaded again, and its classes are others from then on."""
    for number in range(2):
        result = await run(str(folder / "typed.py"), {"question": "why?"}, model="offline", db="memory://")
        assert result.status == "interrupted", result.error
        with (folder / "typed.py").open("a", encoding="utf-8") as file:
            file.write(f"\nEDITED = {number}\n")


def test_a_type_that_no_schema_names_fails_the_run_in_words(folder: Path) -> None:
    cli(folder, "./typed.py", "loose", "--model", "offline", "--run-id", "two", "--json")
    done = cli(folder, "resume", "two", "--answer", "yes", "--json")
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert "Unnamed cannot be stored" in error
    assert "'loose'" in error
    assert "state schema" in error
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("key", ["", KEY], ids=["plain", "encrypted"])
def test_a_secret_is_nowhere_in_the_store(folder: Path, key: str) -> None:
    variables = {"PLANTED_API_KEY": CANARY, **({KEY_VARIABLE: key} if key else {})}
    asked = cli(folder, "./typed.py", f"is {CANARY} known? {'word ' * 200}", "--model", "offline", "--run-id", "one", "--json", **variables)
    assert asked.returncode == 5, asked.stderr
    done = cli(folder, "resume", "one", "--answer", f"{CANARY}, yes", "--json", **variables)
    assert done.returncode == 0, done.stderr
    everything = stored(folder, Codec(cipher=Cipher(b"k" * 32)) if key else Codec())
    assert CANARY not in everything
    assert "[key]" in everything
    raw = b"".join(path.read_bytes() for path in folder.glob("runs.db*"))
    assert CANARY.encode() not in raw
    assert KEY.encode() not in raw


def test_the_key_of_an_encrypted_store(folder: Path) -> None:
    first = cli(folder, "./typed.py", "a hidden question", "--model", "offline", "--run-id", "one", "--json", **{KEY_VARIABLE: KEY})
    assert first.returncode == 5, first.stderr
    assert b"hidden" not in (folder / "runs.db").read_bytes()
    without = cli(folder, "resume", "one", "--answer", "yes")
    other = cli(folder, "./typed.py", "x", "--model", "offline", **{KEY_VARIABLE: base64.b64encode(b"o" * 32).decode()})
    assert (without.returncode, other.returncode) == (2, 2)
    assert "the store is encrypted, and there is no key" in without.stderr
    assert "is not the key of this store" in other.stderr
    assert cli(folder, "resume", "one", "--answer", "yes", "--json", **{KEY_VARIABLE: KEY}).returncode == 0
