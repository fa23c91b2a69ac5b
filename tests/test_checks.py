import asyncio
import logging
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import FakeListChatModel
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, Send, interrupt
from pydantic import BaseModel, Field

from orchestrator.checks import check_graph, needed_keys, unknown_targets
from orchestrator.errors import GraphError

Graph = StateGraph[Any, Any, Any, Any] | CompiledStateGraph[Any, Any, Any, Any]
WORK = "work"
DEBUG = False


class State(TypedDict):
    items: list[str]
    result: str
    found: Annotated[list[str], operator.add]


async def start(state: State) -> dict[str, Any]:
    return {"items": state["items"]}


async def work(state: State) -> dict[str, Any]:
    return {"found": ["x"]}


async def finish(state: State) -> dict[str, Any]:
    return {"result": "done"}


def builder(*nodes: Callable[..., Any], state: Any = State) -> StateGraph[Any, Any, Any, Any]:
    graph = StateGraph(state)
    for node in nodes:
        graph.add_node(node.__name__, node)
    graph.add_edge(START, nodes[0].__name__)
    return graph


def problems(graph: Graph) -> list[str]:
    with pytest.raises(GraphError) as caught:
        check_graph(graph, "w")
    return caught.value.problems


# What cannot work, and what is said of it


def unknown_edge() -> Graph:
    return builder(start).add_edge("start", "wrok")


def unknown_edge_start() -> Graph:
    return builder(start, work).add_edge("start", "work").add_edge("strat", "work")


def router_to_unknown() -> Graph:
    def route(state: State) -> str:
        return "work" if state["items"] else "finnish"

    return builder(start, work, finish).add_conditional_edges("start", route)


def compiled_router_to_unknown() -> Graph:
    return builder(start, work).add_conditional_edges("start", lambda state: "wrok" if state["items"] else END).compile()


def send_to_unknown() -> Graph:
    def each(state: State) -> list[Send]:
        return [Send("wrok", {"item": item}) for item in state["items"]]

    return builder(start, work).add_conditional_edges("start", each).compile()


def send_past_the_path_map() -> Graph:
    def each(state: State) -> list[Send]:
        sends = []
        for item in state["items"]:
            sends.append(Send("wrok", {"item": item}))  # noqa: PERF401 - this way of writing it is what is tested
        return sends

    return builder(start, work).add_conditional_edges("start", each, ["work"]).compile()


def literal_to_unknown() -> Graph:
    def route(state: State) -> Literal["work", "wrok"]:
        return "work"

    return builder(start, work).add_conditional_edges("start", route)


def path_map_lacks_an_answer() -> Graph:
    def route(state: State) -> str:
        return "yes" if state["items"] else "maybe"

    return builder(start, work).add_conditional_edges("start", route, {"yes": "work", "no": END}).compile()


def command_to_unknown() -> Graph:
    async def decide(state: State) -> Command[Any]:
        return Command(update={"result": "x"}, goto="wrok")

    return builder(decide, work).compile()


def annotated_command_to_unknown() -> Graph:
    async def decide(state: State) -> Command[Literal["wrok"]]:
        return Command(goto="wrok")

    return builder(decide, work)


def unreachable_node() -> Graph:
    return builder(start, work, finish).add_edge("start", "work")


def unreachable_pair() -> Graph:
    return builder(start, work, finish).add_edge("work", "finish").add_edge("finish", END).compile()


def plain_cycle() -> Graph:
    return builder(start, work).add_edge("start", "work").add_edge("work", "start").compile()


def cycle_with_a_way_out_that_does_not_count() -> Graph:
    graph = builder(start, work, finish).add_edge("start", "work").add_edge("work", "start")
    return graph.add_edge("work", "finish").add_edge("finish", END)


def routed_cycle() -> Graph:
    def route(state: State) -> Literal["start", "work"]:
        return "start"

    return builder(start, work).add_edge("start", "work").add_conditional_edges("work", route).compile()


def unknown_key() -> Graph:
    async def write(state: State) -> dict[str, Any]:
        return {"results": "x"}

    return builder(write).compile()


def unknown_key_in_a_command() -> Graph:
    async def write(state: State) -> Command[Literal["finish"]]:
        return Command(goto="finish", update={"results": "x"})

    return builder(write, finish).compile()


