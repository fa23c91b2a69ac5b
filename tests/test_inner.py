"""A graph that is taken step by step comes to what LangGraph makes of it: each is run both ways, in a node of another graph."""

import asyncio
import operator
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import tool
from langgraph.cache.memory import InMemoryCache
from langgraph.channels import EphemeralValue, Topic, UntrackedValue
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_config
from langgraph.errors import GraphRecursionError, InvalidUpdateError
from langgraph.func import task
from langgraph.graph import END, START, StateGraph, add_messages
from langgraph.graph.state import CompiledStateGraph
from langgraph.managed import RemainingSteps
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.runtime import Runtime
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langgraph.types import CachePolicy, Command, RetryPolicy, Send, StreamWriter
from pydantic import BaseModel, ValidationError
from typing_extensions import TypedDict

from orchestrator.graphs.inner import inner_of
from orchestrator.spans import Tracer

Graph = CompiledStateGraph[Any, Any, Any, Any]
Node = Callable[..., Any]
LIMIT = 6  # supersteps that a run may take
BOTH: Sequence[tuple[Any, str]] = [(START, "a"), (START, "b")]


class Logged(TypedDict):
    log: Annotated[list[Any], operator.add]


class State(Logged, total=False):
    n: int


class Case(NamedTuple):
    """A graph, what it is given, what it comes to (the type of what it raises), and what its nodes saw."""

    graph: Graph
    given: Any
    came: Any
    saw: Sequence[Any] = ()


def compiled(
    nodes: Mapping[str, Any],
    edges: Sequence[tuple[Any, str]] | None = None,
    routes: Sequence[tuple[Any, ...]] = (),
    state: Any = State,
    **schemas: Any,
) -> Graph:
    """A graph whose nodes have metadata of their own; without edges they are a chain."""
    graph = StateGraph(state, **schemas)
    for name, node in nodes.items():
        graph.add_node(name, node, metadata={"own": f"of {name}"})
    for start, end in pairwise([START, *nodes]) if edges is None else edges:
        graph.add_edge(start, end)
    for start, *route in routes:
        graph.add_conditional_edges(start, *route)
    return graph.compile(checkpointer=False)


def adds(word: Any, seconds: float = 0.0) -> Node:
    """A node that adds a word to the log."""

    async def node(state: Any) -> dict[str, Any]:
        await asyncio.sleep(seconds)
        return {"log": [word]}

    return node


def looks(saw: list[Any], answer: Any = None) -> Node:
    """A node, or a router, that keeps what it is given, and gives `answer`."""

    async def node(state: Any) -> Any:
        saw.append(dict(state) if isinstance(state, dict) else state)
        return answer

    return node


async def counts(state: State) -> dict[str, Any]:
    return {"n": state["n"] + 1}


def place() -> tuple[str, list[str]]:
    """The metadata of the node that calls this, and the nodes around, the outermost first."""
    known = get_config()["metadata"]
    return known["own"], [part.partition(":")[0] for part in known["langgraph_checkpoint_ns"].split("|")]


# --- the table: each function gives cases by their names, and their nodes put what they see into `saw`


def routes(saw: list[Any]) -> dict[str, Case]:
    def again(state: State) -> str:
        saw.append(state["n"])
        return "counts" if state["n"] < 3 else END

    three = {"a": adds("a"), "b": adds("b"), "c": adds("c")}
    ways = (START, lambda state: state["n"] % 2 == 1, {True: "a", False: "b"})
    empty = {"n": 1, "log": []}
    return {
        "a chain": Case(compiled({"counts": counts, **three}), {"n": 1, "log": [0], "odd": 1}, {"n": 2, "log": [0, "a", "b", "c"]}),
        "a node that writes nothing": Case(compiled({"a": looks(saw), "b": looks(saw)}), {"n": 1}, empty, [empty] * 2),
        "a loop whose router reads what its node has just written": Case(
            compiled({"counts": counts}, routes=[("counts", again)]), {"n": 0}, {"n": 3, "log": []}, [1, 2, 3]
        ),
        "a router at the start": Case(compiled(three, (), [ways]), {"n": 3}, {"n": 3, "log": ["a"]}),
        "an async router to several nodes and the end": Case(
            compiled(three, [(START, "a")], [("a", looks(saw, ["c", "b", END]))]), {}, {"log": ["a", "b", "c"]}, [{"log": ["a"]}]
        ),
    }


