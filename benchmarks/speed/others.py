"""The job in frameworks that are measured where they are installed: agents as their documentation has them, `asyncio.gather` around them.

pip install "pydantic-ai-slim[openai]" agent-framework-core agent-framework-openai
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.speed.job import MODEL, SCHEMAS, SYSTEM, asked

__all__ = ["OTHERS", "Job"]

Job = Callable[[int], Awaitable[int]]


def _gathered(call: Callable[..., Awaitable[Any]]) -> Job:
    """The job, with what asks one of its agents: it is given the kind, a number and texts, and gives a value of the kind's schema."""

    async def branch(number: int, question: str) -> tuple[str, str]:
        found = await call("research", number, question)
        return found.claim, (await call("verify", number, found.claim, *found.quotes)).label

    async def job(branches: int) -> int:
        plan = await call("plan", branches)
        rows = await asyncio.gather(*(branch(at, question) for at, question in enumerate(plan.questions)))
        await call("report", branches, *(claim[:80] for claim, _ in rows))
        return sum(label == "supported" for _, label in rows)

    return job


@asynccontextmanager
async def _open_pydantic_ai(base_url: str, folder: Path) -> AsyncIterator[Job]:
    import openai

    ai: Any = import_module("pydantic_ai")
    async with openai.AsyncOpenAI(api_key="none", base_url=base_url, timeout=600, max_retries=0) as client:
        provider = import_module("pydantic_ai.providers.openai").OpenAIProvider(openai_client=client)
        model = import_module("pydantic_ai.models.openai").OpenAIChatModel(MODEL, provider=provider)
        agents = {kind: ai.Agent(model, output_type=ai.NativeOutput(SCHEMAS[kind]), instructions=SYSTEM[kind]) for kind in SCHEMAS}

        async def call(kind: str, number: int, *texts: str) -> Any:
            return (await agents[kind].run(asked(kind, number, *texts)[1][1])).output

        yield _gathered(call)


@asynccontextmanager
async def _open_agent_framework(base_url: str, folder: Path) -> AsyncIterator[Job]:
    import openai

    framework: Any = import_module("agent_framework")
    async with openai.AsyncOpenAI(api_key="none", base_url=base_url, timeout=600, max_retries=0) as client:
        chat = import_module("agent_framework.openai").OpenAIChatCompletionClient(MODEL, async_client=client)
        agents = {kind: framework.Agent(chat, SYSTEM[kind], name=kind) for kind in SCHEMAS}

        async def call(kind: str, number: int, *texts: str) -> Any:
            return (await agents[kind].run(asked(kind, number, *texts)[1][1], options={"response_format": SCHEMAS[kind]})).value

        yield _gathered(call)


_ALL: dict[str, Callable[[str, Path], AbstractAsyncContextManager[Job]]] = {
    "pydantic_ai": _open_pydantic_ai,
    "agent_framework": _open_agent_framework,
}
OTHERS = {name: opened for name, opened in _ALL.items() if find_spec(name)}
"""Those that are installed, by the name that they are imported by."""
