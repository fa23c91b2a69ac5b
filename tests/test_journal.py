"""The journal: what a run's calls leave in it, and what the next attempt is answered from it."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool

from orchestrator import fetch
from orchestrator.context import RunContext
from orchestrator.errors import BudgetExceeded, CallFailedError, InvalidAnswerError, LoopStopped, LostRunError, StorageError
from orchestrator.events import in_branch
from orchestrator.fetch import FetchedPage
from orchestrator.journal import Journal, Recalled, Request
from orchestrator.storage.database import Statement
from orchestrator.storage.journal import JournalUsage
from orchestrator.testing import Reply, model_server
from tests.journal_made import City, city, counting, kept, question_of


def request(text: str, scope: str = "branch t1", *, alone: bool = False) -> Request:
    return Request(kind="model", role="researcher", model="m", content=text, scope=scope, alone=alone)


async def test_what_was_answered_is_answered_again_without_a_request() -> None:
    async with model_server(counting(lambda number: {"name": f"city {number}"})) as server, kept() as run:
        async with run.attempt({"": server.chat_model()}) as context:
            first = [await city(context, f"question {number}") for number in range(3)]
            used = await context.ledger.usage()
        assert len(server.requests) == 3
        async with run.attempt({"": server.chat_model()}) as context:
            again = [await city(context, f"question {number}") for number in range(3)]
            assert await context.ledger.usage() == used
    assert again == first == ["city 0", "city 1", "city 2"]
    assert len(server.requests) == 3
    assert run.told("recalled") == 3
    assert run.told("model_started") == 0


async def test_a_run_that_is_new_never_looks_back() -> None:
    async with (
        model_server(counting(lambda number: {"name": f"city {number}"})) as server,
        kept() as run,
        run.attempt({"": server.chat_model()}) as context,
    ):
        assert [await city(context, "the same") for _ in range(2)] == ["city 0", "city 1"]
    assert len(server.requests) == 2


async def test_the_same_question_asked_n_times_gets_its_n_answers_in_order() -> None:
    async with model_server(counting(lambda number: {"name": f"city {number}"})) as server, kept() as run:
        async with run.attempt({"": server.chat_model()}) as context:
            await city(context, "the same", "t1")
            await city(context, "the same", "t2")
            await city(context, "the same", "t1")
        async with run.attempt({"": server.chat_model()}) as context:
            answers = [await city(context, "the same", branch) for branch in ("t2", "t1", "t1", "t1")]
    assert answers == ["city 1", "city 0", "city 2", "city 3"]
    assert len(server.requests) == 4


async def test_an_answer_of_another_scope_counts_where_its_own_is_used_up_unless_it_stands_alone() -> None:
    async with kept() as run:
        journal = await Journal.open(run.table, 1, run.fence)
        await journal.record(request("a", "branch t1"), "one")
        await journal.record(request("a", "branch t2"), "two")
        await journal.aclose()
        journal = await Journal.open(run.table, 1, run.fence, mode="resume")
        assert await journal.recall(request("a", "branch t3", alone=True)) is None
        found = await journal.recall(request("a", "branch t2"))
        assert found == Recalled("two")
        found = await journal.recall(request("a", "branch t2"))
        assert found == Recalled("one")
        assert await journal.recall(request("a", "branch t1")) is None
        await journal.aclose()


async def test_a_fork_takes_its_parents_answers_whatever_their_scope_each_once() -> None:
    async with kept() as run:
        journal = await Journal.open(run.table, 1, run.fence)
        await journal.record(request("a", "node vote 0"), "one")
        await journal.record(request("a", "node vote 1"), "two")
        await journal.aclose()
        fork = await run.of(run.database, 2)
        journal = await Journal.open(fork.table, 2, fork.fence, sources=[1])
        found = [await journal.recall(request("a", f"node vote {place}", alone=True)) for place in (1, 2, 3)]
        assert found == [Recalled("two"), Recalled("one"), None]
        await journal.aclose()


async def test_a_failed_call_is_made_again_and_its_requests_stay_in_the_bill() -> None:
    replies: list[Any] = [Reply.error(500), Reply.error(500), {"name": "Rome"}]
    async with model_server(replies) as server, kept() as run:
        async with run.attempt({"": server.chat_model()}, max_attempts=2) as context:
            with pytest.raises(CallFailedError):
                await city(context, "which?")
        assert await run.states() == ["failed"]
        async with run.attempt({"": server.chat_model()}, max_attempts=2) as context:
            assert (await context.ledger.usage("t1")).model_calls == 2
            assert await city(context, "which?") == "Rome"
            assert (await context.ledger.usage()).model_calls == 3
        assert await run.states() == ["failed", "ok"]


async def test_budgets_count_over_all_attempts() -> None:
    async with model_server(counting(lambda number: {"name": f"city {number}"})) as server, kept() as run:
        limits = {"budget": {"max_calls": 3}, "branch_budget": {"max_calls": 2}, "role_budgets": {"researcher": {"max_tokens": 10_000}}}
        async with run.attempt({"": server.chat_model()}, **limits) as context:
            await city(context, "one")
            await city(context, "two")
        async with run.attempt({"": server.chat_model()}, **limits) as context:
            assert await city(context, "one") == "city 0"
            with pytest.raises(BudgetExceeded, match=r"the budget of branch 't1' has no room .* 2 of 2 calls are used"):
                await city(context, "three")
            await city(context, "three", "t2", "writer")
            with pytest.raises(BudgetExceeded, match=r"the budget of the run .* 3 of 3 calls"):
                await city(context, "four", "t3", "writer")
    assert len(server.requests) == 3


async def test_answers_that_are_given_again_count_for_the_loop_guard() -> None:
    async with model_server(counting(lambda number: {"name": f"city {number}"})) as server, kept() as run:
        for _ in range(2):
            async with run.attempt({"": server.chat_model()}, max_agent_calls=2) as context:
                await city(context, "one")
                await city(context, "two")
                with pytest.raises(LoopStopped):
                    await city(context, "three")
    assert len(server.requests) == 2


async def test_a_way_of_asking_that_was_refused_is_remembered_and_the_answer_is_found_whatever_the_way() -> None:
    def reply(body: Any) -> Any:
        return Reply.error(400, "response_format is not supported") if "response_format" in body else {"name": "Rome"}

    async with model_server(reply) as server, kept() as run:
        async with run.attempt({"": server.chat_model()}) as context:
            assert await city(context, "which?") == "Rome"
        assert await run.states() == ["rejected", "ok"]
        asked = len(server.requests)
        async with run.attempt({"": server.chat_model()}) as context:
            assert await city(context, "which?") == "Rome"
            assert len(server.requests) == asked
            assert await city(context, "and now?") == "Rome"  # asked at once in the way that had worked
    assert len(server.requests) == asked + 1


async def test_repairs_are_found_again() -> None:
    async with model_server(["no JSON", '{"nam": "Rome"}', {"name": "Rome"}]) as server, kept() as run:
        for _ in range(2):
            async with run.attempt({"": server.chat_model()}) as context:
                assert await city(context, "which?") == "Rome"
    assert len(server.requests) == 3


async def test_an_answer_that_never_fits_is_found_again() -> None:
    async with model_server(["no", "never", "no JSON"]) as server, kept() as run:
        for _ in range(2):
            async with run.attempt({"": server.chat_model()}) as context:
                with pytest.raises(InvalidAnswerError):
                    await city(context, "which?")
    assert len(server.requests) == 3


async def test_tool_calls_and_their_answers_are_found_again_under_the_new_calls_id() -> None:
    called: list[str] = []

    @tool
    def lookup(word: str) -> str:
        """Look a word up."""
        called.append(word)
        if word == "nothing":
            raise ValueError("there is no such word")
        return f"{word} is a word"

    async with (
        model_server([Reply(calls=[("lookup", {"word": "Rome"}), ("lookup", {"word": "nothing"})]), {"name": "Rome"}]) as server,
        kept() as run,
    ):
        for attempt in range(2):
            async with run.attempt({"": server.chat_model()}) as context:
                with in_branch("t1"):
                    messages: list[Any] = [HumanMessage("which?")]
                    answer = await context.ask("researcher", messages, City, tools=[lookup])
                    assert [call["name"] for call in answer.message.tool_calls] == ["lookup", "lookup"]
                    calls = [{**call, "id": f"{call['id']}-{attempt}"} for call in answer.message.tool_calls]
                    results = await asyncio.gather(*(context.call_tool(lookup, call) for call in calls))  # type: ignore[arg-type]
                    assert [result.tool_call_id for result in results] == [call["id"] for call in calls]
                    assert [result.status for result in results] == ["success", "error"]
                    final = await context.ask("researcher", [*messages, answer.message, *results], City, tools=[lookup])
                    assert final.value == City(name="Rome")
    assert len(server.requests) == 2
    assert sorted(called) == ["Rome", "nothing"]


async def test_of_several_models_the_one_that_answered_is_asked_first() -> None:
    async with (
        model_server([Reply.error(400)] * 9) as refusing,
        model_server(counting(lambda number: {"name": f"city {number}"})) as other,
        kept() as run,
    ):
        for _ in range(2):
            models = [refusing.chat_model(model="first"), other.chat_model(model="second")]
            async with run.attempt({"": models}) as context:
                assert await city(context, "which?") == "city 0"
        asked = len(refusing.requests)
        assert run.told("fallback") == 0
    assert len(other.requests) == 1
    assert asked == 1  # in the first attempt alone


@pytest.mark.parametrize("controls", [{"race": ["*"]}, {"hedge": ["*"]}])
async def test_a_race_and_a_hedge_are_not_run_again(controls: dict[str, Any]) -> None:
    async with (
        model_server(lambda _: Reply(value={"name": "slow"}, delay=30)) as slow,
        model_server(counting(lambda number: {"name": f"city {number}"})) as quick,
    ):
        models = [slow.chat_model(model="slow"), quick.chat_model(model="quick")] if "race" in controls else quick.chat_model()
        async with kept() as run:
            async with run.attempt({"": models}, **controls) as context:
                assert await city(context, "which?") == "city 0"
            made = len(slow.requests)
            states = await run.states()
            async with run.attempt({"": models}, **controls) as context:
                assert await city(context, "which?") == "city 0"
            assert len(quick.requests) == 1
            assert len(slow.requests) == made
    assert sorted(states) == (["abandoned", "ok"] if "race" in controls else ["ok"])


async def test_both_requests_of_a_hedge_are_in_its_row() -> None:
    late: list[Any] = []
    made: list[int] = []

    def reply(body: Any) -> Any:
        if "slow" in question_of(body):
            late.append(body)
            return Reply(value={"name": "late"}, delay=30 if len(late) == 1 else 0)
        return {"name": "quick"}

    async with model_server(reply) as server, kept() as run:
        for _ in range(2):
            async with run.attempt({"": server.chat_model()}, hedge=["*"]) as context:
                assert {await city(context, f"question {number}", f"t{number}") for number in range(25)} == {"quick"}
                assert await city(context, "a slow one", "slow") == "late"
                assert (await context.ledger.usage()).model_calls == len(server.requests)
            made.append(len(server.requests))
        # A slow machine may hedge a quick question too; that each is told once is what counts.
        assert made[0] == made[1] >= 27
        (slow,) = [one for one in await run.table.sums(1) if one.scope == "branch slow"]
        assert slow.usage[:2] == (2, 1)


async def test_branches_that_shared_an_answer_both_find_it() -> None:
    async with model_server(counting(lambda number: Reply(value={"name": f"city {number}"}, delay=0.05))) as server, kept() as run:
        async with run.attempt({"": server.chat_model()}) as context:
            shared = await asyncio.gather(city(context, "which?", "t1"), city(context, "which?", "t2"))
        assert len(server.requests) == 1
        assert [row.kind for row in await run.rows()] == ["model", "shared"]
        async with run.attempt({"": server.chat_model()}) as context:
            again = [await city(context, "which?", "t2"), await city(context, "which?", "t1")]
    assert again == shared == ["city 0", "city 0"]
    assert len(server.requests) == 1


async def test_a_call_that_is_given_up_leaves_its_estimated_usage() -> None:
    async with model_server(lambda _: Reply(value={"name": "Rome"}, delay=30)) as server, kept() as run:
        async with run.attempt({"": server.chat_model()}) as context:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await city(context, "which?")
        (row,) = await run.rows()
        (total,) = await run.table.sums(1)
        assert (row.state, row.error) == ("abandoned", "cancelled")
        assert total[:3] == ("researcher", "test-model", "branch t1")
        assert total.usage == JournalUsage(1, 1, max(total.usage.input_tokens, 1), 0)


async def test_who_lost_the_run_gets_no_answer_any_more() -> None:
    async with model_server(counting(lambda number: {"name": f"city {number}"})) as server, kept() as run:
        journal = await Journal.open(run.table, 1, run.fence)
        context = RunContext(models={"": server.chat_model()}, journal=journal)
        await city(context, "one")
        await run.database.run(Statement("UPDATE runs SET owner = 'another'"))
        for question in ("two", "three"):
            with pytest.raises(LostRunError):
                await city(context, question)
        with pytest.raises(LostRunError):
            await journal.aclose()
        await context.aclose()
        assert len(await run.rows()) == 1


async def test_a_fork_is_answered_from_its_parent_and_pays_for_its_own_calls_only() -> None:
    async with model_server(counting(lambda number: {"name": f"city {number}"})) as server, kept() as run:
        async with run.attempt({"": server.chat_model()}) as context:
            await city(context, "one")
        fork = await run.of(run.database, 2)
        async with fork.attempt({"": server.chat_model()}, sources=[1]) as context:
            assert [await city(context, "one"), await city(context, "two")] == ["city 0", "city 1"]
            assert (await context.ledger.usage()).model_calls == 1
        assert (len(await run.rows()), len(await fork.rows())) == (1, 1)


async def test_rows_that_are_recorded_at_once_share_their_commits() -> None:
    async with kept() as run:
        journal = await Journal.open(run.table, 1, run.fence)
        made: list[str] = []
        run.database._writer._connection.set_trace_callback(made.append)  # type: ignore[attr-defined]
        text = "long " * 200
        await asyncio.gather(*(journal.record(request(text, f"branch {number}"), text) for number in range(50)))
        assert made.count("COMMIT") <= 25  # of 50: how many wait for a commit is a matter of the disk
        made.clear()
        await journal.record(request(text), text)
        await journal.aclose()
    assert [one.split("(")[0] for one in made if one.startswith("INSERT")] == ["INSERT INTO journal"]  # the texts are there already


async def test_what_is_asked_is_kept_and_long_texts_once() -> None:
    async with kept() as run:
        journal = await Journal.open(run.table, 1, run.fence)
        text = "a long text " * 100
        for number in range(3):
            await journal.record(request(f"{text}{number % 2}"), {"content": text})
        await journal.aclose()
        assert await run.table.requests(1, [0, 2]) == {0: f"{text}0", 2: f"{text}0"}
        assert await run.table.response(1, 1) == {"content": text}
        [[(texts,)]] = await run.database.run(Statement("SELECT COUNT(*) FROM texts"))
    assert texts == 2  # what is asked is asked again in the next request; no two answers are the same


async def test_encrypted_rows_tell_nothing_of_what_was_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORCHESTRATOR_STORE_KEY", base64.b64encode(bytes(range(32))).decode())
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    async with model_server([{"name": "Rome"}, Reply.error(400, "Atlantis is no city")]) as server, kept(url) as run:
        for _ in range(2):
            async with run.attempt({"": server.chat_model()}) as context:
                assert await city(context, "which planted city?") == "Rome"
                if not run.told("recalled"):
                    with pytest.raises(CallFailedError):
                        await city(context, "and which planted sunken one?")
        assert request("a").digest not in {row.digest for row in await run.rows()}
        assert [row.error for row in await run.rows()] == [None, "encrypted"]
    assert [word for word in ("planted", "Rome", "Atlantis") if count(tmp_path, word)] == []


async def test_secrets_are_not_in_the_journal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = "planted-secret-4711-abcdef"
    monkeypatch.setenv("SEARCH_API_KEY", secret)

    @tool
    async def leaks(word: str) -> str:
        """Answer with a secret."""
        if word == "fail":
            raise ValueError(f"refused {secret}")
        return f"{word} {secret}"

    async with kept(f"sqlite:///{tmp_path / 'runs.db'}") as run, run.attempt({}):
        assert secret in await leaks.ainvoke({"word": "a"})
        with pytest.raises(ValueError, match=secret):
            await leaks.ainvoke({"word": "fail"})
    assert count(tmp_path, secret) == 0


def count(folder: Path, text: str) -> int:
    return sum(path.read_bytes().count(text.encode()) for path in folder.iterdir())


async def test_pages_that_were_fetched_are_in_the_documents_again_under_the_same_ids(
    documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    async def page(url: str, **_: Any) -> FetchedPage:
        fetched.append(url)
        return FetchedPage(url, f"Title of {url}", f"What stands on {url}.", "0" * 64)

    monkeypatch.setattr(fetch, "fetch", page)
    urls = ["https://example.org/b", "https://example.org/a"]
    answers: list[list[str]] = []
    async with kept() as run:
        for _ in range(2):
            async with run.attempt({}) as context:
                library = await context.library([str(documents)])
                (fetch_url,) = [one for one in context.tools(library, ["example.org"]) if one.name == "fetch_url"]
                calls = [{"name": "fetch_url", "args": {"url": url}, "id": "1", "type": "tool_call"} for url in reversed(urls)]
                if not answers:
                    calls.reverse()
                answers.append(sorted([str((await context.call_tool(fetch_url, call)).content) for call in calls]))  # type: ignore[arg-type]
                assert [(await library.passage(name)).text for name in ("p1.1", "p2.1")] == [f"What stands on {url}." for url in urls]  # type: ignore[union-attr]
    assert answers[0] == answers[1]
    assert fetched == urls


async def test_a_store_that_fails_fails_the_call_and_what_nobody_waited_for_is_told_at_the_end() -> None:
    async with kept() as run:
        journal = await Journal.open(run.table, 1, run.fence)
        await run.database.run(Statement("ALTER TABLE journal RENAME TO gone"))
        with pytest.raises(StorageError):
            await journal.record(request("a"), "one")
        journal.abandon(request("a"), None, usage=JournalUsage(1))
        with pytest.raises(StorageError):
            await journal.aclose()


async def test_a_tool_call_that_branches_shared_is_found_by_both() -> None:
    called: list[str] = []

    @tool
    async def lookup(word: str) -> str:
        """Look a word up."""
        called.append(word)
        await asyncio.sleep(0.02)
        return f"{word} {len(called)}"

    async def looked_up(context: RunContext, branch: str) -> str:
        call: Any = {"name": "lookup", "args": {"word": "Rome"}, "id": branch, "type": "tool_call"}
        with in_branch(branch):
            message = await context.call_tool(lookup, call)
        assert message.tool_call_id == branch
        return str(message.content)

    async with kept() as run:
        async with run.attempt({}) as context:
            assert await asyncio.gather(looked_up(context, "t1"), looked_up(context, "t2")) == ["Rome 1", "Rome 1"]
        async with run.attempt({}) as context:
            assert [await looked_up(context, branch) for branch in ("t2", "t1")] == ["Rome 1", "Rome 1"]
            assert await looked_up(context, "t1") == "Rome 2"