def parallel(saw: list[Any]) -> dict[str, Case]:
    names, order = ("zero", "one", "b", "B", "a10", "a2"), ["B", "a10", "a2", "b", "one", "zero"]
    several = {name: adds(name, 0.001 * number) for number, name in enumerate(names)}  # the last of the names is the first to end
    join = looks(saw, {"log": ["join"]})
    joined = [edge for name in names for edge in ((START, name), (name, "join"))]
    uneven = {"quick": adds("quick"), "long": adds("long"), "longer": adds("longer"), "join": join}
    waiting = [(START, "quick"), (START, "long"), ("long", "longer"), (["quick", "longer"], "join")]
    before = ["long", "quick", "longer"]
    round_again = [("counts", lambda state: ["a", "b"] if state["n"] < 2 else END)]
    twice = compiled({"a": adds("a"), "b": adds("b"), "counts": counts}, [*BOTH, (["a", "b"], "counts")], round_again)
    return {
        "parallel nodes, whose writes are in the order of their names, and a join": Case(
            compiled({**several, "join": join}, joined), {"log": [0]}, {"log": [0, *order, "join"]}, [{"log": [0, *order]}]
        ),
        "an edge that waits twice": Case(twice, {"n": 0}, {"n": 2, "log": ["a", "b", "a", "b"]}),
        "an edge that waits for a list of nodes": Case(compiled(uneven, waiting), {}, {"log": [*before, "join"]}, [{"log": before}]),
    }


def sends(saw: list[Any]) -> dict[str, Case]:
    async def work(sent: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0.001 * (12 - sent["at"]))  # the first one is the last to end
        return {"log": [sent["at"]]}

    def shared_out(state: State) -> list[Any]:
        return ["beside", *(Send("work", {"at": at}) for at in range(12))]

    def begun_by(answer: Any, *others: str) -> Graph:
        return compiled({"begin": looks([], answer), "work": work, **{name: adds(name) for name in others}}, [(START, "begin")])

    mapped = {"begin": adds("begin"), "work": work, "beside": adds("beside"), "reduce": looks(saw, {"n": 12})}
    log = ["begin", "beside", *range(12)]
    mapping = compiled(mapped, [(START, "begin"), ("work", "reduce")], [("begin", shared_out, ["work", "beside"])])
    goes = Command(update={"n": 5, "log": ["x"]}, goto="b")
    sending = Command(update={"n": 2}, goto=[Send("work", {"at": 1}), "after", Send("work", {"at": 0})])
    listed = [Command(update={"n": 2}, goto="b"), Command(update={"log": ["x"]}, goto=["c"]), {"log": ["y"]}]
    return {
        "a map and reduce by Send": Case(mapping, {}, {"n": 12, "log": log}, [{"log": log}]),
        "a command that updates and goes on": Case(begun_by(goes, "a", "b"), {"n": 1}, {"n": 5, "log": ["x", "b"]}),
        "a command that sends": Case(begun_by(sending, "after"), {}, {"n": 2, "log": ["after", 1, 0]}),
        "a command that ends the graph": Case(begun_by(Command(goto=END), "a"), {"n": 1}, {"n": 1, "log": []}),
        "a list of commands and updates": Case(begun_by(listed, "b", "c"), {}, {"n": 2, "log": ["x", "y", "b", "c"]}),
    }


class Model(BaseModel):
    n: int
    word: str = "default"
    log: Annotated[list[str], operator.add] = []


@dataclass
class Plain:
    n: int
    word: str = "default"
    log: Annotated[list[str], operator.add] = field(default_factory=list)


class Asked(TypedDict):
    question: str


class Answered(TypedDict):
    answer: str


class Whole(Asked, Answered, total=False):
    notes: str


