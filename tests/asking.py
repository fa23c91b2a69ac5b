"""One question to a chat model, as the tests of `ask` put it."""

from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.tools import BaseTool, tool
from pydantic import BaseModel, Field

from orchestrator.models import Answer, ask
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


async def asked(server: ModelServer, *, tools: tuple[BaseTool, ...] = (), timeout: float = 20, **options: Any) -> Answer[Plan]:  # noqa: ASYNC109
    """One `ask` of a fresh model."""
    return await ask(server.chat_model(api_key=KEY, **options), QUESTION, Plan, tools=tools, role="planner", timeout=timeout)