def fan_out_without_reducer() -> Graph:
    async def collect(state: State) -> dict[str, Any]:
        return {"items": ["x"], "found": ["x"]}

    def each(state: State) -> list[Send]:
        return [Send("collect", {"items": [item]}) for item in state["items"]]

    return builder(start, collect).add_conditional_edges("start", each).compile()


def narrow(output: Any) -> CompiledStateGraph[Any, Any, Any, Any]:
    return StateGraph(State, output_schema=output).add_node("work", work).add_edge(START, "work").compile()


class Result(TypedDict):
    result: str


class Found(TypedDict):
    found: list[str]


def subgraph_echoes_its_input() -> Graph:
    graph = (
        StateGraph(State).add_node("start", start).add_node("branch", StateGraph(State).add_node(work).add_edge(START, "work").compile())
    )
    each: Callable[[State], list[Send]] = lambda state: [Send("branch", {"items": [item]}) for item in state["items"]]  # noqa: E731
    return graph.add_edge(START, "start").add_conditional_edges("start", each, ["branch"]).compile()


def subgraph_declares_a_plain_key() -> Graph:
    graph = StateGraph(State).add_node("start", start).add_node("branch", narrow(Result)).add_edge(START, "start")
    return graph.add_conditional_edges("start", each_branch, ["branch"]).compile()


def each_branch(state: State) -> list[Send]:
    return [Send("branch", {"items": [item]}) for item in state["items"]]


def problem_in_a_subgraph() -> Graph:
    async def write(state: State) -> dict[str, Any]:
        return {"results": "x"}

    return StateGraph(State).add_node("inner", builder(write).compile()).add_edge(START, "inner").compile()


def no_entry() -> Graph:
    return StateGraph(State).add_node("start", start)


BAD: list[tuple[Callable[[], Graph], list[str]]] = [
    (unknown_edge, ["the edge 'start' -> 'wrok' names no node: there is no 'wrok'"]),
    (unknown_edge_start, ["the edge 'strat' -> 'work' names no node: there is no 'strat'. Did you mean 'start'?"]),
    (router_to_unknown, ["router 'route' goes to 'finnish', which is no node. Did you mean 'finish'?"]),
    (compiled_router_to_unknown, ["router 'condition' goes to 'wrok', which is no node. Did you mean 'work'?"]),
    (send_to_unknown, ["router 'each' goes to 'wrok', which is no node. Did you mean 'work'?"]),
    (send_past_the_path_map, ["router 'each' goes to 'wrok', which is no node. Did you mean 'work'?"]),
    (literal_to_unknown, ["router 'route' goes to 'wrok', which is no node. Did you mean 'work'?"]),
    (path_map_lacks_an_answer, ["router 'route' returns 'maybe', which is not among its declared targets: 'yes', 'no'"]),
    (command_to_unknown, ["node 'decide' goes to 'wrok', which is no node. Did you mean 'work'?"]),
    (annotated_command_to_unknown, ["node 'decide' goes to 'wrok', which is no node. Did you mean 'work'?"]),
    (unreachable_node, ["node 'finish' cannot be reached: no edge, router or Send leads to it"]),
    (
        unreachable_pair,
        [
            "node 'work' cannot be reached: no edge, router or Send leads to it",
            "node 'finish' cannot be reached: no edge, router or Send leads to it",
        ],
    ),
    (plain_cycle, ["the graph can never end: from 'start', 'work' no way leads to END"]),
    (cycle_with_a_way_out_that_does_not_count, ["the graph can never end: from 'start', 'work' no way leads to END"]),
    (routed_cycle, ["the graph can never end: from 'start', 'work' no way leads to END"]),
    (unknown_key, ["node 'write' writes 'results', which is no key of the state. Did you mean 'result'?"]),
    (unknown_key_in_a_command, ["node 'write' writes 'results', which is no key of the state. Did you mean 'result'?"]),
    (
        fan_out_without_reducer,
        ["every branch of 'collect' writes 'items', which has no reducer: annotate it, as in Annotated[list, operator.add]"],
    ),
    (
        subgraph_echoes_its_input,
        ["every branch of 'branch' writes 'items', which has no reducer: annotate it, as in Annotated[list, operator.add]"],
    ),
    (
        subgraph_declares_a_plain_key,
        ["every branch of 'branch' writes 'result', which has no reducer: annotate it, as in Annotated[list, operator.add]"],
    ),
    (problem_in_a_subgraph, ["inner: node 'write' writes 'results', which is no key of the state. Did you mean 'result'?"]),
    (no_entry, ["Graph must have an entrypoint: add at least one edge from START to another node"]),
]


