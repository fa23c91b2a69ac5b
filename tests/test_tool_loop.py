"""The tool loop: calls of one message at once, answers in the model's own words, and an end to every loop."""

import asyncio
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, tool

from orchestrator import Workflow, run, stream
from orchestrator.errors import InvalidAnswerError
from orchestrator.graphs.tool_loop import create_tool_loop
from orchestrator.testing import Reply, fault, model_server


class Place:
    """Counts the calls of tools, and how many were at work at once."""

    def __init__(self, together: int = 1) -> None:
        self.made: list[str] = []
        self.at_work = self.peak = 0
        self._together = together
        self._met = asyncio.Event()

    def tool(self) -> BaseTool:
        """`look_up(name)`, which answers as soon as so many calls as were said are at work."""

        @tool
        async def look_up(name: str) -> str:
            """Look up a name."""
            self.made.append(name)
            self.at_work += 1
            self.peak = max(self.peak, self.at_work)
            if self.at_work >= self._together:
                self._met.set()
            await asyncio.wait_for(self._met.wait(), 5)
            self.at_work -= 1
            return f"{name}: room 12"

        return look_up


def looking(*names: str, text: str | None = None) -> Reply:
    """A message that calls `look_up` for each name."""
    return Reply(text=text, calls=[("look_up", {"name": name}) for name in names])


def loop(*tools: BaseTool, **options: Any) -> Workflow:
    """The loop as a workflow."""
    return Workflow(create_tool_loop(tools=tools, **options), name="loop")


def told(request: Any) -> list[tuple[str, str]]:
    """The messages of a request after the system's: role and content."""
    return [(message["role"], message["content"]) for message in request.body["messages"][1:]]


async def test_the_calls_of_one_message_are_made_at_once_and_answered_in_order() -> None:
    place = Place(together=3)
    async with model_server([looking("Ada", "Bob", "Eve"), "All of them are in room 12."]) as server:
        result = await run(loop(place.tool()), {"messages": "Where are they?"}, model=server.chat_model())
    assert result.status == "complete"
    assert result.output["answer"] == "All of them are in room 12."
    assert place.peak == 3
    answers = [("tool", f"{name}: room 12") for name in ("Ada", "Bob", "Eve")]
    assert told(server.requests[1])[2:] == answers


async def test_a_sync_tool_runs_in_a_thread() -> None:
    import threading

    names: list[str] = []

    @tool
    def look_up(name: str) -> str:
        """Look up a name."""
        names.append(threading.current_thread().name)
        return "room 12"

    async with model_server([looking("Ada"), "In room 12."]) as server:
        result = await run(loop(look_up), {"messages": "Where is Ada?"}, model=server.chat_model())
    assert (result.status, names) == ("complete", ["orchestrator tool"])


async def test_the_text_is_told_as_it_comes() -> None:
    place, words = Place(), "In room 12."
    async with model_server([looking("Ada", text="One moment."), Reply(text=words, pause=0.05)]) as server:
        events = [event async for event in stream(loop(place.tool()), {"messages": "Where?"}, model=server.chat_model())]
    pieces: list[list[str]] = []
    for event in events:
        if event.kind == "model_started":
            pieces.append([])
        if event.kind == "token":
            assert event.role == "assistant"
            pieces[-1].append(event.fields["text"])
    assert ["".join(piece) for piece in pieces] == ["One moment.", words]
    assert len(pieces[1]) > 1


async def test_what_nobody_reads_is_not_streamed() -> None:
    async with model_server(["In room 12."]) as server:
        result = await run(loop(), {"messages": "Where?"}, model=server.chat_model())
    assert result.output["answer"] == "In room 12."
    assert not server.requests[0].body.get("stream")


@pytest.mark.parametrize("turns", [1, 3])
async def test_after_its_turns_the_model_has_to_answer(turns: int) -> None:
    place, count = Place(), iter(range(100))

    def respond(body: dict[str, Any]) -> Any:
        return looking(f"name {next(count)}") if body.get("tools") else "Nobody is there."

    async with model_server(respond) as server:
        result = await run(loop(place.tool(), max_turns=turns), {"messages": "Where?"}, model=server.chat_model())
    assert (result.status, result.output["answer"], len(place.made)) == ("complete", "Nobody is there.", turns)
    assert "no more tools" in told(server.requests[-1])[-1][1]
    assert [message["type"] for message in result.output["messages"]] == ["human", *["ai", "tool"] * turns, "ai"]


