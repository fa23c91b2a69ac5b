"""Hybrid search over real HTTP: what is asked of the embeddings endpoint, what is kept, and what its failures cost."""

import asyncio
import functools
import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Result, replay, resume, run
from orchestrator.documents import open_library
from orchestrator.documents.store import open_store
from orchestrator.errors import InputError
from orchestrator.testing import ModelServer, Reply, agents_script, embeddings_of, faulty, model_server

SPEC = "openai:test-embeddings"
REPAIRED = "The automobile was repaired by Anna Berg."
knows_cars = functools.partial(embeddings_of, same={"car": "automobile", "fixed": "repaired"})


@pytest.fixture
def garage(tmp_path: Path) -> Path:
    """One document that answers in other words, and 79 about something else: three batches of texts."""
    folder = tmp_path / "garage"
    folder.mkdir()
    (folder / "a.md").write_text(f"# Repairs\n\n{REPAIRED}\n", encoding="utf-8")
    for number in range(79):
        (folder / f"n{number}.md").write_text(f"# Note {number}\n\nBoat number {number} lies in the harbour of Kiel.\n", encoding="utf-8")
    return folder


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has the run's environment name a server."""

    def use(server: ModelServer) -> ModelServer:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        return server

    return use


async def ask(server: ModelServer, folder: Path, question: str = "Who fixed my car?", **given: Any) -> Result:
    controls = {"embeddings": SPEC, **given.pop("controls", {})}
    return await run(
        given.pop("workflow", "ask"),
        {"question": question, "documents": [str(folder)]},
        model=server.chat_model(),
        controls=controls,
        **given,
    )


def texts(server: ModelServer) -> list[int]:
    """How many texts each request for vectors had, the largest first."""
    return sorted((len(request.body["input"]) for request in server.embedding_requests), reverse=True)


def once_all_ask(runs: int) -> Callable[[dict[str, Any]], Any]:
    """Vectors of passages, which no run gets before all have asked for the vector of their question: until then all have begun."""
    begun, questions = asyncio.Event(), list[Any]()  # of the server's loop, which is the only one that uses it

    async def reply(body: dict[str, Any]) -> Any:
        questions.extend([body] if len(body["input"]) == 1 else [])
        if len(questions) == runs:
            begun.set()
        await begun.wait()
        return knows_cars(body)

    return reply


async def until_kept(folder: Path, model: str, *, missing: int) -> None:
    """Until all but so many texts have a vector that is kept."""
    left = missing + 1
    while left > missing:
        library = await open_library([str(folder)])
        left = len(await library.unembedded(model))
        await library.aclose()


def claims(result: Result) -> list[str]:
    return [finding["claim"] for finding in (result.output or {})["findings"]]


async def test_what_shares_no_word_is_found_and_a_second_run_asks_for_the_vector_of_its_question_alone(garage: Path, at: Any) -> None:
    async with model_server(agents_script(), embeddings=knows_cars) as server:
        first = await ask(at(server), garage)
        assert (first.status, claims(first)[0], texts(server)) == ("complete", REPAIRED, [32, 32, 16, 1])
        assert first.usage["by_role"]["embeddings"]["model_calls"] == 4
        assert first.usage["by_role"]["embeddings"]["input_tokens"] > 80
        second = await ask(server, garage)
        assert (claims(second)[0], texts(server)) == (REPAIRED, [32, 32, 16, 1, 1])
        (garage / "a.md").write_text("# Repairs\n\nThe automobile was repaired by Otto Lang.\n", encoding="utf-8")
        third = await ask(server, garage)
        assert (claims(third)[0], texts(server)) == ("The automobile was repaired by Otto Lang.", [32, 32, 16, 1, 1, 1, 1])
        words = await ask(server, garage, controls={"embeddings": None})
        assert (words.status, texts(server)[7:]) == ("partial", [])


async def test_research_searches_the_same_way(garage: Path, at: Any) -> None:
    async with model_server(agents_script(), embeddings=knows_cars) as server:
        result = await ask(at(server), garage, workflow="research")
    assert (result.status, claims(result)[0]) == ("complete", REPAIRED)


async def test_runs_that_begin_together_have_the_vectors_made_once(garage: Path, at: Any) -> None:
    async with model_server(agents_script(), embeddings=once_all_ask(4)) as server:
        results = await asyncio.gather(*(ask(at(server), garage) for _ in range(4)))
    assert [claims(result)[0] for result in results] == [REPAIRED] * 4
    assert texts(server) == [32, 32, 16, 1, 1, 1, 1]
    assert server.in_flight_peak <= 8  # four of the one who indexes, and one for each question that waits for it


async def test_runs_whose_index_is_in_memory_share_the_vectors_too(garage: Path, at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    home = garage.parent / "home without a place for an index"
    home.mkdir()
    (home / "index").write_text("a file where the folder would be", encoding="utf-8")
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(home))
    async with model_server(agents_script(), embeddings=once_all_ask(3)) as server:
        results = await asyncio.gather(*(ask(at(server), garage) for _ in range(3)))
    assert [claims(result)[0] for result in results] == [REPAIRED] * 3
    assert texts(server) == [32, 32, 16, 1, 1, 1]