@pytest.mark.parametrize(("graph", "expected"), BAD, ids=lambda value: getattr(value, "__name__", ""))
def test_what_cannot_work_is_named(graph: Callable[[], Graph], expected: list[str]) -> None:
    assert problems(graph()) == expected


def test_every_problem_is_told_at_once() -> None:
    async def write(state: State) -> dict[str, Any]:
        return {"results": "x", "item": 1}

    with pytest.raises(GraphError) as caught:
        check_graph(builder(write, work).add_edge("write", "wrok"), "notes")
    assert caught.value.lines() == [
        "The graph of workflow 'notes' fails its checks",
        "the edge 'write' -> 'wrok' names no node: there is no 'wrok'. Did you mean 'work'?",
        "node 'write' writes 'item', which is no key of the state. Did you mean 'items'?",
        "node 'write' writes 'results', which is no key of the state. Did you mean 'result'?",
        "Correct the names in the module",
    ]


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


def test_a_synchronous_node_is_accepted_and_said() -> None:
    def slow(state: State) -> dict[str, Any]:
        return {"result": "x"}

    def slower(state: State) -> dict[str, Any]:
        return {"result": "y"}

    inner = builder(slow).compile()
    graph = StateGraph(State).add_node("inner", inner).add_node("slow", slow).add_node("slower", slower)
    graph.add_edge(START, "inner").add_edge("inner", "slow").add_edge("slow", "slower")
    assert check_graph(graph.compile()) == [
        "nodes 'slow', 'slower' are synchronous: they run in threads and cannot be cancelled",
        "inner: node 'slow' is synchronous: it runs in a thread and cannot be cancelled",
    ]


def test_a_plain_graph_needs_what_its_nodes_do_not_write() -> None:
    graph = builder(start, finish).add_edge("start", "finish")
    assert needed_keys(graph) == {"items", "found"}  # `found` is written by nobody here; `items` is read before it is written


def test_a_node_of_unknown_returns_leaves_only_what_is_read_at_first() -> None:
    async def anything(state: State) -> Any:
        result = state["result"] if "result" in state else ""  # noqa: SIM401 - this way of writing it is what is tested
        if result:
            return None
        return await start(state) if state["items"] else None

    assert needed_keys(builder(anything)) == {"items"}


# The net under a run


async def run_to(name: str) -> tuple[dict[str, Any], list[str]]:
    async def route(state: State) -> list[Any]:
        await asyncio.sleep(0)
        return [name, Send(f"{name}-sent", {})]

    graph = builder(start).add_conditional_edges("start", route).compile()
    with unknown_targets() as names:
        return await graph.ainvoke({"items": []}), names


async def test_a_run_to_nowhere_is_seen_by_its_own_net_only(caplog: pytest.LogCaptureFixture) -> None:
    outcomes = await asyncio.gather(*(run_to(f"nowhere{number}") for number in range(3)))
    assert outcomes == [({"items": [], "found": []}, [f"nowhere{number}", f"nowhere{number}-sent"]) for number in range(3)]
    assert caplog.messages == []


async def test_a_subgraph_to_nowhere_is_seen_too() -> None:
    inner = builder(start).add_conditional_edges("start", lambda state: state["items"][0]).compile()

    async def call(state: State) -> dict[str, Any]:
        return {"result": str(await inner.ainvoke(state))}

    graph = builder(call).compile(checkpointer=InMemorySaver())
    with unknown_targets() as names:
        await graph.ainvoke({"items": ["nowhere"]}, {"configurable": {"thread_id": "1"}})
    assert names == ["nowhere"]


def test_without_a_net_the_warning_stays_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with unknown_targets():
        pass
    logging.getLogger("langgraph").warning("Ignoring unknown node name x in pending sends")
    assert caplog.messages == ["Ignoring unknown node name x in pending sends"]
