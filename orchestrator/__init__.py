"""Multi-agent orchestration on LangGraph: importing this package is cheap, its names load what they need."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Read by LangGraph when it is imported: without it a row of a checkpoint may name any function to call.
os.environ.setdefault("LANGGRAPH_STRICT_MSGPACK", "true")

if TYPE_CHECKING:
    from orchestrator.batch import run_batch as run_batch
    from orchestrator.controls import Budget as Budget
    from orchestrator.controls import Controls as Controls
    from orchestrator.controls import JoinPolicy as JoinPolicy
    from orchestrator.events import Event as Event
    from orchestrator.forking import fork as fork
    from orchestrator.graphs.race import create_race as create_race
    from orchestrator.graphs.supervisor import create_supervisor as create_supervisor
    from orchestrator.outcome import Result as Result
    from orchestrator.replaying import replay as replay
    from orchestrator.resuming import resume as resume
    from orchestrator.runner import run as run
    from orchestrator.runner import stream as stream
    from orchestrator.workflow import Workflow as Workflow
    from orchestrator.workflow import list_workflows as list_workflows
    from orchestrator.workflow import load_workflow as load_workflow

__all__ = [
    "Budget",
    "Controls",
    "Event",
    "JoinPolicy",
    "Result",
    "Workflow",
    "create_race",
    "create_supervisor",
    "fork",
    "list_workflows",
    "load_workflow",
    "replay",
    "resume",
    "run",
    "run_batch",
    "stream",
]

_HOMES = {
    "Budget": "controls",
    "Controls": "controls",
    "Event": "events",
    "JoinPolicy": "controls",
    "Result": "outcome",
    "Workflow": "workflow",
    "create_race": "graphs.race",
    "create_supervisor": "graphs.supervisor",
    "fork": "forking",
    "list_workflows": "workflow",
    "load_workflow": "workflow",
    "replay": "replaying",
    "resume": "resuming",
    "run": "runner",
    "run_batch": "batch",
    "stream": "runner",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