def test_an_index_that_many_open_at_once_is_there_for_each_of_them(tmp_path: Path) -> None:
    """SQLite does not wait where two connections make the same file; the one that lost would search, and pay for vectors, by itself."""
    opened = list[str]()

    def one(at: Path, together: threading.Barrier) -> None:
        together.wait()
        store, _ = open_store(at)
        opened.append(store.path)
        store.close()

    for number in range(60):
        together = threading.Barrier(8)
        threads = [threading.Thread(target=one, args=(tmp_path / f"{number}.sqlite", together)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(opened) == 480


async def test_what_was_made_before_a_run_was_cancelled_is_not_made_again(garage: Path, at: Any) -> None:
    made = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def then_hang(request: dict[str, Any]) -> Reply:
        if len(request["input"]) == 16:
            loop.call_soon_threadsafe(made.set)
            await asyncio.Event().wait()
        return knows_cars(request)

    hanging: list[Any] = [then_hang]
    async with model_server(agents_script(), embeddings=lambda request: hanging[0](request)) as server:
        going = asyncio.create_task(ask(at(server), garage))
        await made.wait()
        await until_kept(garage, f"test-embeddings at {server.base_url[7:-3]}", missing=16)
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)
        while not server.abandoned:  # noqa: ASYNC110 - its thread sees in its own time that the client went away
            await asyncio.sleep(0.01)
        hanging[0] = knows_cars
        assert claims(await ask(server, garage))[0] == REPAIRED
    assert texts(server) == [32, 32, 16, 16, 1, 1]


WORDS = "Which boat lies in the harbour of Kiel?"


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (Reply.error(401, "bad key"), "the key was refused (401)"),
        (Reply.error(404, "no such model"), "there is no model 'test-embeddings' (404)"),
        (Reply(fault="hang"), "no answer within 0.3 s (call_timeout)"),
        (Reply(fault="reset"), "broke before the answer was whole"),
        (Reply(fault="html"), "the answer has no vectors"),
        (Reply(fault="truncated_json", body={"data": []}), "the answer has no vectors"),
        (Reply(body={"data": []}), "the answer has no vectors: 0 vectors for"),
        (Reply(body={"data": [{"index": index, "embedding": [0.1] * (index + 1)} for index in range(32)]}), "the answer has no vectors"),
        (Reply(body='{"data": [{"index": 0, "embedding": [NaN]}]}'), "the answer has no vectors"),
        (Reply(body={"data": "\x1b[2J"}), "the answer has no vectors"),
    ],
    ids=["401", "404", "hang", "reset", "html", "truncated", "none", "ragged", "nan", "hostile"],
)
async def test_an_endpoint_that_fails_costs_the_vectors_and_not_the_answer(garage: Path, at: Any, reply: Reply, why: str) -> None:
    async with model_server(agents_script(), embeddings=lambda _: reply) as server:
        hangs = "0.3 s" in why
        result = await ask(at(server), garage, WORDS, controls={"call_timeout": 0.3 if hangs else 30, "max_attempts": 1})
    assert result.status == "partial"
    assert str(result.error).startswith("embeddings: ")
    assert "lies in the harbour of Kiel." in claims(result)[0]
    assert result.output is not None
    assert "> Partial: the embeddings failed." in result.output["report"]
    (gap,) = result.output["gaps"]
    assert gap.startswith("the embeddings: ")
    assert why in gap
    assert "\x1b" not in gap + result.output["report"]
    assert 1 <= len(server.embedding_requests) <= 4  # what was in flight when it was seen


async def test_it_is_asked_again_like_a_model(garage: Path, at: Any) -> None:
    async with model_server(agents_script(), embeddings=faulty("429:ra=0,500,reset", knows_cars)) as server:
        result = await ask(at(server), garage)
    assert (result.status, claims(result)[0]) == ("complete", REPAIRED)
    assert len(server.embedding_requests) == 4 + 3


async def test_a_budget_counts_it(garage: Path, at: Any) -> None:
    async with model_server(agents_script(), embeddings=knows_cars) as server:
        result = await ask(at(server), garage, controls={"budget": {"max_calls": 2}})
        assert result.status == "limited"
        assert len(server.embedding_requests) <= 2


async def test_a_run_that_is_resumed_searches_as_it_did_and_asks_for_no_vector(garage: Path, at: Any, tmp_path: Path) -> None:
    db, asked, loop = f"sqlite:///{tmp_path / 'runs.sqlite'}", asyncio.Event(), asyncio.get_running_loop()

    async def findings(request: dict[str, Any]) -> Any:
        if not asked.is_set():
            loop.call_soon_threadsafe(asked.set)
            await asyncio.Event().wait()
        return agents_script()(request)

    async with model_server(agents_script(findings=findings), embeddings=knows_cars) as server:
        going = asyncio.create_task(ask(at(server), garage, db=db, run_id="cut-off"))
        await asked.wait()
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)
        assert texts(server) == [32, 32, 16, 1]
        result = await resume("cut-off", db=db, model=server.chat_model())
        assert (result.status, claims(result)[0]) == ("complete", REPAIRED)
        assert texts(server) == [32, 32, 16, 1]
        assert result.usage["by_role"]["embeddings"]["model_calls"] == 4
    assert (await replay("cut-off", db=db)).differences == []