def states(saw: list[Any]) -> dict[str, Case]:
    async def hide(state: Asked) -> Answered:
        return {"answer": state["question"][::-1]}

    async def find(state: Answered) -> Asked:
        saw.append(dict(state))
        return {"question": state["answer"] + "!"}

    answers = looks(saw, {"answer": "yes", "notes": "hidden"})
    plain = {"a": looks(saw, {"n": 2, "log": ["a"]}), "b": looks(saw, Plain(n=3, word="b", log=["b"]))}
    modelled = {"a": looks(saw, {"n": 2, "log": ["a"]}), "b": looks(saw, Model(n=3, log=["b"]))}
    return {
        "a pydantic state": Case(
            compiled(modelled, routes=[("b", looks(saw, END))], state=Model),
            {"n": "1"},
            {"n": 3, "word": "default", "log": ["a", "b"]},
            [Model(n=1), Model(n=2, log=["a"]), Model(n=3, log=["a", "b"])],
        ),
        "a dataclass state": Case(
            compiled(plain, state=Plain), Plain(n=1), {"n": 3, "word": "b", "log": ["a", "b"]}, [Plain(n=1), Plain(n=2, log=["a"])]
        ),
        "schemas narrower than the state": Case(
            compiled({"a": answers, "b": looks(saw)}, state=Whole, input_schema=Asked, output_schema=Answered),
            {"question": "why?", "notes": "not asked for", "answer": "not asked for"},
            {"answer": "yes"},
            [{"question": "why?"}, {"question": "why?", "answer": "yes", "notes": "hidden"}],
        ),
        "keys that only nodes know": Case(
            compiled({"hide": hide, "find": find}, state=Asked), {"question": "abc"}, {"question": "cba!"}, [{"answer": "cba"}]
        ),
        "a state that is one value": Case(
            compiled({"a": looks(saw, [1]), "b": looks(saw, [2])}, state=Annotated[list[int], operator.add]), [0], [0, 1, 2], [[0], [0, 1]]
        ),
    }


class Passing(TypedDict, total=False):
    topic: Annotated[list[str], Topic(str)]
    once: Annotated[str, EphemeralValue(str)]
    kept: Annotated[str, UntrackedValue(str)]
    n: int


class Conversation(Answered, total=False):
    messages: Annotated[list[AnyMessage], add_messages]


def channels(saw: list[Any]) -> dict[str, Case]:
    @tool
    def double(n: int) -> int:
        """Double a number."""
        return 2 * n

    async def model(state: Conversation) -> dict[str, Any]:
        saw.append([(message.type, message.content) for message in state["messages"]])
        calls = [{"name": "double", "args": {"n": n}, "id": f"call {n}"} for n in (1, 2)] if len(saw) == 1 else []
        return {"messages": [AIMessage(f"turn {len(saw)}", id=f"turn {len(saw)}", tool_calls=calls)]}

    async def last(state: Conversation) -> dict[str, Any]:
        return {"answer": state["messages"][-1].content}

    writes = looks(saw, {"topic": ["x", "y"], "once": "o", "kept": "k"})
    replaced = [AIMessage("c", id="2"), HumanMessage("b", id="1")]
    looping = [("model", tools_condition, {"tools": "tools", END: "last"})]
    agent = {"model": model, "tools": ToolNode([double]), "last": last}
    return {
        "channels whose values pass": Case(
            compiled({"a": writes, "b": looks(saw, {"n": 1}), "c": looks(saw, {"n": 2})}, state=Passing),
            {"n": 0},
            {"kept": "k", "n": 2},
            [{"n": 0}, {"topic": ["x", "y"], "once": "o", "kept": "k", "n": 0}, {"kept": "k", "n": 1}],
        ),
        "messages that are added and replaced by their ids": Case(
            compiled({"a": looks([], {"messages": replaced})}, state=Conversation),
            {"messages": [HumanMessage("a", id="1")]},
            {"messages": replaced[::-1]},
        ),
        "an agent with a tool node": Case(
            compiled(agent, [(START, "model"), ("tools", "model")], looping, Conversation, output_schema=Answered),
            {"messages": ["hi"]},
            {"answer": "turn 2"},
            [[("human", "hi")], [("human", "hi"), ("ai", "turn 1"), ("tool", "2"), ("tool", "4")]],
        ),
    }


def supplied(saw: list[Any]) -> dict[str, Case]:
    def blocking(state: State) -> dict[str, Any]:
        saw.append(place())
        return {"n": state["n"] + 1}

    async def takes(state: State, config: RunnableConfig, runtime: Runtime[Any], *, store: BaseStore, writer: StreamWriter) -> None:
        await store.aput(("kept",), "key", {"value": state["n"]})
        found = await store.aget(("kept",), "key")
        saw.append((runtime.context, runtime.store is store, config["metadata"]["own"], callable(writer), found and found.value))

    async def told(state: State) -> None:
        known = get_config()["metadata"]
        saw.append([known[name] for name in ("langgraph_node", "langgraph_step", "langgraph_triggers", "langgraph_path", "outer")])

    def of(name: str, step: int) -> list[Any]:
        return [name, step, (f"branch:to:{name}",), ("__pregel_pull", name), "told"]

    one = {"n": 1, "log": []}
    return {
        "a sync node": Case(compiled({"a": blocking}), {"n": 1}, {"n": 2, "log": []}, [("of a", ["outer", "a"])]),
        "a node that takes config, runtime, store and writer": Case(
            compiled({"a": takes}), {"n": 1}, one, [({"who": "outer"}, True, "of a", True, {"value": 1})]
        ),
        "the metadata of nodes": Case(compiled({"a": told, "b": told}), {"n": 1}, one, [of("a", 1), of("b", 2)]),
    }


