"""A run whose attempts follow one another in one store, each as if its process were new."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from pydantic import BaseModel

from orchestrator.context import RunContext
from orchestrator.controls import Controls
from orchestrator.door import guarding
from orchestrator.events import Event, in_branch, listening
from orchestrator.journal import Journal, JournalMode
from orchestrator.models import exchange
from orchestrator.storage.codec import open_codec
from orchestrator.storage.database import Database, Fence, Statement, open_database
from orchestrator.storage.journal import JournalRow, JournalTable

Models = dict[str, BaseChatModel | Sequence[BaseChatModel]]


class City(BaseModel):
    name: str


class Kept:
    """The journal of run `number` in a store; `events` are those of the last attempt."""

    def __init__(self, database: Database, table: JournalTable, number: int = 1) -> None:
        self.database = database
        self.table = table
        self.number = number
        self.fence = Fence(f"run-{number}", "me")
        self.events: list[Event] = []

    @classmethod
    async def of(cls, database: Database, number: int = 1) -> "Kept":
        insert = "INSERT INTO runs(number, run_id, status, owner) VALUES(?, ?, 'running', 'me') ON CONFLICT DO NOTHING"
        await database.run(Statement(insert, (number, f"run-{number}")))
        return cls(database, JournalTable(database, await open_codec(database)), number)

    @asynccontextmanager
    async def attempt(
        self, models: Models, mode: JournalMode | None = None, sources: Sequence[int] = (), **controls: Any
    ) -> AsyncIterator[RunContext]:
        """An attempt that knows what the store knows, and nothing else; "record" where there is nothing yet."""
        exchange._worked.clear()
        self.events = []
        mode = mode or ("resume" if await self.rows() else "record")
        journal = await Journal.open(self.table, self.number, self.fence, mode=mode, sources=sources)
        context = RunContext(models=models, controls=Controls.model_validate(controls), journal=journal, boundary="b0")
        await context.ledger.restore(journal.restored())
        try:
            with listening(self.events.append):
                async with guarding(context.terms):
                    yield context
        finally:
            await context.aclose()
            await journal.aclose()

    async def rows(self) -> list[JournalRow]:
        return await self.table.rows(self.number)

    async def states(self) -> list[str]:
        return [row.state for row in await self.rows()]

    def told(self, kind: str) -> int:
        return sum(event.kind == kind for event in self.events)


@asynccontextmanager
async def kept(url: str = "memory://") -> AsyncIterator[Kept]:
    database = await open_database(url)
    try:
        yield await Kept.of(database)
    finally:
        await database.aclose()


async def city(context: RunContext, question: str, branch: str = "t1", role: str = "researcher") -> str:
    """The answer to a question that a branch asks."""
    with in_branch(branch):
        return (await context.answer(role, [HumanMessage(question)], City)).name


def question_of(body: Mapping[str, Any]) -> str:
    """The last thing that a user said in a request."""
    return str([message["content"] for message in body["messages"] if message["role"] == "user"][-1])


def counting(answers: Callable[[int], Any]) -> Callable[[Any], Any]:
    """A responder that is told how many requests came before."""
    made: list[Any] = []

    def reply(body: Any) -> Any:
        made.append(body)
        return answers(len(made) - 1)

    return reply
