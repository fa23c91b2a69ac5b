"""What is stored as bytes: exact round trips, strict types both ways, texts by hash, secrets, encryption."""

import base64
import contextlib
import enum
import itertools
import re
import sys
import time
import uuid
import zlib
from collections import deque, namedtuple
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from ipaddress import IPv4Address, IPv6Network
from pathlib import Path
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

import ormsgpack
import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Command, Interrupt, Overwrite, Send
from pydantic import BaseModel, ConfigDict, SecretStr

from orchestrator.errors import DatabaseOpenError, StorageError, StorageTypeError
from orchestrator.state import BranchResult, Citation, Finding, Source, Task, Usage, Verdict
from orchestrator.storage.cipher import KEY_VARIABLE, Cipher
from orchestrator.storage.codec import Codec, Known, keep_texts, open_codec, references_of, unpack_all
from orchestrator.storage.database import Database, Statement, open_database

HERE = __name__
KEY = base64.b64encode(b"k" * 32).decode()
SECRET = "planted-secret-value"


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


Pair = namedtuple("Pair", "left right")


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: tuple[int, ...]
    derived: int = field(init=False, default=7)


class Inner(BaseModel):
    words: tuple[str, ...]


class Outer(BaseModel):
    model_config = ConfigDict(extra="allow")

    anything: Any
    inner: Inner


class Changed(BaseModel):
    name: str


KNOWN = Codec(secrets=[SECRET]).allowing((HERE, name) for name in ("Colour", "Level", "Pair", "Point", "Inner", "Outer", "Changed"))


def back(codec: Codec, value: Any) -> Any:
    packed = codec.pack(value)
    return codec.unpack(packed.blob, packed.texts)


QUOTED = [Citation(source="a", quote="q" * 300, start=0, end=300)]
FINDING = Finding(task_id="t1", claim="a claim " * 50, citations=QUOTED, verdict=Verdict(label="supported", reason=""))
READ = [Source(uri=f"docs/{number}.md", title="A", sha256="f" * 64) for number in range(6)]
BRANCH = BranchResult(task=Task(id="t1", question="why?"), status="ok", findings=[FINDING], sources=READ, usage=Usage(cost_usd=0.1))
MORE = Outer.model_validate({"anything": Point(1, (2,)), "inner": {"words": ()}, "more": {"z": (1,)}})
VALUES: list[Any] = [
    None, True, 0, -(2**63), 2**64 - 1, 0.1, float("inf"), "", "text", "x" * 5000, "é" * 600, b"", b"\x00\xff" * 400, bytearray(b"ab"),
    [], [1, [2, "x" * 600]], {}, {"a": {"b": [None]}, 1: 2, (1, "x"): 3, None: 4}, (), (1, (2, [3, (4,)])), {1, 2}, {(1, 2)},
    frozenset({"a"}),
    deque([1, (2,)], maxlen=3), deque([1]), complex(1, 2), Decimal("1.10"), uuid.UUID(int=5), Path("a/b"), Path("/a"), re.compile("a+",
    re.IGNORECASE),
    IPv4Address("127.0.0.1"), IPv6Network("::/64"), date(2026, 11, 21), datetime(2026, 11, 21, 1, 2, 3, 4), datetime.now(UTC),
    datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Paris")), datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2),
    "X")),
    datetime(2026, 1, 1).time(), timedelta(days=-1, microseconds=3), UTC, ZoneInfo("Asia/Tokyo"), Colour.RED, Level.HIGH, Pair(1, (2,)),
    Point(1, (2, 3)), [Point(1, ())] * 3, Inner(words=("a", "b")), MORE,
    FINDING, BRANCH, [BRANCH] * 3, HumanMessage("hi" * 400, id="1"), SystemMessage("s"),
    AIMessage("x", tool_calls=[{"name": "a", "args": {"b": (1,)}, "id": "c"}], usage_metadata={"input_tokens": 1, "output_tokens": 2,
    "total_tokens": 3}),
    ToolMessage("t", tool_call_id="c", artifact=Point(1, ())), RemoveMessage(id="1"), Document("page " * 200, metadata={"a": 1}),
    Send("node", {"task": BRANCH.task, "point": Point(1, (2,))}), Interrupt({"q": 1}, id="i"), Overwrite([1]),
    Command(goto=[Send("a", (1,))], update={"m": [HumanMessage("x")]}, resume={"i": "yes"}),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}-{repr(value)[:20]}")
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_a_value_comes_back_as_it_was(value: Any, encrypted: bool) -> None:
    codec = Codec(cipher=Cipher(b"k" * 32), types=KNOWN.types) if encrypted else KNOWN
    found = back(codec, value)
    assert found == value
    assert type(found) is type(value)
    assert repr(found) == repr(value)


