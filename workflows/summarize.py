"""Sum up any number of documents at once: a summary, the sentiment and the key points of each, and of all together."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agents import create_summarizer
from agents.summarizer import Sentiment, Summary, told
from orchestrator import Controls, Workflow
from orchestrator.context import RunContext
from orchestrator.graphs.branches import call_agent
from orchestrator.graphs.fitting import file_sizes, prompt_room, tokens_in
from orchestrator.graphs.map_reduce import Given, Part, Reduced, create_map_reduce
from orchestrator.graphs.overview import write_overview


class Asked(BaseModel):
    """What is to be summed up."""

    documents: list[str] = Field(description="files, folders and globs to sum up", min_length=1)
    focus: str = Field(default="", description="what to look for; else everything counts", max_length=2_000)
    context_tokens: int | None = Field(
        default=None, ge=1_000, le=10_000_000, description="tokens the model can read at once; else what is known of it, or 8,000"
    )


class Document(TypedDict):
    """A document and what it says; `pieces`: it was read in so many."""

    source: str
    summary: str
    sentiment: Sentiment
    key_points: list[str]
    pieces: int


class Lost(TypedDict):
    """A document that could not be summed up, and why."""

    source: str
    error: str


class Overview(TypedDict):
    """All documents together (`summary`, `sentiment` and `key_points` are None where there is nothing), and each by itself."""

    report: str
    summary: str | None
    sentiment: Sentiment | None
    key_points: list[str] | None
    documents: list[Document]
    failed: list[Lost]


summarizer = create_summarizer()


async def documents(given: Given, context: RunContext) -> Sequence[str]:
    """The files by their names: each is read when its turn comes, so that their number costs no memory."""
    return (await context.files(given["documents"])).uris


async def read(name: str, given: Given, context: RunContext) -> str:
    """The text of a file."""
    return await (await context.files(given["documents"])).text(name)


async def one(part: Part, given: Given, context: RunContext) -> Summary:
    """The summary of a document, or of a piece of it."""
    return await _asked([part], given, context, summaries=False)


async def several(parts: Sequence[Part], given: Given, context: RunContext) -> Summary:
    """One summary of several."""
    return await _asked(parts, given, context, summaries=True)


async def _asked(parts: Sequence[Part], given: Given, context: RunContext, *, summaries: bool) -> Summary:
    texts = [{"name": part.item if part.of == 1 else f"{part.item}, part {part.number} of {part.of}", "text": part.text} for part in parts]
    found = await call_agent(summarizer, {"texts": texts, "summaries": summaries, "focus": given.get("focus") or ""}, context)
    return Summary.model_validate(found["summary"])


async def room(given: Given, context: RunContext) -> int:
    """Tokens of text in one prompt."""
    context_tokens = given.get("context_tokens")
    return await prompt_room(context, "summarizer", "reducer", context_tokens=context_tokens, taken=tokens_in(given.get("focus") or ""))


async def write(reduced: Reduced[Summary], given: Given, context: RunContext) -> dict[str, Any]:
    """The report, and what it tells as data."""
    whole = reduced.value
    return {
        "report": await write_overview(reduced, given.get("focus") or "", context),
        "summary": whole and whole.summary,
        "sentiment": whole and whole.sentiment,
        "key_points": whole and whole.key_points,
        "documents": [{"source": one.item, **dict(value), "pieces": one.pieces} for one in reduced.items if (value := one.value)],
        "failed": [Lost(source=one.item, error=one.error or one.status) for one in reduced.items if one.status != "ok"],
    }


builder = create_map_reduce(
    Asked,
    Summary,
    items=documents,
    read=read,
    map=one,
    reduce=several,
    told=told,
    room=room,
    noun="document",
    output=Overview,
    write=write,
    sizes=file_sizes,
)
workflow = Workflow(builder, controls=Controls(max_branches=20_000, max_agent_calls=200))
graph = workflow.compile()
