"""The job in each framework: `open_PEER(base_url, folder)` gives what runs it once, for so many branches, and the supported findings."""

import asyncio
import operator
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypedDict

from benchmarks.speed.job import MODEL, SCHEMAS, as_dicts, asked
from benchmarks.speed.others import OTHERS, Job

__all__ = ["PEERS"]


@asynccontextmanager
async def open_wire(base_url: str, folder: Path) -> AsyncIterator[Job]:
    """No framework: asyncio and aiohttp, JSON in and out. What is left is the price of the wire."""
    import aiohttp
    import orjson
    from openai.lib._parsing._completions import type_to_response_format_param

    formats = {kind: type_to_response_format_param(schema) for kind, schema in SCHEMAS.items()}
    headers = {"content-type": "application/json", "authorization": "Bearer none"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def call(kind: str, number: int, *texts: str) -> Any:
            body = {"model": MODEL, "messages": as_dicts(asked(kind, number, *texts)), "response_format": formats[kind]}
            async with session.post(f"{base_url}/chat/completions", data=orjson.dumps(body), headers=headers) as response:
                return orjson.loads(orjson.loads(await response.read())["choices"][0]["message"]["content"])

        async def branch(number: int, question: str) -> tuple[str, str]:
            found = await call("research", number, question)
            judged = await call("verify", number, found["claim"], *found["quotes"])
            return found["claim"], judged["label"]

        async def job(branches: int) -> int:
            plan = await call("plan", branches)
            rows = await asyncio.gather(*(branch(at, question) for at, question in enumerate(plan["questions"])))
            await call("report", branches, *(claim[:80] for claim, _ in rows))
            return sum(label == "supported" for _, label in rows)

        yield job


class _State(TypedDict, total=False):
    branches: int
    questions: list[str]
    rows: Annotated[list[Any], operator.add]
    report: str


class _Branch(TypedDict, total=False):
    number: int
    question: str
    found: dict[str, Any]
    rows: Annotated[list[Any], operator.add]


class _Rows(TypedDict):
    rows: Annotated[list[Any], operator.add]


@asynccontextmanager
async def open_langgraph(base_url: str, folder: Path) -> AsyncIterator[Job]:
    """Plain LangGraph as its documentation has it: ChatOpenAI, a subgraph a branch, its own SQLite checkpointer."""
    import aiosqlite
    from langchain_openai import ChatOpenAI
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
    from langgraph.graph import END, START, StateGraph
    from langgraph.types import Send
    from pydantic import SecretStr

    chat = ChatOpenAI(model=MODEL, base_url=base_url, api_key=SecretStr("none"), timeout=600, max_retries=0)
    models = {kind: chat.with_structured_output(schema) for kind, schema in SCHEMAS.items()}

    async def call(kind: str, number: int, *texts: str) -> Any:
        return await models[kind].ainvoke(asked(kind, number, *texts))

    async def plan(state: _State) -> _State:
        return {"questions": (await call("plan", state["branches"])).questions}

    def fan_out(state: _State) -> list[Send]:
        return [Send("branch", {"number": at, "question": question}) for at, question in enumerate(state["questions"])]

    async def research(state: _Branch) -> _Branch:
        return {"found": (await call("research", state["number"], state["question"])).model_dump()}

    async def verify(state: _Branch) -> _Branch:
        found = state["found"]
        judged = await call("verify", state["number"], found["claim"], *found["quotes"])
        return {"rows": [(found["claim"], judged.label)]}

    async def report(state: _State) -> _State:
        return {"report": (await call("report", state["branches"], *(claim[:80] for claim, _ in state["rows"]))).text}

    inner = StateGraph(_Branch, output_schema=_Rows).add_sequence([research, verify]).add_edge(START, "research").add_edge("verify", END)
    graph = StateGraph(_State).add_node(plan).add_node("branch", inner.compile()).add_node(report)
    graph.add_edge(START, "plan").add_conditional_edges("plan", fan_out, ["branch"]).add_edge("branch", "report").add_edge("report", END)
    async with aiosqlite.connect(folder / "langgraph.db") as connection:
        saver = AsyncSqliteSaver(connection)
        await saver.setup()
        compiled, number = graph.compile(checkpointer=saver), iter(range(10**9))

        async def job(branches: int) -> int:
            config = {"configurable": {"thread_id": str(next(number))}, "recursion_limit": 100}
            rows = (await compiled.ainvoke({"branches": branches}, config))["rows"]  # type: ignore[arg-type,call-overload]
            return sum(label == "supported" for _, label in rows)

        yield job


@asynccontextmanager
async def open_orchestrator(base_url: str, folder: Path) -> AsyncIterator[Job]:
    """This project: its supervisor over four agents of one call each, with everything on that a user has by default."""
    os.environ.update(OPENAI_BASE_URL=base_url, OPENAI_API_KEY="none", ORCHESTRATOR_HOME=str(folder))
    from benchmarks.speed.agents import job_workflow
    from orchestrator import Result, run, stream
    from orchestrator.process import collect_rarely

    documents = folder / "documents"
    documents.mkdir(exist_ok=True)
    (documents / "note.md").write_text("# Note\n\nThe answers come from the server.\n", encoding="utf-8")
    workflow = job_workflow(int(os.environ.get("SPEED_LIMIT", "10000")), streams=bool(os.environ.get("SPEED_STREAM")))
    reads = bool(os.environ.get("SPEED_READ"))
    collect_rarely()  # as the command line does in its process

    async def job(branches: int) -> int:
        given = {"question": str(branches), "documents": [str(documents)]}
        options: Any = {"model": f"openai:{MODEL}", "db": f"sqlite:///{folder}/runs.db"}
        if reads:
            result = Result.model_validate([event async for event in stream(workflow, given, **options)][-1].fields)
        else:
            result = await run(workflow, given, **options)
        if result.status != "complete":
            raise RuntimeError(f"the run is {result.status}: {result.error}")
        return sum(finding["verdict"]["reason"] == "supported" for finding in result.output["findings"])

    yield job


PEERS = {"wire": open_wire, "langgraph": open_langgraph, **OTHERS, "orchestrator": open_orchestrator}
