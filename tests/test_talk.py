"""The graph of a conversation: memory, documents, tools, citations, and what it says without a language model; over real HTTP."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from orchestrator import run, stream
from orchestrator.cli import main
from orchestrator.errors import InputError, ModelSpecError
from orchestrator.events import Event, listening
from orchestrator.graphs.conversation import recent
from orchestrator.resuming import resume
from orchestrator.testing import ModelServer, Reply, model_server

_PASSAGE = re.compile(r'<passage-\w+ id="([^"]+)"[^>]*>\n(.*?)\n</passage', re.DOTALL)


def texts(body: Mapping[str, Any], role: str) -> list[str]:
    return [str(message["content"]) for message in body["messages"] if message["role"] == role]


def passages(text: str) -> dict[str, str]:
    """Ids of passages by their texts."""
    return {found: name for name, found in _PASSAGE.findall(text)}


def born(body: Mapping[str, Any]) -> str:
    """An answer that cites the passage about a birth."""
    found = passages("\n".join([*texts(body, "user"), *texts(body, "tool")]))
    name = next((found[text] for text in found if "was born" in text), "d9.9")
    return f"Ada Byron was born in London [{name}]."


async def turn(server: ModelServer, text: str, **given: Any) -> Any:
    return await run("chat", {"messages": text, **given}, model=server.chat_model(), thread="ada")


async def test_a_turn_knows_what_was_said_and_answered_before_it_and_which_documents_it_is_about(documents: Path) -> None:
    async with model_server(lambda body: "By Ada Byron." if texts(body, "user")[-1].endswith("the journal?") else born(body)) as server:
        await turn(server, "Who designed the journal?", documents=[str(documents)])
        second = await turn(server, "And where was she born?")
        alone = await run("chat", {"messages": "And where was she born?"}, model=server.chat_model())
    body = server.requests[1].body
    assert [(message["role"], message["content"]) for message in body["messages"][1:3]] == [
        ("user", "Who designed the journal?"),  # without the passages that stood with it
        ("assistant", "By Ada Byron."),
    ]
    assert (second.status, second.output["doubts"], alone.output["sources"]) == ("complete", [], [])
    assert [(source["where"], source["quote"]) for source in second.output["sources"]] == [
        ("line 3", "Ada Byron was born in London on 10 December 1815.")
    ]
    assert len(server.requests[2].body["messages"]) == 2


async def test_calls_of_a_turn_are_made_and_forgotten_after_it(documents: Path) -> None:
    def reply(body: Mapping[str, Any]) -> Any:
        if body["messages"][-1]["role"] == "user" and "search" in texts(body, "user")[-1]:
            return Reply(calls=[("search_documents", {"query": "born in London"}), ("search_documents", {"query": "budget"})])
        return born(body)

    async with model_server(reply) as server:
        first = await turn(server, "search, please", documents=[str(documents)])
        await turn(server, "Thanks.")
    assert len(first.output["sources"]) == 1
    assert len(texts(server.requests[1].body, "tool")) == 2
    assert (texts(server.requests[2].body, "tool"), texts(server.requests[2].body, "assistant")) == ([], [first.output["answer"]])


async def test_tools_by_name_are_offered_in_later_turns_too_and_an_unknown_one_is_refused() -> None:
    def reply(body: Mapping[str, Any]) -> Any:
        return Reply(calls=[("calculator", {"expression": "6 * 7"})]) if body["messages"][-1]["role"] == "user" else "It is 42."

    async with model_server(reply) as server:
        await turn(server, "What is 6 times 7?", tools=["calculator"])
        await turn(server, "And again?")
        with pytest.raises(InputError, match="There is no tool 'calculater'"):
            await run("chat", {"messages": "x", "tools": ["calculater"]}, model=server.chat_model())
    assert [texts(request.body, "tool") for request in server.requests] == [[], ["42"], [], ["42"]]
    assert [[tool["function"]["name"] for tool in request.body["tools"]] for request in server.requests] == [["calculator"]] * 4


async def test_what_an_answer_cites_wrongly_is_said(documents: Path) -> None:
    def reply(body: Mapping[str, Any]) -> str:
        name = passages(texts(body, "user")[-1]).popitem()[1]
        return f"Born in 1816 [{name}].\nThere is a second one [d77.1]. And 1999 is cited by nothing."

    async with model_server(reply) as server:
        found = await turn(server, "Where was Ada Byron born?", documents=[str(documents / "ada-byron.txt")])
    assert found.output["doubts"] == ["[d77.1] is no passage of the documents", "not in what it cites: 1816 (“Born in 1816.”)"]


async def test_an_answer_is_told_as_it_comes(documents: Path) -> None:
    async with model_server(lambda body: Reply(text=born(body), pause=0.01)) as server:
        events = [event async for event in stream("chat", {"messages": "Where?", "documents": [str(documents)]}, model=server.chat_model())]
    pieces = [event.fields["text"] for event in events if event.kind == "token"]
    assert len(pieces) > 3
    assert "".join(pieces) == events[-1].fields["output"]["answer"]


async def test_a_model_that_takes_no_tools_answers_from_the_passages_that_stand_with_the_question(documents: Path) -> None:
    async with model_server(lambda body: Reply.error(400, "tools are not supported") if body.get("tools") else born(body)) as server:
        found = await turn(server, "Where was Ada Byron born?", documents=[str(documents)])
    assert (found.status, len(found.output["sources"])) == ("complete", 1)


async def test_an_answer_of_an_earlier_turn_is_none_of_a_turn_that_fails() -> None:
    async with model_server(lambda body: Reply.error(401, "no") if len(texts(body, "user")) > 1 else "Yes.") as server:
        first = await turn(server, "one")
        second = await turn(server, "two")
    assert (first.output["answer"], second.status, second.output["answer"]) == ("Yes.", "failed", "")


async def test_a_turn_that_is_resumed_goes_on_where_it_was(documents: Path) -> None:
    broken = {"on": True}

    def reply(body: Mapping[str, Any]) -> Any:
        if not texts(body, "tool"):
            return Reply(calls=[("search_documents", {"query": "born"})])
        return Reply.error(401, "no") if broken["on"] else born(body)

    async with model_server(reply) as server:
        failed = await turn(server, "Where was Ada Byron born?", documents=[str(documents)])
        broken["on"] = False
        done = await resume(failed.run_id, model=server.chat_model(), retry=True)
    assert (failed.status, done.status, len(server.requests)) == ("failed", "complete", 3)
    assert len(done.output["sources"]) == 1


async def test_of_a_long_conversation_the_end_is_remembered_and_that_is_said() -> None:
    told: list[Event] = []
    async with model_server(lambda body: f"answer {len(texts(body, 'user'))} " + "and so on " * 40) as server:
        for number in range(4):
            await turn(server, f"question {number}", memory_tokens=200)
        with listening(told.append):
            kept = recent([HumanMessage("a" * 4000), AIMessage("b"), HumanMessage("c")], server.chat_model(), 100)
    assert texts(server.requests[3].body, "user") == ["question 2", "question 3"]
    assert [message.content for message in kept] == ["c"]
    assert [event.fields["message"] for event in told] == [
        "the conversation is longer than 100 tokens: the first 2 of its 3 messages are not remembered"
    ]


async def test_a_message_that_is_too_long_by_itself_is_sent_as_it_is() -> None:
    async with model_server(lambda _: "Yes.") as server:
        await turn(server, "word " * 2000, memory_tokens=100)
    assert texts(server.requests[0].body, "user") == ["word " * 2000]


async def test_without_a_language_model_the_documents_answer(documents: Path) -> None:
    given = {"documents": [str(documents)]}
    first = await run("chat", {"messages": "Who designed the journal?", **given}, model="offline", thread="a")
    second = await run("chat", {"messages": "And where was she born?"}, model="offline", thread="a")
    lines = first.output["answer"].splitlines()
    assert (first.status, second.status) == ("complete", "complete")
    assert lines[:2] == [
        "No language model was used. These sentences stand word for word in the documents:",
        "- The journal was designed by Ada Byron. [1]",
    ]
    assert first.output["sources"][0]["quote"] == "The journal was designed by Ada Byron."
    assert "Ada Byron was born in London on 10 December 1815." in second.output["answer"]
    nothing = await run("chat", {"messages": "Zyzzyva qwerty?", **given}, model="offline")
    assert nothing.output["answer"] == "No language model was used, and no sentence of the documents seems to answer this."


async def test_without_a_language_model_and_documents_there_is_nobody_to_talk_to() -> None:
    with pytest.raises(ModelSpecError, match="there is no language model to talk with"):
        await run("chat", {"messages": "Hello?"}, model="offline")


def test_the_command_says_what_is_needed_and_a_documents_folder_that_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "Hello?"]) == 2
    assert "do: name one: --model openai:NAME, or another provider:model; or give --documents" in capsys.readouterr().err
    assert main(["chat", "Hello?", "--documents", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
