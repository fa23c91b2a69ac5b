import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypedDict

import pytest
from graphs_made import Graph, State, builder, finish, start, work
from langchain.agents import create_agent
from langchain.agents.middleware import TodoListMiddleware
from langchain_core.language_models import FakeListChatModel
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, Send, interrupt
from pydantic import BaseModel, Field

from orchestrator.checks import check_graph

WORK = "work"
DEBUG = False


def narrow(output: Any) -> CompiledStateGraph[Any, Any, Any, Any]:
    return StateGraph(State, output_schema=output).add_node("work", work).add_edge(START, "work").compile()


class Found(TypedDict):
    found: list[str]


def each_branch(state: State) -> list[Send]:
    return [Send("branch", {"items": [item]}) for item in state["items"]]


# What works, and must not be complained about


def pydantic_state() -> Graph:
    class Model(BaseModel):
        question: str
        answer: str = ""
        steps: Annotated[list[str], operator.add] = Field(default_factory=list)

    async def answer(state: Model) -> dict[str, Any]:
        return {"answer": state.question, "steps": ["answer"]}

    return builder(answer, state=Model).add_edge("answer", END).compile()


def dataclass_state() -> Graph:
    @dataclass
    class Data:
        question: str
        steps: Annotated[list[str], operator.add] = field(default_factory=list)

    async def answer(state: Data) -> Data:
        return Data(question=state.question, steps=["answer"])

    return builder(answer, state=Data).add_edge("answer", END).compile()


def messages_state() -> Graph:
    async def chat(state: MessagesState) -> dict[str, Any]:
        return {"messages": [("ai", "hello")]}

    return builder(chat, state=MessagesState).compile()


def private_state() -> Graph:
    class Private(TypedDict):
        draft: str

    async def draft(state: State) -> dict[str, Any]:
        return {"draft": "x"}

    async def polish(state: Private) -> dict[str, Any]:
        return {"result": state["draft"]}

    return builder(draft, polish).add_edge("draft", "polish").compile()


def react_agent() -> Graph:
    @tool
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    class Model(FakeListChatModel):
        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
            return self

    agent: Graph = create_agent(Model(responses=["x"]), [add])
    return agent


def agent_with_middleware_and_a_format() -> Graph:
    class Model(FakeListChatModel):
        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
            return self

    class Answer(BaseModel):
        number: int

    agent: Graph = create_agent(Model(responses=["x"]), [], middleware=[TodoListMiddleware()], response_format=Answer)
    return agent


def chat_with_tools() -> Graph:
    async def chat(state: MessagesState) -> dict[str, Any]:
        return {"messages": [("ai", "hello")]}

    graph = builder(chat, state=MessagesState).add_node("tools", ToolNode([]))
    return graph.add_conditional_edges("chat", tools_condition).add_edge("tools", "chat").compile()


def agent_as_node() -> Graph:
    agent: Any = react_agent()
    return StateGraph(MessagesState).add_node("agent", agent).add_edge(START, "agent").compile()


def command_routing() -> Graph:
    async def decide(state: State) -> Command[Literal["work", "finish"]]:
        return Command(goto="work" if state["items"] else "finish", update={"result": "x"})

    return builder(decide, work, finish).compile()


def computed_command() -> Graph:
    async def decide(state: State) -> Command[Any]:
        return Command(goto=state["result"])

    return builder(decide, work, finish).compile()


def returned_by_a_function() -> Graph:
    def next_step(state: State) -> Command[Any]:
        return Command(goto="work", update={"result": "x"})

    async def decide(state: State):  # type: ignore[no-untyped-def]  # as people write nodes
        return next_step(state)

    return builder(decide, work, finish).compile()


def boolean_path_map() -> Graph:
    def has_items(state: State) -> bool:
        return bool(state["items"])

    return builder(start, work, finish).add_conditional_edges("start", has_items, {True: "work", False: "finish"}).compile()


def router_without_path_map() -> Graph:
    def route(state: State) -> str:
        return state["result"]

    return builder(start, work, finish).add_conditional_edges("start", route).compile()


def router_by_constant() -> Graph:
    async def route(state: State) -> str:
        target = END if state["items"] else WORK
        return target  # noqa: RET504 - this way of writing it is what is tested

    return builder(start, work).add_conditional_edges("start", route).compile()


def same_name_in_a_comprehension() -> Graph:
    def route(state: State) -> list[Send]:
        return [Send(WORK, {}) for WORK in state["items"]]

    return builder(start, finish).add_conditional_edges("start", route, ["finish"]).compile()


def fan_out_and_join() -> Graph:
    def each(state: State) -> list[Send] | str:
        return [Send(WORK, {"items": [item]}) for item in state["items"]] or "finish"

    graph = builder(start, work).add_node("finish", finish, defer=True)
    return graph.add_conditional_edges("start", each).add_edge("work", "finish").add_edge("finish", END).compile()


def one_send() -> Graph:
    def once(state: State) -> list[Send]:
        return [Send("finish", {"items": state["items"]})]

    return builder(start, finish).add_conditional_edges("start", once).compile()


def joined_by_a_list() -> Graph:
    graph = builder(start, work, finish)
    return graph.add_edge("start", "work").add_edge(["start", "work"], "finish").compile()