def called(saw: list[Any]) -> dict[str, Case]:
    def plus(n: int, config: RunnableConfig) -> int:
        saw.append((config["metadata"]["langgraph_node"], config["metadata"]["own"]))
        return n + 1

    async def calls(state: State) -> dict[str, Any]:
        return {"n": await (RunnableLambda(plus) | RunnableLambda(plus)).ainvoke(state["n"])}

    @task
    async def double(n: int) -> int:
        return 2 * n

    async def doubles(state: State) -> dict[str, Any]:
        return {"log": [await double(n) for n in range(3)]}

    async def deep(state: State) -> dict[str, Any]:
        saw.append(place())
        return {"n": 99, "log": ["deep"]}

    piped = RunnableLambda(lambda state: state["n"]) | RunnableLambda(plus) | RunnableLambda(lambda n: {"n": n})
    # Each of the graphs around adds to its log what the one inside was given.
    graph = compiled({"middle": compiled({"inner": compiled({"deep": deep}, output_schema=Logged), "counts": counts})})
    return {
        "runnables of LangChain, in a node and as one": Case(
            compiled({"calls": calls, "piped": piped}),
            {"n": 0},
            {"n": 3, "log": []},
            [("calls", "of calls"), ("calls", "of calls"), ("piped", "of piped")],
        ),
        "a node that calls tasks": Case(compiled({"doubles": doubles}), {}, {"log": [0, 2, 4]}),
        "graphs in graphs": Case(
            graph, {"n": 1, "log": ["x"]}, {"n": 2, "log": ["x", "x", "x", "deep"]}, [("of deep", ["outer", "middle", "inner", "deep"])]
        ),
    }


def failures(saw: list[Any]) -> dict[str, Case]:
    async def sleeps(state: State) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            saw.append("cancelled")
            raise

    async def fails(state: State) -> None:
        await asyncio.sleep(0.01)
        raise LookupError("x")

    sleeping = {"sleeps": sleeps, "fails": fails, "after": looks(saw)}
    empty, one = {"n": 1, "log": []}, {"n": 1}
    return {
        "a node that fails while its sibling sleeps": Case(
            compiled(sleeping, [(START, "sleeps"), (START, "fails"), ("sleeps", "after")]), {}, LookupError, ["cancelled"]
        ),
        "a router that fails": Case(compiled({"a": looks(saw)}, routes=[("a", lambda state: state["none"])]), empty, KeyError, [empty]),
        "two nodes that write one value": Case(compiled({"a": looks([], one), "b": looks([], one)}, BOTH), {}, InvalidUpdateError),
        "a node that writes no mapping": Case(compiled({"a": looks([], 7)}), {}, InvalidUpdateError),
        "an input that the state does not fit": Case(compiled({"a": looks(saw)}, state=Model), {"n": "many"}, ValidationError),
        "a loop without an end": Case(compiled({"a": looks(saw)}, [(START, "a"), ("a", "a")]), empty, GraphRecursionError, [empty] * LIMIT),
    }


GROUPS = (routes, parallel, sends, states, channels, supplied, called, failures)
CASES = {name: group for group in GROUPS for name in group([])}


async def by_langgraph(graph: Graph, given: Any) -> Any:
    return await graph.ainvoke(given)


async def step_by_step(graph: Graph, given: Any) -> Any:
    inner = inner_of(graph)
    assert inner is not None
    return await inner.run(given, Tracer())


async def in_a_node(work: Callable[[], Awaitable[Any]]) -> Any:
    """What `work` comes to in a node of a run, whose context, store and metadata it finds."""

    async def outer(state: Logged) -> Logged:
        return {"log": [*await asyncio.gather(work(), return_exceptions=True)]}

    graph: StateGraph[Any, Any, Any, Any] = StateGraph(Logged)
    graph.add_node("outer", outer, metadata={"outer": "told", "own": "of outer"})
    graph.add_edge(START, "outer")
    ran = graph.compile(store=InMemoryStore())
    came = (await ran.ainvoke({}, {"recursion_limit": LIMIT}, context={"who": "outer"}))["log"][0]
    return type(came) if isinstance(came, BaseException) else came


