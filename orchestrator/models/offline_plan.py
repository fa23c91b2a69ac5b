"""The offline model's plan: the whole question first."""

from typing import Any

from orchestrator.models.offline_prompt import Prompt

__all__ = ["plan"]


def plan(prompt: Prompt) -> dict[str, Any]:
    """The arguments of `Plan`: the question itself; nothing once an earlier round has findings."""
    return {"questions": [] if prompt.findings or not prompt.question else [prompt.question]}
