"""One question to a chat model, as the tests of `ask` put it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.tools import BaseTool, tool
from pydantic import BaseModel, Field

from orchestrator.controls import Controls
from orchestrator.models import Answer, ask
from orchestrator.terms import Terms
from orchestrator.testing import ModelServer

KEY = "sk-planted-0123456789"


class Plan(BaseModel):
    """The sub-questions."""

    questions: list[str] = Field(max_length=3)
    note: str | None = None


@tool
async def search(query: str) -> str:
    """Search the documents."""
    return query


QUESTION: list[BaseMessage] = [HumanMessage("What is asked?")]
GOOD = {"questions": ["What is asked?"], "note": None}


def terms(**controls: Any) -> Terms:
    """The terms of a run with these controls; a call may take 20 seconds."""
    return Terms(controls=Controls(**{"call_timeout": 20, **controls}))


async def asked(
    server: ModelServer,
    *,
    tools: tuple[BaseTool, ...] = (),
    controls: Mapping[str, Any] = MappingProxyType({}),
    run: Terms | None = None,
    role: str = "planner",
    **options: Any,
) -> Answer[Plan]:
    """One `ask` of a fresh model, on the terms of `run`, or of a run with these controls."""
    return await ask(server.chat_model(api_key=KEY, **options), QUESTION, Plan, tools=tools, role=role, terms=run or terms(**controls))
