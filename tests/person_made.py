"""Runs that ask a person: a model server, workflows on disk, and the command line as a process of its own."""

import contextlib
import io
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any
from unittest.mock import patch

from command_line import environ, orchestrator

from orchestrator.cli import main
from orchestrator.testing import ModelServer, Reply, agents_script

ROOT = Path(__file__).parent.parent
QUESTION = re.compile(r"<question>\n(.*?)\n</question>", re.DOTALL)
NOTING = '''
"""Research that may file notes."""

from pathlib import Path

from langchain_core.tools import tool

from agents import create_planner, create_researcher, create_verifier, create_writer
from orchestrator import Workflow, create_supervisor


@tool
def file_note(text: str) -> str:
    """File a note."""
    with Path("notes.txt").open("a") as file:
        file.write(f"{text}\\n")
    return f"filed: {text}"


researcher = create_researcher(tools=[file_note])
workflow = Workflow(create_supervisor(create_planner(), researcher, create_verifier(), create_writer(), max_rounds=1))
'''


BOSS = NOTING.replace("import tool\n", "import tool\nfrom langgraph.types import interrupt\n").replace(
    '    return f"filed: {text}"',
    '    whose = interrupt({"question": "Who for?", "note": text})\n    return f"filed: {text} for {whose}, {interrupt(\'Why?\')}"',
)


def asked(body: dict[str, Any]) -> str:
    """The question of a request."""
    found = QUESTION.search(str(body["messages"][1]["content"]))
    return found[1] if found else ""


def noting(*questions: str, quiet: str = "", calls: int = 1) -> Any:
    """Answers for the agents: a branch for each question, each of which files notes first; the branch of `quiet` files none."""
    answers = agents_script(plan={"questions": [*questions, *([quiet] if quiet else [])]})
    plain = agents_script()

    def find(body: dict[str, Any]) -> Any:
        if any(message["role"] == "tool" for message in body["messages"]) or asked(body) == quiet:
            return plain(body)
        return Reply(calls=[("file_note", {"text": f"{asked(body)} {number}"}) for number in range(calls)])

    def respond(body: dict[str, Any]) -> Any:
        schemas = {tool["function"]["name"] for tool in body.get("tools", ())}
        return find(body) if "Findings" in schemas or "Findings" in str(body.get("response_format")) else answers(body)

    return respond


def command_line(
    folder: Path, *words: str, server: ModelServer | None = None, typed: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """The command line to its end, with nobody at a terminal."""
    return orchestrator(folder, *words, env=environ(**(server.environ if server is not None else {})))


def in_this_process(folder: Path, *words: str, server: ModelServer | None = None) -> "subprocess.CompletedProcess[str]":
    """The same without a process of its own, which is quicker."""
    out, err = io.StringIO(), io.StringIO()
    environ = patch.dict(os.environ, server.environ if server is not None else {})
    with contextlib.chdir(folder), environ, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def repeated(server: ModelServer) -> list[str]:
    """The requests that came more than once, in whatever way they were asked."""
    told = [json.dumps(request.body["messages"], sort_keys=True) for request in server.requests]
    return sorted({text for text in told if told.count(text) > 1})


def told_to_model(server: ModelServer) -> list[str]:
    """What tools answered, as the models were told."""
    messages = (message for request in server.requests for message in request.body["messages"])
    return sorted({str(message["content"]) for message in messages if message["role"] == "tool"})
