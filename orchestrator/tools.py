"""The tools that agents call: search the documents, read around a passage, fetch a page where hosts are allowed.

Every answer holds retrieved text in data blocks of the run's boundary. What goes wrong is told to the model as an error of
the tool, so that it can go on with something else; an unexpected exception is not caught.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from orchestrator.errors import FetchRefusedError, ToolError
from orchestrator.events import tell
from orchestrator.text import data_block, one_line, unfit_arguments

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool
    from pydantic import ValidationError
    from pydantic.v1 import ValidationError as ValidationErrorV1

    from orchestrator.documents import Library, Passage
    from orchestrator.fetch import Connect, Resolve

__all__ = ["ANSWER_CHARACTERS", "answering_tool", "document_tools", "fetch_tool"]

ANSWER_CHARACTERS = 16_000  # of one tool's answer, about 4,000 tokens: eight passages of 2,000 characters
CONTEXT_CHARACTERS = 4_000  # that read_passage gives around a passage
QUERY_CHARACTERS = 1_000
_ID = re.compile(r"[dp]\d+\.\d+")


def document_tools(library: "Library", *, boundary: str) -> "list[BaseTool]":
    """`search_documents(query)` and `read_passage(passage_id)` over `library`; they answer in data blocks of `boundary`."""

    async def search_documents(query: str) -> str:
        if not query.strip():
            raise ToolError("The query is empty", remedy="Search with the words that the text you look for would contain")
        found = await library.search(query[:QUERY_CHARACTERS])
        if not found:
            return "No passage matches this query. Try other words: synonyms, names in full, fewer words."
        return _blocks(found, boundary)

    async def read_passage(passage_id: str) -> str:
        around = await library.context(passage_id.strip(), CONTEXT_CHARACTERS)
        if around is None:
            named = one_line(passage_id, 20)
            shown = f"the id {named!r}" if _ID.fullmatch(named) else "this id"  # what may be a tag is not repeated
            raise ToolError(f"No passage has {shown}", remedy="Use an id exactly as a passage block shows it")
        return _blocks([around], boundary)

    return [
        answering_tool(
            search_documents, "Search the documents. Answers with the passages that match best, each with its id.", read_only=True
        ),
        answering_tool(read_passage, "Read the text before and after a passage. Takes the id of a passage, such as d1.2.", read_only=True),
    ]


def fetch_tool(
    library: "Library",
    *,
    allow_hosts: Sequence[str],
    boundary: str,
    keep: Callable[[Mapping[str, str]], Awaitable[None]] | None = None,
    resolve: "Resolve | None" = None,
    connect: "Connect | None" = None,
) -> "BaseTool":
    """`fetch_url(url)`: adds a page of an allowed host to `library` for this run and answers with its passages; raises InputError.

    A URL that the policy forbids is told to the model, and as a log event `policy_denied`.
    """
    from orchestrator.fetch import connect_to, fetch, resolve_host
    from orchestrator.urls import parse_allowed

    for entry in allow_hosts:
        parse_allowed(entry)

    async def fetch_url(url: str) -> str:
        try:
            page = await fetch(
                url.strip(), allow_hosts=allow_hosts, private=[boundary], resolve=resolve or resolve_host, connect=connect or connect_to
            )
        except FetchRefusedError as error:
            tell("log", level="warning", message=f"policy_denied fetch_url: {error}")
            raise
        is_new = await library.source(page.url) is None
        passages = library.add(page.url, page.title, page.text, page.sha256)
        if keep is not None and is_new:
            await keep({"uri": page.url, "title": page.title, "text": page.text, "sha256": page.sha256})
        note = "\n\nThe page is longer; the rest of it was left out." if page.cut else ""
        return _blocks(passages, boundary) + note

    return answering_tool(fetch_url, "Fetch a web page of an allowed host. Takes its whole URL; answers with the page's passages.")


def _blocks(passages: "Sequence[Passage]", boundary: str) -> str:
    """The passages as data blocks, as many as fit; text is cut, never a block."""
    blocks: list[str] = []
    room = ANSWER_CHARACTERS
    for passage in passages:
        if room <= 0:
            blocks.append(f"{len(passages) - len(blocks)} more passages are not shown; search_documents finds them.")
            break
        text = passage.text[:room]
        blocks.append(data_block("passage", text, boundary, id=passage.id, source=passage.source.uri, title=passage.source.title))
        room -= len(text)
    return "\n\n".join(blocks)


def answering_tool(
    call: Callable[..., Awaitable[str] | str], description: str, *, read_only: bool = False, name: str = "", schema: Any = None
) -> "BaseTool":
    """A tool whose ToolError is an answer of it; a plain `def` runs in a thread. Its arguments are those of `call`, or a JSON `schema`.

    `read_only`: it changes nothing and sends nothing to who could be an attacker, so no person is asked before it is called.
    """
    from langchain_core.tools import StructuredTool, ToolException

    # LangChain turns only its own exception into a ToolMessage with status "error".
    async def answer(**arguments: Any) -> Any:
        try:
            return await call(**arguments)  # type: ignore[misc]  # it is async
        except ToolError as error:
            raise ToolException(str(error)) from error

    def answer_in_thread(**arguments: Any) -> Any:
        try:
            return call(**arguments)
        except ToolError as error:
            raise ToolException(str(error)) from error

    own = {"coroutine": answer} if iscoroutinefunction(call) else {"func": answer_in_thread}
    given = {"coroutine": call} if iscoroutinefunction(call) else {"func": call}
    return StructuredTool.from_function(
        **own,
        name=name or call.__name__,
        description=description,
        args_schema=schema or StructuredTool.from_function(**given, description=description).args_schema,
        handle_tool_error=True,
        handle_validation_error=_unfit,
        metadata={"read_only": True} if read_only else None,
    )


def _unfit(error: "ValidationError | ValidationErrorV1") -> str:
    return unfit_arguments(error.errors())
