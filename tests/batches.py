"""What tests of batches share: a workflow of two model calls, a server that counts them by input, and the batch as a process."""

import json
import re
import textwrap
import threading
from collections import defaultdict
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import command_line
from command_line import Python, environ

from orchestrator.testing import Reply

ROOT = Path(__file__).parent.parent
CHAIN = """
    '''Two calls of a model, one after the other.'''
    from typing import TypedDict
    from langchain_core.messages import HumanMessage
    from langgraph.graph import START, StateGraph
    from langgraph.runtime import Runtime
    from pydantic import BaseModel
    from orchestrator import Workflow
    from orchestrator.context import RunContext

    class Given(TypedDict):
        text: str

    class Said(TypedDict):
        first: str
        second: str

    class State(Given, Said):
        pass

    class Word(BaseModel):
        '''One word.'''
        word: str

    async def ask(step: str, state: State, runtime: Runtime) -> dict:
        context = RunContext.of(runtime)
        answer = await context.ask(step, [HumanMessage(f"[{step} {state['text']}]")], Word)
        return {step: answer.value.word}

    async def first(state: State, runtime: Runtime) -> dict:
        return await ask("first", state, runtime)

    async def second(state: State, runtime: Runtime) -> dict:
        return await ask("second", state, runtime)

    graph = StateGraph(State, context_schema=RunContext, input_schema=Given, output_schema=Said)
    graph.add_node("first", first).add_node("second", second).add_edge(START, "first").add_edge("first", "second")
    workflow = Workflow(graph)
    """
_ASKED = re.compile(r"\[(first|second) ([\w-]+)\]")


class Counting:
    """Answers both steps, `delay` seconds each, and keeps the order in which each input's were asked for; `at` lets a test wait."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.asked: dict[str, list[str]] = defaultdict(list)
        self.total = 0
        self.server: Any = None  # that asks it, where a test wants to know
        self._more = threading.Condition()

    def __call__(self, body: dict[str, Any]) -> Any:
        match = _ASKED.search(json.dumps(body["messages"]))
        assert match is not None
        step, text = match.groups()
        with self._more:
            self.asked[text].append(step)
            self.total += 1
            self._more.notify_all()
        return Reply(value={"word": f"{step}-{text}"}, delay=self.delay)

    def wait_for(self, total: int, seconds: float = 40.0) -> bool:
        """Whether so many requests came in all."""
        with self._more:
            return self._more.wait_for(lambda: self.total >= total, seconds)


def make_chain(folder: Path, count: int) -> None:
    """The workflow, and a file of so many inputs."""
    (folder / "chain.py").write_text(textwrap.dedent(CHAIN))
    (folder / "in.jsonl").write_text("".join(f'"input-{number}"\n' for number in range(count)))


def started(folder: Path, variables: dict[str, str], *words: str) -> AbstractContextManager[Python]:
    """The batch as a process of its own."""
    batch = ["batch", "chain.py", "in.jsonl", "--output", "out.jsonl", "--model", "openai:small", *words]
    return command_line.started(folder, *batch, env=environ(**variables))


def results(folder: Path) -> dict[int, dict[str, Any]]:
    """The results by line, each of which is there once."""
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    found = {line["line"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def exact(folder: Path, count: int) -> None:
    """Every input has one line of result, and it is the right one."""
    found = results(folder)
    assert sorted(found) == [*range(1, count + 1)]
    for line, result in found.items():
        text = f"input-{line - 1}"
        assert (result["status"], result["output"]) == ("complete", {"first": f"first-{text}", "second": f"second-{text}"})


def repeated(asked: dict[str, list[str]]) -> int:
    """Requests whose answer the run had already: a first step that is asked for again after the second was."""
    return sum("first" in steps[steps.index("second") :] for steps in asked.values() if "second" in steps)