async def test_a_call_that_is_repeated_is_made_once_and_ends_the_tools() -> None:
    place = Place()

    def respond(body: dict[str, Any]) -> Any:
        return looking("Ada") if body.get("tools") else "In room 12."

    async with model_server(respond) as server:
        model = server.chat_model()
        result = await run(loop(place.tool()), {"messages": "Where?"}, model=model, controls={"max_identical_tool_calls": 3})
    assert (result.output["answer"], place.made, len(server.requests)) == ("In room 12.", ["Ada"], 4)


async def test_a_later_question_may_look_up_the_same_again() -> None:
    place = Place()
    async with model_server([looking("Ada"), "In room 12.", looking("Ada"), "Still in room 12."]) as server:
        for question in ("Where is Ada?", "And now?"):
            result = await run(loop(place.tool()), {"messages": question}, model=server.chat_model(), thread="ada")
    assert (result.output["answer"], place.made) == ("Still in room 12.", ["Ada", "Ada"])
    assert [role for role, _ in told(server.requests[-1])] == ["user", "assistant", "tool", "assistant", "user", "assistant", "tool"]


async def test_a_tool_that_fails_or_is_unknown_is_an_answer() -> None:
    @tool
    async def look_up(name: str) -> str:
        """Look up a name."""
        raise OSError("the list is away")

    replies = [Reply(calls=[("look_up", {"name": "Ada"}), ("nothing", {})]), looking("Ada"), "I could not find out."]
    async with model_server(replies) as server:
        result = await run(loop(look_up), {"messages": "Where?"}, model=server.chat_model())
    assert result.output["answer"] == "I could not find out."
    assert [content for role, content in told(server.requests[1]) if role == "tool"] == [
        "Not done, because another call of the same message was wrong. Call it again if you still need it.",
        "there is no tool 'nothing', only look_up",
    ]
    assert told(server.requests[2])[-1] == ("tool", "OSError: the list is away")


@pytest.mark.parametrize("name", ["invalid_tool_json", "unknown_tool"])
async def test_calls_that_stay_wrong_fail_the_run(name: str) -> None:
    place = Place()
    async with model_server(fault(name, lambda _: looking("Ada"))) as server:
        result = await run(loop(place.tool()), {"messages": "Where?"}, model=server.chat_model())
    assert (result.status, place.made, len(server.requests)) == ("failed", [], 3)
    assert InvalidAnswerError.__name__ not in str(result.error)


async def test_a_model_that_takes_no_tools_is_asked_without_and_it_is_said() -> None:
    def respond(body: dict[str, Any]) -> Any:
        return Reply.error(400, "this model does not support tools") if body.get("tools") else "I do not know."

    async with model_server(respond) as server:
        events = [event async for event in stream(loop(Place().tool()), {"messages": "Where?"}, model=server.chat_model())]
    said = [event.fields["message"] for event in events if event.kind == "log"]
    assert any("takes no tools" in message for message in said)
    assert events[-1].fields["output"]["answer"] == "I do not know."


async def test_tools_and_prompt_may_depend_on_the_input() -> None:
    place = Place()

    async def tools(state: Any, context: Any) -> list[BaseTool]:
        return [place.tool()] if "room" in state["messages"][0].text else []

    def prompt(state: Any, context: Any) -> list[Any]:
        return [HumanMessage("In short:"), *state["messages"]]

    workflow = Workflow(create_tool_loop(tools=tools, prompt=prompt, role="clerk"), name="clerk")
    async with model_server(lambda body: "With tools." if body.get("tools") else "Without.") as server:
        answers = [
            (await run(workflow, {"messages": text}, model={"clerk": server.chat_model()})).output["answer"] for text in ("room", "?")
        ]
    assert answers == ["With tools.", "Without."]
    assert server.requests[0].body["messages"][0]["content"] == "In short:"


async def test_it_is_a_node_of_any_graph() -> None:
    from langgraph.graph import START, MessagesState, StateGraph

    place = Place()
    async with model_server([looking("Ada"), "In room 12."]) as server:
        builder = StateGraph(MessagesState)
        builder.add_node("assistant", create_tool_loop(server.chat_model(), tools=[place.tool()]))
        builder.add_edge(START, "assistant")
        output = await builder.compile().ainvoke({"messages": [HumanMessage("Where?")]})
    assert [type(message) for message in output["messages"]] == [HumanMessage, AIMessage, ToolMessage, AIMessage]
