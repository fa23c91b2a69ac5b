"""`--dry-run`: whatever a run would refuse is refused, the models are named, and what it may cost at most is told. No model is called."""

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.checks import GraphView
from orchestrator.context import RunContext
from orchestrator.documents import Library, open_library
from orchestrator.driving import Attempt
from orchestrator.forecast import Forecast, forecast
from orchestrator.models import openai_endpoint
from orchestrator.text import one_line

__all__ = ["DryRun", "dry_run"]


@dataclass(frozen=True)
class DryRun:
    """What a run would ask, and what that costs at most. `endpoints` are of the models, in their order, each once."""

    model: str
    reason: str
    endpoints: list[str]
    forecast: Forecast

    def to_json(self) -> dict[str, Any]:
        """All of it as one JSON object."""
        return {"model": self.model, "reason": self.reason, "endpoints": self.endpoints, **self.forecast.to_json()}

    def lines(self) -> Iterator[str]:
        """All of it for people."""
        yield f"model: {one_line(self.model, 200)} ({one_line(self.reason)})"
        yield f"asks: {one_line(', '.join(self.endpoints), 200) or 'no endpoint: it is a part of this program'}"
        yield from self.forecast.lines()


def dry_run(attempt: Attempt) -> DryRun:
    """What the attempt would ask, once its nodes have found nothing wrong with its input.

    A node tells by the async function `check` of its metadata what it would refuse: given the input and the run's context it raises
    InputError, as the node does when the run comes to it.
    """
    with tempfile.TemporaryDirectory(prefix="orchestrator-") as home:
        asyncio.run(_check(attempt, Path(home)))
    models, workflow = attempt.models, attempt.workflow
    endpoints = dict.fromkeys(_endpoint(spec or "") for specs in models.specs.values() for spec in specs)
    told = forecast(workflow, attempt.controls, models.specs, attempt.values)
    return DryRun(models.said, models.reason, [endpoint for endpoint in endpoints if endpoint], told)


def _endpoint(spec: str) -> str:
    """Where a model is asked, without what a URL has of a login; "" for the offline model."""
    asked = openai_endpoint(spec, os.environ)
    if asked is None:
        return "" if spec.strip().lower() == "offline" else f"that of {one_line(spec.partition(':')[0], 40)}"
    parts = urlsplit(asked[0])
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Context(RunContext):
    """A run's context that keeps nothing: what it reads of documents is in a folder that goes."""

    home: Path

    async def _opened(self, documents: tuple[str, ...]) -> Library:
        return await open_library(documents, home=self.home)


async def _check(attempt: Attempt, home: Path) -> None:
    nodes = GraphView(attempt.workflow.graph).builder.nodes.values()
    checks = dict.fromkeys(check for spec in nodes if (check := (spec.metadata or {}).get("check")))
    controls = attempt.controls.model_copy(update={"embeddings": None})  # they ask a model
    async with aclosing(_Context(models=attempt.models.by_role, controls=controls, name=attempt.run_id, home=home)) as context:
        for check in checks:
            await check(attempt.values, context)