@pytest.mark.parametrize("way", [by_langgraph, step_by_step])
@pytest.mark.parametrize("name", CASES)
async def test_both_ways_come_to_the_same(name: str, way: Callable[[Graph, Any], Awaitable[Any]]) -> None:
    saw: list[Any] = []
    case = CASES[name](saw)[name]
    assert await in_a_node(lambda: way(case.graph, case.given)) == case.came
    assert saw == [*case.saw]


async def test_runs_of_one_graph_at_once_have_a_state_each() -> None:
    graph = compiled({"a": adds("a", 0.001), "counts": counts})
    came = await in_a_node(lambda: asyncio.gather(*(step_by_step(graph, {"n": n, "log": [n]}) for n in range(50))))
    assert came == [{"n": n + 1, "log": [n, "a"]} for n in range(50)]


async def test_a_run_that_is_cancelled_ends_its_nodes() -> None:
    ended: list[str] = []
    begun = asyncio.Barrier(3)

    def hangs(name: str) -> Node:
        async def node(state: State) -> None:
            try:
                await begun.wait()
                await asyncio.sleep(60)
            finally:
                ended.append(name)

        return node

    graph = compiled({"a": hangs("a"), "b": compiled({"c": hangs("c")})}, BOTH)
    before = asyncio.all_tasks()
    running = asyncio.create_task(in_a_node(lambda: step_by_step(graph, {"n": 1})))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (sorted(ended), asyncio.all_tasks() - before) == (["a", "c"], set())


# --- what is left to LangGraph


def one(state: Any = State, node: Node = counts, **options: Any) -> StateGraph[Any, Any, Any, Any]:
    """A graph of one node with these options."""
    graph = StateGraph(state)
    graph.add_node("a", node, **options)
    graph.add_edge(START, "a")
    return graph


class Counted(State):
    left: RemainingSteps


async def reads_what_is_left(state: Counted) -> dict[str, Any]:
    return {"n": state["left"]}


REFUSED: dict[str, Callable[[], Any]] = {
    "a checkpointer of its own": lambda: one().compile(checkpointer=InMemorySaver()),
    "the checkpointer around": lambda: one().compile(),
    "checkpoints of its own in the one around": lambda: one().compile(checkpointer=True),
    "a pause before a node": lambda: one().compile(checkpointer=False, interrupt_before=["a"]),
    "a pause after a node": lambda: one().compile(checkpointer=False, interrupt_after=["a"]),
    "a cache": lambda: one().compile(checkpointer=False, cache=InMemoryCache()),
    "a store": lambda: one().compile(checkpointer=False, store=InMemoryStore()),
    "a config": lambda: one().compile(checkpointer=False).with_config(tags=["mine"]),
    "retries": lambda: one(retry_policy=RetryPolicy()).compile(checkpointer=False),
    "retries of all nodes": lambda: one().set_node_defaults(retry_policy=RetryPolicy()).compile(checkpointer=False),
    "a cached node": lambda: one(cache_policy=CachePolicy()).compile(checkpointer=False),
    "a timeout": lambda: one(timeout=5.0).compile(checkpointer=False),
    "an error handler": lambda: one(error_handler=adds("mended")).compile(checkpointer=False),
    "a deferred node": lambda: one(defer=True).compile(checkpointer=False),
    "a managed value": lambda: one(Counted, reads_what_is_left).compile(checkpointer=False),
    "a graph that is not compiled": one,
    "no graph": lambda: RunnableLambda(adds("x")),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_what_only_langgraphs_loop_does_is_left_to_it(make: Callable[[], Any]) -> None:
    assert inner_of(make()) is None


async def test_a_graph_inside_that_is_refused_is_run_by_langgraph_in_one_that_is_not() -> None:
    tries: list[int] = []

    async def fails_once(state: State) -> dict[str, Any]:
        tries.append(state["n"])
        if len(tries) == 1:
            raise ConnectionError("once")
        return {"log": ["mended"]}

    inside = one(node=fails_once, retry_policy=RetryPolicy(initial_interval=0.001, jitter=False)).compile()
    graph = compiled({"counts": counts, "inside": inside})
    assert await in_a_node(lambda: step_by_step(graph, {"n": 1})) == {"n": 2, "log": ["mended"]}
    assert tries == [2, 2]