def test_what_langgraph_keeps_is_kept() -> None:
    """Where LangGraph's own serializer gives back what went in, so does ours."""
    theirs = JsonPlusSerializer(allowed_msgpack_modules=[(HERE, name) for name in ("Colour", "Level", "Pair", "Point", "Inner", "Outer")])
    kept = []
    for value in VALUES:
        with contextlib.suppress(TypeError):  # what it does not take at all
            kept += [value] if theirs.loads_typed(theirs.dumps_typed(value)) == value else []
    assert len(kept) > 40
    assert [value for value in kept if back(KNOWN, value) != value] == []


def test_an_error_is_kept_as_its_text() -> None:
    assert back(KNOWN, ValueError("no")) == "ValueError('no')"


class Foreign:
    pass


class ForeignModel(BaseModel):
    x: int


@dataclass
class ForeignData:
    x: int


@pytest.mark.parametrize("value", [Foreign(), ForeignModel(x=1), ForeignData(1), print, Foreign, lambda: 1, object(), sys])
@pytest.mark.parametrize("place", [lambda value: value, lambda value: {"deep": [({"in": value},)]}, lambda value: Send("n", value)])
def test_an_unknown_type_is_refused_on_writing(value: Any, place: Any) -> None:
    kind = type(value)
    with pytest.raises(StorageTypeError, match=re.escape(f"{kind.__module__}.{kind.__name__}")) as refused:
        KNOWN.pack(place(value))
    assert "cannot be stored" in refused.value.what
    assert "state schema" in refused.value.remedy


def test_a_class_that_could_not_be_found_again_is_refused() -> None:
    class Local(BaseModel):
        x: int

    with pytest.raises(StorageTypeError, match=r"could not be found again.*module level"):
        KNOWN.allowing([(HERE, "Local")]).pack(Local(x=1))


@pytest.mark.parametrize(("value", "told"), [(SecretStr(SECRET), "SecretStr is not stored"), (2**64, "64-bit")])
def test_what_is_never_stored(value: Any, told: str) -> None:
    with pytest.raises(StorageTypeError, match=told):
        KNOWN.pack({"a": value})


def test_a_value_that_holds_itself_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(StorageTypeError, match="holds itself"):
        KNOWN.pack(circle)


CALLED: list[str] = []


def gadget(*arguments: Any, **named: Any) -> str:
    """What a hostile row would have called."""
    CALLED.append(repr((arguments, named)))
    return "called"


class Gadget:
    """A class that does something when it is built, in a module that can be imported."""

    registry: ClassVar[list[str]] = CALLED

    def __init__(self, *arguments: Any, **named: Any) -> None:
        CALLED.append(repr(arguments))

    def __setstate__(self, state: Any) -> None:
        CALLED.append(repr(state))


def ext(code: int, *parts: Any) -> ormsgpack.Ext:
    return ormsgpack.Ext(code, ormsgpack.packb(list(parts)))


def row(value: Any, kind: int = 1) -> bytes:
    return sealed(bytes((kind,)) + ormsgpack.packb(value))


def sealed(content: bytes) -> bytes:
    return content[:1] + zlib.crc32(content[1:], content[0]).to_bytes(4) + content[1:]