def loop_with_a_condition() -> Graph:
    def enough(state: State) -> str:
        return END if len(state["found"]) > 2 else "start"

    return builder(start, work).add_edge("start", "work").add_conditional_edges("work", enough).compile()


def loop_with_a_person() -> Graph:
    async def ask(state: State) -> dict[str, Any]:
        return {"result": interrupt("next?")}

    return builder(ask, work).add_edge("ask", "work").add_edge("work", "ask").compile()


def loop_that_raises() -> Graph:
    def stop(state: State) -> None:
        raise RuntimeError("enough")

    async def watch(state: State) -> dict[str, Any]:
        stop(state)
        return {}

    return builder(watch, work).add_edge("watch", "work").add_edge("work", "watch").compile()


def handoff_to_the_parent() -> Graph:
    async def hand(state: State) -> Command[Any]:
        return Command(graph=Command.PARENT, goto="finish", update={"other": 1})

    return StateGraph(State).add_node("inner", builder(hand).compile()).add_node("finish", finish).add_edge(START, "inner").compile()


def error_handler() -> Graph:
    async def rescue(state: State) -> dict[str, Any]:
        return {"result": "rescued"}

    return StateGraph(State).add_node("work", work, error_handler=rescue).add_edge(START, "work").compile()


def default_error_handler() -> Graph:
    async def rescue(state: State) -> dict[str, Any]:
        return {"result": "rescued"}

    graph = builder(start).set_node_defaults(error_handler=rescue)
    graph.compile()
    return graph


def runnables_as_nodes() -> Graph:
    chain = RunnableLambda(start) | RunnableLambda(work)
    return StateGraph(State).add_node("chain", chain).add_edge(START, "chain").compile()


def without_source() -> Graph:
    names: dict[str, Any] = {}
    exec("async def hidden(state):\n    return {'anything': 1}\ndef route(state):\n    return 'anywhere'", names)  # noqa: S102
    return builder(names["hidden"], work).add_conditional_edges("hidden", names["route"]).compile()


def built_up_update() -> Graph:
    async def write(state: State) -> dict[str, Any]:
        update = {"result": "x", "scratch": 1}
        update.pop("scratch")
        return update

    async def copy(state: State) -> dict[str, Any]:
        return {**state, "result": "x"}

    return builder(write, copy).add_edge("write", "copy").compile()


def nested_functions() -> Graph:
    async def write(state: State) -> dict[str, Any]:
        def other() -> dict[str, Any]:
            return {"unrelated": Send("nowhere", {})}

        return {"result": str(other())}

    return builder(write).compile()


def methods_and_objects() -> Graph:
    class Node:
        async def run(self, state: State) -> dict[str, Any]:
            return {"result": "x"}

        async def __call__(self, state: State) -> dict[str, Any]:
            return {"result": "y"}

    graph = StateGraph(State).add_node("run", Node().run).add_node("call", Node())
    return graph.add_edge(START, "run").add_edge("run", "call").compile()


def narrow_subgraph_fan_out() -> Graph:
    graph = StateGraph(State).add_node("start", start).add_node("branch", narrow(Found)).add_edge(START, "start")
    return graph.add_conditional_edges("start", each_branch, ["branch"]).compile()


def switched_off() -> Graph:
    async def work_without_debug(state: State) -> dict[str, Any]:
        if DEBUG:
            return {"debug": 1}
        return {"result": "x"}

    return builder(work_without_debug).add_conditional_edges("work_without_debug", route_to_debug).compile()


def route_to_debug(state: State) -> str:
    if not DEBUG:
        return END
    return "debug"


def from_a_factory() -> Graph:
    def make(tools: bool) -> Callable[[State], str]:
        def route(state: State) -> str:
            return "tools" if tools else "finish"

        return route

    return builder(start, finish).add_conditional_edges("start", make(tools=False)).compile()


def conditional_start() -> Graph:
    graph = StateGraph(State).add_node("work", work).add_node("finish", finish)
    return graph.add_conditional_edges(START, lambda state: "work" if state["items"] else "finish").compile()


def root_state() -> Graph:
    async def grow(state: list[str]) -> list[str]:
        return ["x"]

    return builder(grow, state=Annotated[list[str], operator.add]).compile()


GOOD = [
    pydantic_state,
    dataclass_state,
    messages_state,
    private_state,
    react_agent,
    agent_with_middleware_and_a_format,
    chat_with_tools,
    agent_as_node,
    command_routing,
    computed_command,
    returned_by_a_function,
    boolean_path_map,
    router_without_path_map,
    router_by_constant,
    same_name_in_a_comprehension,
    fan_out_and_join,
    one_send,
    joined_by_a_list,
    loop_with_a_condition,
    loop_with_a_person,
    loop_that_raises,
    handoff_to_the_parent,
    error_handler,
    default_error_handler,
    runnables_as_nodes,
    without_source,
    built_up_update,
    nested_functions,
    methods_and_objects,
    narrow_subgraph_fan_out,
    switched_off,
    from_a_factory,
    conditional_start,
    root_state,
]


@pytest.mark.parametrize("graph", GOOD, ids=lambda graph: graph.__name__)
def test_what_works_passes_without_a_word(graph: Callable[[], Graph]) -> None:
    assert check_graph(graph()) == []
