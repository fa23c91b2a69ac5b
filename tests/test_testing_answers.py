"""The script of the test kit: it answers for every shipped workflow, and says and calls what it is told to."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator import run
from orchestrator.testing import Reply, agents_script, model_server


@pytest.mark.parametrize(
    ("workflow", "given"),
    [
        ("assistant", {"messages": "Hello"}),
        ("ask", {"question": "By whom was the journal designed?"}),
        ("chat", {"messages": "Hello"}),
        ("compare", {"count": 2}),
        ("perspectives", {"question": "By whom was the journal designed?"}),
        ("pipeline", {"text": "A text."}),
        ("plans", {"question": "By whom was the journal designed?", "plans": 2}),
        ("race", {"question": "What is it?"}),
        ("research", {"question": "By whom was the journal designed?"}),
        ("summarize", {}),
    ],
)
async def test_the_script_answers_every_shipped_workflow(workflow: str, given: dict[str, Any], documents: Path) -> None:
    searched = {"documents": [str(documents)]} if ("question" in given and workflow != "race") or workflow == "summarize" else {}
    async with model_server(agents_script()) as server:
        models = {"": [server.chat_model(model=name) for name in ("a", "b")]}
        result = await run(workflow, {**given, **searched}, model=models, db="memory://")
    assert (result.status, result.error) == ("complete", None)


async def test_what_the_script_says_in_words_may_be_calls_of_tools() -> None:
    def said(request: dict[str, Any]) -> Any:
        last = request["messages"][-1]
        return f"It is {last['content']}." if last["role"] == "tool" else Reply(calls=[("calculator", {"expression": "6 * 7"})])

    async with model_server(agents_script({None: said})) as server:
        given = {"messages": "What is 6 times 7?", "tools": ["calculator", "clock"]}
        result = await run("assistant", given, model=server.chat_model(), db="memory://")
    assert result.output["answer"] == "It is 42."
