"""The offline model's draft: the findings that answer, verbatim."""

from typing import Any

from orchestrator.models.offline_prompt import Prompt

__all__ = ["draft"]


def draft(prompt: Prompt) -> dict[str, Any]:
    """The arguments of `Draft`."""
    written: list[dict[str, Any]] = []
    room = 1200
    for number, finding in enumerate(prompt.findings, 1):
        text = finding.text.split("\n")[0]
        if written and len(text) > room:
            continue
        room -= len(text)
        written.append({"text": text, "findings": [int(finding.id) if finding.id.isdigit() else number]})
    return {"sentences": written}
