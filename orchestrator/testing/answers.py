"""Sensible answers for the shipped agents."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.testing.replies import Responder, answer_for

if TYPE_CHECKING:
    from orchestrator.models.offline_prompt import Prompt

__all__ = ["agents_script"]


def agents_script(
    answers: Mapping[str | None, Any] | Mapping[str, Any] | None = None,
    *,
    plan: Any = None,
    findings: Any = None,
    judgement: Any = None,
    draft: Any = None,
    summary: Any = None,
) -> Responder:
    """Answers for the shipped agents and workflows, each a Reply, text, a value or a callable of the request's body.

    `answers` has more, by schema, and under None what is said where a text is asked for, tools offered or not: a Reply with `calls` calls
    them. Without one, it plans the question itself, finds the first sentence of the first passage, supports every claim, writes one
    sentence a finding, sums up a text in its first sentence, neutral and without key points, compares without an agreement or a
    contradiction, scores every plan 3 of 5, thinks of two viewpoints, and says "OK.".
    """
    # Here, and not at the first request: the threads of several servers would wait for each other's import in their event loops.
    import orchestrator.models.offline_prompt  # noqa: F401

    script: dict[str | None, Any] = {
        None: "OK.",
        "Plan": plan or _plan,
        "PlanOrQuestion": plan or _plan,
        "ConversationPlan": plan or _plan,
        "ConversationPlanOrQuestion": plan or _plan,
        "Findings": findings or _findings,
        "AnswerFindings": findings or _findings,
        "Judgement": judgement or {"label": "supported", "reason": "The quote states the claim."},
        "Draft": draft or _draft,
        "Summary": summary or _summary,
        "Sentiment": {"sentiment": "neutral"},
        "DirectAnswer": {"answer": "OK."},
        "Comparison": _comparison,
        "PlanVerdict": _verdict,
        "Viewpoints": {"viewpoints": ["one side", "the other side"]},
    }
    script.update(answers or {})

    def respond(request: dict[str, Any]) -> Any:
        name = answer_for(request)
        if name not in script and request.get("tools") and not (request.get("tool_choice") or request.get("response_format")):
            name = None  # the last of the tools is a tool, and no schema: they may be called, or a text is said
        if name not in script:
            raise LookupError(f"the script has no answer for {name!r}, only for {', '.join(str(known) for known in script if known)}")
        answer = script[name]
        return answer(request) if callable(answer) else answer

    return respond


def _read(request: Mapping[str, Any]) -> "Prompt":
    from langchain_core.messages import convert_to_messages

    from orchestrator.models.offline_prompt import read_prompt

    return read_prompt(convert_to_messages(request.get("messages", [])))


def _plan(request: dict[str, Any]) -> dict[str, Any]:
    prompt = _read(request)
    asked_before = prompt.findings or prompt.open_questions  # a further round: there is nothing else to ask
    return {"questions": [prompt.question] if prompt.question and not asked_before else []}


def _findings(request: dict[str, Any]) -> dict[str, Any]:
    passages = _read(request).passages
    if not passages:
        return {"findings": [], "missing": "No passage was given."}
    sentence = _first_sentence(passages[0].text)
    return {"findings": [{"claim": sentence, "citations": [{"passage": passages[0].id, "quote": sentence}]}], "missing": ""}


def _draft(request: dict[str, Any]) -> dict[str, Any]:
    found = _read(request).findings
    return {"sentences": [{"text": finding.text.partition("\n")[0], "findings": [int(finding.id)]} for finding in found]}


def _comparison(request: dict[str, Any]) -> dict[str, Any]:
    return {"answer": _draft(request)["sentences"], "agreements": [], "contradictions": []}


def _verdict(request: dict[str, Any]) -> dict[str, Any]:
    criteria = re.findall(r"^\d+\. (.+)$", str(request["messages"][0]["content"]), re.MULTILINE)
    return {"scores": [{"criterion": name, "score": 3, "reason": "It will do."} for name in criteria], "verdict": "It will do."}


def _summary(request: dict[str, Any]) -> dict[str, Any]:
    prompt = _read(request)
    texts = [block.text.partition("\n")[2] for block in prompt.summaries] or [block.text for block in prompt.texts]
    return {"summary": " ".join(map(_first_sentence, texts[:3])), "sentiment": "neutral", "key_points": []}


def _first_sentence(text: str) -> str:
    """The first sentence of `text` that is no heading, as it stands there."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = next((line for line in lines if len(line) >= 20 and not line.startswith(("#", "=", "-"))), lines[0] if lines else "")
    found = re.match(r".*?[.!?](?=\s|$)", line)
    return found[0] if found else line
