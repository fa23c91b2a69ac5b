"""Research runs that go wrong in one place: documents of numbered topics, a plan of a branch each, and a fault where a test wants it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator import Result, run
from orchestrator.testing import ModelServer, Responder, agents_script, answer_for

Place = Literal["one", "five", "all", "planner", "verifier", "writer"]
PLACES: tuple[Place, ...] = ("one", "five", "all", "planner", "verifier", "writer")
TROUBLED = {"one": 1, "five": 5}  # the branches of these topics, counted from 0
_ASKED = re.compile(r"<question>\nWhat is said of topic (\d+)\?")


def write_topics(folder: Path, count: int) -> Path:
    """A document a topic."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        text = f"# Topic {number}\n\nOf topic {number} it is said that it is one of many.\n"
        (folder / f"topic-{number}.md").write_text(text, encoding="utf-8")
    return folder


def topics_script(branches: int) -> Responder:
    """Right answers: a branch a topic, and a second round that asks nothing."""

    def plan(request: dict[str, Any]) -> dict[str, Any]:
        later = "<finding-" in str(request["messages"])
        return {"questions": [] if later else [f"What is said of topic {number}?" for number in range(branches)]}

    return agents_script(plan=plan)


def is_at(request: Mapping[str, Any], place: Place) -> bool:
    """Whether a request belongs to this place of a run."""
    schema = answer_for(request)
    if place in ("planner", "verifier", "writer"):
        return schema == {"planner": "Plan", "verifier": "Judgement", "writer": "Draft"}[place]
    asked = _ASKED.search(str(request["messages"][1]["content"])) if schema == "Findings" else None
    return asked is not None and int(asked[1]) < TROUBLED.get(place, 1_000_000)


@dataclass(frozen=True)
class Troubled:
    """Right answers everywhere but in one place."""

    place: Place
    wrong: Responder
    right: Responder

    def __call__(self, request: dict[str, Any]) -> Any:
        return (self.wrong if is_at(request, self.place) else self.right)(request)


def requests_at(server: ModelServer, place: Place) -> int:
    """How many requests came from this place."""
    return sum(is_at(request.body, place) for request in server.requests)


async def research(server: ModelServer, documents: Path, *, models: Mapping[str, Any] | None = None, **controls: Any) -> Result:
    """A research run that asks this server; `models` are those of single roles."""
    given = {"question": "What is said of every topic?", "documents": [str(documents)]}
    return await run("research", given, model={"": server.chat_model(), **(models or {})}, controls=controls)