TOUCH = f"touch {HERE}-was-here"
HOSTILE = {
    "os.system": row(ext(0, "os", "system", TOUCH)),
    "subprocess.Popen": row(ext(0, "subprocess", "Popen", {"args": TOUCH, "shell": True})),
    "builtins.eval": row([{"deep": ext(0, "builtins", "eval", "1/0")}]),
    f"{HERE}.gadget": row(ext(0, HERE, "gadget", {})),
    f"{HERE}.Gadget": row(ext(0, HERE, "Gadget", {"a": 1})),
    "orchestrator.state.BaseModel.mro": row(ext(0, "orchestrator.state.BaseModel", "mro", {})),
    "orchestrator.state.cite": row(ext(0, "orchestrator.state", "cite", {"source": "a", "quote": "b", "text": "c"})),
    "orchestrator.state.BaseModel": row(ext(0, "orchestrator.state", "BaseModel", {})),
    "orchestrator.runner.run": row(ext(0, "orchestrator.runner", "run", {"workflow": "x"})),
    "langgraph.types.Interrupt.__class__": row(ext(0, "langgraph.types", "Interrupt.__class__", ["x", [], {}])),
    "code 99": row(ext(99, "os", "system", TOUCH)),
    "not in a format: LangGraph's": JsonPlusSerializer().dumps_typed(ormsgpack and Path("x"))[1],
    "not in a format: json": b'{"lc": 2, "type": "constructor", "id": ["os", "system"], "args": ["touch x"]}',
    "not in a format: pickle": b"\x80\x04\x95\x1d" + bytes(7) + b"\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_row_runs_nothing_and_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    CALLED.clear()
    with pytest.raises(StorageError) as refused:
        KNOWN.unpack(HOSTILE[name])
    assert CALLED == []
    assert list(tmp_path.iterdir()) == []
    if not name.startswith("not in a format"):
        assert isinstance(refused.value, StorageTypeError)
        assert name in refused.value.what.replace("(", "").replace(")", "")
    else:
        assert "no format of this store" in refused.value.what


def test_a_hostile_text_runs_nothing() -> None:
    """A row may hide in a text that another refers to."""
    content = b"\x01" + ormsgpack.packb(["os", "system", TOUCH])
    digest = KNOWN.digest(content)
    with pytest.raises(StorageTypeError, match=r"os\.system"):
        KNOWN.unpack(row(ormsgpack.Ext(1, digest), 2), {digest: sealed(content)})


def test_values_of_a_class_that_has_changed_are_refused() -> None:
    stored = row(ext(0, HERE, "Changed", {"name": "a", "gone": 1}))
    with pytest.raises(StorageTypeError, match=r"Changed does not fit its class any more.*gone"):
        KNOWN.unpack(stored)
    with pytest.raises(StorageTypeError, match=r"Changed does not fit its class any more.*name"):
        KNOWN.unpack(row(ext(0, HERE, "Changed", {})))


def test_a_class_that_is_gone_is_named() -> None:
    codec = KNOWN.allowing([(HERE, "Gone")])
    with pytest.raises(StorageTypeError, match=r"Gone, which is gone"):
        codec.unpack(row(ext(0, HERE, "Gone", {})))


async def test_long_texts_are_stored_once_for_all_runs(tmp_path: Path) -> None:
    database = await open_database("memory://")
    text = "word " * 1000
    first, second = KNOWN.pack({"a": text, "b": [text, BRANCH]}), KNOWN.pack([text])
    assert len(first.blob) < 150
    assert len(second.blob) < 30
    await database.run(*keep_texts(first.texts, 1), *keep_texts(second.texts, 2))
    [texts, uses] = await database.run(
        Statement("SELECT count(*) FROM texts"), Statement("SELECT run, count(*) FROM uses GROUP BY run ORDER BY run")
    )
    assert texts == [(3,)]  # the text, the finding, and the branch with it
    assert uses == [(1, 3), (2, 1)]
    assert await unpack_all(database, KNOWN, [first.blob, None, second.blob], "here") == [{"a": text, "b": [text, BRANCH]}, None, [text]]
    assert await references_of(database, KNOWN, [first.blob], "here") == first.texts.keys()
    await database.aclose()


def test_a_text_that_is_missing_or_changed_is_told() -> None:
    packed = KNOWN.pack("x" * 600)
    with pytest.raises(StorageError, match="a stored text is missing"):
        KNOWN.unpack(packed.blob, {})
    with pytest.raises(StorageError, match="not what its hash says"):
        KNOWN.unpack(packed.blob, dict.fromkeys(packed.texts, sealed(b"\x03other")))


@pytest.mark.parametrize("codec", [KNOWN, Codec(cipher=Cipher(b"k" * 32))], ids=["plain", "encrypted"])
def test_every_bit_of_a_blob_and_of_a_text_counts(codec: Codec) -> None:
    for packed in (codec.pack({"a": [1, 2.5]}), codec.pack(["word " * 300, "é" * 40]), codec.pack("".join(map(chr, range(33, 633))))):
        for place, bit in itertools.product(range(len(packed.blob)), range(8)):
            with pytest.raises(StorageError):
                codec.unpack(flipped(packed.blob, place, bit), packed.texts)
        for digest, text in packed.texts.items():
            for place, bit in itertools.product(range(len(text)), range(8)):
                with pytest.raises(StorageError):
                    codec.unpack(packed.blob, {digest: flipped(text, place, bit)})


def flipped(blob: bytes, place: int, bit: int) -> bytes:
    return blob[:place] + bytes((blob[place] ^ 1 << bit,)) + blob[place + 1 :]


def test_what_is_known_is_not_stored_again() -> None:
    known = Known()
    first = KNOWN.pack([BRANCH], known)
    known.stored.update(first.texts)
    again = KNOWN.pack({"more": [BRANCH, "y" * 600]}, known)
    assert [len(first.texts), len(again.texts)] == [2, 1]
    assert KNOWN.unpack(again.blob, {**first.texts, **again.texts}) == {"more": [BRANCH, "y" * 600]}


@pytest.mark.parametrize("length", [255, 256, 511, 512, 65_535, 65_536])
@pytest.mark.parametrize("letter", ["a", "é", "ک", "\U0001f600"])
def test_a_string_is_stored_by_itself_from_512_characters_on_wherever_it_stands(letter: str, length: int) -> None:
    text, long = letter * length, length >= 512
    asked = {"schema": ["x" * 300] * 3, "messages": [["human", text], ["human", text]]}
    plain = KNOWN.pack_plain(asked)
    assert [KNOWN.unpack(plain.blob, plain.texts), len(plain.texts)] == [asked, int(long)]
    tasks = [Task(id="t1", question=text), Task(id="t2", question=text)]
    packed = KNOWN.pack(tasks)
    assert KNOWN.unpack(packed.blob, packed.texts) == tasks
    assert len(packed.texts) == 1 if long else len(packed.texts) in (0, 2)  # the question of both, or each task as a whole


def test_what_branches_share_is_stored_once_and_comes_with_each_of_them_until_it_is_durable() -> None:
    shared = Source(uri="a.md", title="A" * 600, sha256="0" * 64)
    branches = [BRANCH.model_copy(update={"sources": [shared], "gap": f"{number}" * 600}) for number in range(3)]
    known = Known()
    first = KNOWN.pack(branches, known)
    assert KNOWN.unpack(first.blob, first.texts) == branches
    one = KNOWN.pack(branches[2], known)
    assert KNOWN.unpack(one.blob, one.texts) == branches[2]
    assert one.texts.keys() < first.texts.keys()
    known.stored.update(first.texts)
    assert not KNOWN.pack(branches[1], known).texts


class Read(Source):
    page: int


class Asked(Task):
    by: str


def test_a_value_of_a_class_of_ones_own_in_a_branch_keeps_its_class() -> None:
    codec = Codec().allowing([(HERE, "Read"), (HERE, "Asked")])
    read = Read(uri="a.md", title="A", sha256="0" * 64, page=3)
    branch = BRANCH.model_copy(update={"sources": [read], "task": Asked(id="t1", question="Who?", by="me")})
    packed = codec.pack(branch)
    again = codec.unpack(packed.blob, packed.texts)
    assert [again, type(again.sources[0]), type(again.task)] == [branch, Read, Asked]


SECRETS = [
    SECRET, f"key={SECRET}!", [SECRET], {SECRET: SECRET}, {"a": ("b" * 600 + SECRET,)}, SECRET.encode() * 2, HumanMessage(f"my {SECRET}"),
    Task(id="t", question=SECRET), ValueError(SECRET), Path(SECRET), Send("n", {"a": SECRET}),
]  # fmt: skip


@pytest.mark.parametrize("value", SECRETS, ids=lambda value: type(value).__name__)
def test_a_secret_is_never_stored(value: Any) -> None:
    packed = KNOWN.pack(value)
    found = repr(KNOWN.unpack(packed.blob, packed.texts))
    assert SECRET not in found
    assert "[key]" in found


def test_encrypted_bytes_tell_nothing() -> None:
    codec = Codec(cipher=Cipher(b"k" * 32))
    packed = codec.pack({"question": "the plan", "text": "a long text " * 100})
    stored = packed.blob + b"".join(packed.texts) + b"".join(packed.texts.values())
    assert b"plan" not in stored
    assert b"long text" not in stored
    assert packed.texts.keys() != Codec().pack({"question": "the plan", "text": "a long text " * 100}).texts.keys()
    assert codec.pack(["a"]).blob != codec.pack(["a"]).blob


def test_a_plain_row_in_an_encrypted_store_is_refused() -> None:
    codec, plain = Codec(cipher=Cipher(b"k" * 32)), Codec()
    with pytest.raises(StorageError, match="not encrypted, and this store is"):
        codec.unpack(plain.pack("a").blob)
    with pytest.raises(StorageError, match=f"is encrypted.*{KEY_VARIABLE}"):
        plain.unpack(codec.pack("a").blob)
    with pytest.raises(StorageError, match="changed, or was written with another key"):
        codec.unpack(Codec(cipher=Cipher(b"o" * 32)).pack("a").blob)
    blob = bytearray(codec.pack("a").blob)
    blob[-1] ^= 1
    with pytest.raises(StorageError, match="changed, or was written with another key"):
        codec.unpack(bytes(blob))


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ({}, {KEY_VARIABLE: KEY}, "is set, and the store is not encrypted"),
        ({KEY_VARIABLE: KEY}, {}, "is encrypted, and there is no key"),
        ({KEY_VARIABLE: KEY}, {KEY_VARIABLE: base64.b64encode(b"o" * 32).decode()}, "is not the key of this store"),
        ({}, {KEY_VARIABLE: "not base64!"}, "is not base64"),
        ({}, {KEY_VARIABLE: base64.b64encode(b"short").decode()}, "holds 5 bytes, not 32"),
    ],
)
async def test_the_key_is_checked_when_a_store_is_opened(
    storage_url: str, first: dict[str, str], second: dict[str, str], told: str
) -> None:
    database: Database = await open_database(storage_url)
    try:
        await open_codec(database, first)
        assert await open_codec(database, first)
        with pytest.raises(DatabaseOpenError, match=told) as refused:
            await open_codec(database, second)
        assert second.get(KEY_VARIABLE, "nothing") not in str(refused.value)
    finally:
        await database.aclose()


def test_small_values_cost_microseconds() -> None:
    """Against LangGraph's own serializer in the same process: a bound, not a benchmark."""
    theirs, value = JsonPlusSerializer(), {"task": Task(id="t1", question="what?"), "documents": ["docs"], "round": 1}

    def seconds(call: Any) -> float:
        begins = []
        for _ in range(20):
            began = time.perf_counter()
            for _ in range(50):
                call(value)
            begins.append(time.perf_counter() - began)
        return min(begins) / 50

    assert seconds(KNOWN.pack) < max(12 * seconds(theirs.dumps_typed), 100e-6)
