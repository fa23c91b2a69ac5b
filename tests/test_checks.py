import asyncio
import logging
from collections.abc import Callable
from typing import Any, Literal, TypedDict

import pytest
from graphs_made import Graph, State, builder, finish, start, work
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, Send

from orchestrator.checks import check_graph, needed_keys, unknown_targets
from orchestrator.errors import GraphError

WORK = "work"
DEBUG = False


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


def unknown_key_set_one_by_one() -> Graph:
    async def write(state: State) -> dict[str, Any]:
        update = {"result": "x"}
        update["results"] = "x"
        return update

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
    (compiled_router_to_unknown, ["the router after 'start' goes to 'wrok', which is no node. Did you mean 'work'?"]),
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
    (unknown_key_set_one_by_one, ["node 'write' writes 'results', which is no key of the state. Did you mean 'result'?"]),
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
        "Correct the graph in its module",
    ]


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