async def test_a_lapse_is_kept_too(garage: Path, at: Any, tmp_path: Path) -> None:
    db = f"sqlite:///{tmp_path / 'runs.sqlite'}"
    async with model_server(agents_script(), embeddings=lambda _: Reply.error(401)) as server:
        result = await ask(at(server), garage, WORDS, db=db)
    played = await replay(result.run_id, db=db)
    assert (result.status, played.differences) == ("partial", [])


async def test_a_model_that_gives_other_vectors_by_now_makes_them_all_again(garage: Path, at: Any) -> None:
    def shorter(request: dict[str, Any]) -> Reply:
        body: Any = json.loads(json.dumps(knows_cars(request).body))
        for row in body["data"]:
            row["embedding"] = row["embedding"][:900]
        return Reply(body=body)

    answering: list[Any] = [knows_cars]
    async with model_server(agents_script(), embeddings=lambda request: answering[0](request)) as server:
        await ask(at(server), garage)
        answering[0] = shorter
        result = await ask(server, garage)
    assert result.status == "complete"
    assert texts(server) == [32, 32, 32, 32, 16, 16, 1, 1]


@pytest.mark.parametrize(
    ("spec", "environ", "said"),
    [
        ("anthropic:voyage", {}, "'anthropic:voyage' is no model for embeddings"),
        ("text-embedding-3-small", {}, "'text-embedding-3-small' is no model for embeddings"),
        ("openai:", {}, "'openai:' names no model"),
        ("offline", {}, "'offline' is no model for embeddings"),
        (SPEC, {"OPENAI_BASE_URL": ""}, "OPENAI_API_KEY is not set"),
    ],
)
async def test_a_spec_that_cannot_be_is_refused_before_anything_starts(
    garage: Path, monkeypatch: pytest.MonkeyPatch, spec: str, environ: dict[str, str], said: str
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=said):
        await run("ask", {"question": "Who?", "documents": [str(garage)]}, model="offline", controls={"embeddings": spec})


async def test_without_numpy_the_error_names_the_extra(garage: Path, at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    async with model_server() as server:
        with pytest.raises(InputError, match=r"orchestrator\[embeddings\]"):
            await ask(at(server), garage)


async def test_every_third_place_is_for_what_is_near_in_meaning(tmp_path: Path) -> None:
    for name, text in {"a": "apple apple apple", "b": "apple pear", "c": "apple kiwi lemon", "d": "plum", "e": "quince"}.items():
        (tmp_path / f"{name}.txt").write_text(f"{text}\n", encoding="utf-8")
    library = await open_library([str(tmp_path)])

    async def near(_: str) -> list[tuple[str, int]]:
        return [(str(tmp_path / name), 1) for name in ("a.txt", "d.txt", "gone.txt", "e.txt")]

    async def found(limit: int) -> str:
        return "".join(Path(passage.source.uri).stem for passage in await library.search("apple", limit))

    try:
        words = await found(9)
        assert sorted(words) == ["a", "b", "c"]
        library.near = near
        assert words[0] == "a"
        assert [await found(limit) for limit in (1, 3, 9)] == ["a", f"{words[:2]}d", f"{words[:2]}d{words[2]}e"]
    finally:
        await library.aclose()


async def test_vectors_that_cannot_be_written_serve_the_run_that_made_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One text.\n", encoding="utf-8")
    library = await open_library([str(tmp_path)])
    try:
        (digest,) = await library.unembedded("m")
        vector = _unit([1.0, 0.0])
        library._vectors["m"]._store = _Nowhere(library._store)  # type: ignore[assignment]
        note = await library.keep_vectors("m", {digest: vector})
        assert note.startswith("the vectors of these documents are not kept between runs: ")
        assert await library.nearest("m", vector, 3) == [(str(tmp_path / "a.txt"), 1)]
        assert await library.nearest("m", _unit([1.0]), 3) is None
    finally:
        await library.aclose()


class _Nowhere:
    """A store whose file is where no file can be."""

    path = "/nowhere/at/all.sqlite"

    def __init__(self, store: Any) -> None:
        self.texts = store.texts


def _unit(numbers: Iterable[float]) -> bytes:
    import numpy

    return numpy.asarray(list(numbers), dtype="<f4").tobytes()


def test_the_vectors_of_texts_that_are_gone_go_too(tmp_path: Path) -> None:
    async def kept(text: str) -> int:
        (tmp_path / "a.txt").write_text(text, encoding="utf-8")
        library = await open_library([str(tmp_path)])
        try:
            missing = await library.unembedded("m")
            assert len(missing) == 1
            await library.keep_vectors("m", dict.fromkeys(missing, _unit([1.0])))
            return len(library._vectors["m"]._vectors)
        finally:
            await library.aclose()

    assert asyncio.run(kept("One text.\n")) == 1
    assert asyncio.run(kept("Quite another text.\n")) == 1
