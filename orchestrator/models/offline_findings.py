"""The offline model's findings: verbatim sentences of the best passages."""

from typing import Any

from orchestrator.models.offline_prompt import Prompt
from orchestrator.models.offline_words import content, sentences

__all__ = ["findings"]


def findings(prompt: Prompt) -> dict[str, Any]:
    """The arguments of `Findings`."""
    wanted = set(content(prompt.question))
    documents: dict[str, list[tuple[float, str, str]]] = {}
    for passage in prompt.passages:
        rows = documents.setdefault(passage.source, []) if passage.source in documents or len(documents) < 5 else []
        for start, end in sentences(passage.text):
            sentence = passage.text[start:end]
            if 12 <= len(sentence) <= 500 and len(sentence.split()) >= 3:
                rows.append((-float(len(wanted & set(content(sentence)))), passage.id, sentence))
    ranked = [sorted(rows)[:2] for rows in documents.values()]
    chosen = [rows[place] for place in (0, 1) for rows in ranked if len(rows) > place]
    found = [{"claim": text, "citations": [{"passage": place, "quote": text}]} for _, place, text in chosen]
    return {"findings": found, "missing": "" if found else "no passage matches the question"}
