"""A run in a process of its own, to be killed: `python -m tests.journal_process DATABASE BASE_URL ACKNOWLEDGED`.

It prints what it found as JSON. Whatever its code was answered it writes at once, a line each, to the file ACKNOWLEDGED.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph

from orchestrator.context import RunContext
from orchestrator.events import in_branch
from orchestrator.models.connection import LazyClient, LoopClient
from orchestrator.storage.database import open_database
from tests.foreign_calls import State
from tests.journal_made import City, Kept

BRANCHES, STEPS = 4, 3


def chat_model(base_url: str, name: str = "test-model") -> BaseChatModel:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(
        base_url=base_url,
        model=name,
        api_key="test-key",  # type: ignore[arg-type]
        max_retries=0,
        stream_usage=True,
        http_async_client=LoopClient(trust_env=False),
        http_client=LazyClient(trust_env=False),
    )


class Work:
    """Branches of agents beside nodes that call a model by themselves; each question holds the answer before it."""

    def __init__(self, model: BaseChatModel, acknowledged: Path) -> None:
        self.context: RunContext
        self._model = model
        self._file = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def heard(self, answer: object) -> str:
        os.write(self._file, f"{answer}\n".encode())
        return str(answer)

    async def branch(self, number: int) -> str:
        said = ""
        with in_branch(f"t{number}"):
            for step in range(STEPS):
                question = HumanMessage(f"branch {number}, step {step}, after {said!r}")
                said = self.heard((await self.context.answer("researcher", [question], City)).name)
                call: Any = {"name": "note", "args": {"text": said}, "id": "call_0", "type": "tool_call"}
                said = str((await self.context.call_tool(note, call)).content)
        return said

    async def agents(self, state: State) -> Any:
        return {"found": await asyncio.gather(*map(self.branch, range(BRANCHES)))}

    async def asks(self, state: State) -> Any:
        said = ""
        for step in range(STEPS):
            said = self.heard((await self._model.ainvoke(f"own node, step {step}, after {said!r}")).text)
        return {"found": [said]}

    def asks_in_a_thread(self, state: State) -> Any:
        said = ""
        for step in range(STEPS):
            said = self.heard(self._model.invoke(f"sync node, step {step}, after {said!r}").text)
        return {"found": [said]}

    async def streams(self, state: State) -> Any:
        said = ""
        for step in range(STEPS):
            said = "".join([str(piece.text) async for piece in self._model.astream(f"stream, step {step}, after {said!r}")])
            self.heard(said)
        return {"found": [said]}

    def graph(self) -> Any:
        graph = StateGraph(State)
        for node in (self.agents, self.asks, self.asks_in_a_thread, self.streams):
            graph.add_node(node.__name__, node).add_edge(START, node.__name__)
        return graph.compile()


@tool
async def note(text: str) -> str:
    """Note a text."""
    return f"noted: {text}"


async def main(database: str, base_url: str, acknowledged: str) -> None:
    model = chat_model(base_url)
    work = Work(model, Path(acknowledged))
    store = await open_database(database)
    run = await Kept.of(store)
    async with run.attempt({"": model}, race=["*"]) as context:
        work.context = context
        found = (await work.graph().ainvoke({"found": []}))["found"]
        usage = await context.ledger.usage()
    await store.aclose()
    sys.stdout.write(json.dumps({"found": sorted(found), "recalled": run.told("recalled"), "usage": usage.model_dump()}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
