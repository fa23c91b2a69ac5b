"""`ask` and its graph builder: one search, one answer, checks; over real HTTP to the model server."""

import json
from pathlib import Path
from typing import Any

import pytest
from documents_made import pdf

from orchestrator import Result, run
from orchestrator.testing import Reply, Responder, agents_script, answer_for, fault, model_server

SENTENCE = "The lighthouse of Arkona was built in 1827."


@pytest.fixture
def documents(tmp_path: Path) -> str:
    """A text and a PDF whose second page has the other half of the answer."""
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "arkona.md").write_text(f"# Arkona\n\n{SENTENCE}\n", encoding="utf-8")
    (folder / "manual.pdf").write_bytes(pdf(["A manual of lamps.", "The lamp of Arkona burns 400 litres of oil a year."], title="Manual"))
    return str(folder)


async def ask(question: str, documents: str, reply: Responder, **given: Any) -> tuple[Result, list[str | None]]:
    """The result, and the schemas that were asked for."""
    controls = given.pop("controls", {})
    async with model_server(reply) as server:
        result = await run("ask", {"question": question, "documents": [documents], **given}, model=server.chat_model(), controls=controls)
    return result, [answer_for(request.body) for request in server.requests]


def quoting(*quotes: str, claims: dict[str, str] | None = None) -> Responder:
    """An answer that cites these quotes from the passages that have them."""

    def findings(request: dict[str, Any]) -> dict[str, Any]:
        from orchestrator.testing.answers import _read

        passages = _read(request).passages
        found = [(quote, next((passage.id for passage in passages if quote in passage.text), "d9.9")) for quote in quotes]
        return {
            "findings": [
                {"claim": (claims or {}).get(quote, quote), "citations": [{"passage": number, "quote": quote}]} for quote, number in found
            ],
            "missing": "",
        }

    return agents_script(findings=findings)


async def test_an_answer_with_citations_takes_one_call_and_a_judgement_for_each_sentence(documents: str) -> None:
    lamp = "The lamp of Arkona burns 400 litres of oil a year."
    result, asked = await ask("When was the lighthouse of Arkona built, and what does its lamp burn?", documents, quoting(SENTENCE, lamp))
    assert (result.status, asked) == ("complete", ["AnswerFindings", "Judgement", "Judgement"])
    assert result.output is not None
    assert result.output["report"].splitlines()[:7] == [
        "# When was the lighthouse of Arkona built, and what does its lamp burn?",
        "",
        f"{SENTENCE} [1] {lamp} [2]",
        "",
        "## Sources",
        "",
        f"1. {documents}/arkona.md, line 3: “{SENTENCE}”",
    ]
    assert f"2. {documents}/manual.pdf, page 2: “{lamp}”" in result.output["report"]
    assert result.output.keys() == {"report", "findings", "gaps", "sources"}
    assert [finding["verdict"]["label"] for finding in result.output["findings"]] == ["supported"] * 2


async def test_without_verify_no_model_judges_and_the_report_says_so(documents: str) -> None:
    result, asked = await ask("When was the lighthouse built?", documents, quoting(SENTENCE), verify=False)
    assert (result.status, asked) == ("complete", ["AnswerFindings"])
    assert result.output is not None
    assert "> Checked without a model: each quote is in its source" in result.output["report"]


@pytest.mark.parametrize(
    ("claim", "quote", "why"),
    [
        ("The lighthouse of Arkona was built in 1828.", SENTENCE, "1828"),
        ("The lighthouse of Hiddensee was built in 1827.", SENTENCE, "Hiddensee"),
        (SENTENCE, "The lighthouse of Arkona was built in 1828.", "the quote is not in"),
    ],
)
async def test_a_sentence_that_its_quote_does_not_hold_is_no_answer(documents: str, claim: str, quote: str, why: str) -> None:
    reply = quoting(quote, claims={quote: claim}) if quote == SENTENCE else agents_script(findings=_made_up(claim, quote))
    result, asked = await ask("When was the lighthouse of Arkona built?", documents, reply, verify=False)
    assert (result.status, asked) == ("partial", ["AnswerFindings"])
    assert result.output is not None
    assert result.output["findings"] == []
    assert why in " ".join(result.output["gaps"]) + json.dumps(result.branches, default=str)


def _made_up(claim: str, quote: str) -> Any:
    def findings(request: dict[str, Any]) -> dict[str, Any]:
        from orchestrator.testing.answers import _read

        return {"findings": [{"claim": claim, "citations": [{"passage": _read(request).passages[0].id, "quote": quote}]}], "missing": ""}

    return findings


async def test_what_the_documents_do_not_say_is_a_gap(documents: str) -> None:
    nothing = {"findings": [], "missing": "The documents do not say who built it."}
    result, asked = await ask("Who built the lighthouse?", documents, agents_script(findings=nothing))
    assert (result.status, asked) == ("partial", ["AnswerFindings"])
    assert result.output is not None
    assert result.output["gaps"] == ["Who built the lighthouse? (The documents do not say who built it.)"]
    assert "No finding is supported by the documents." in result.output["report"]


async def test_where_no_passage_matches_no_model_is_asked(documents: str) -> None:
    result, asked = await ask("Zebra quagga okapi?", documents, agents_script())
    assert (result.status, asked) == ("partial", [])
    assert result.output is not None
    assert result.output["gaps"] == ["Zebra quagga okapi? (no passage of the documents matches the question)"]


async def test_a_model_that_fails_is_a_failed_run_and_never_an_empty_answer(documents: str) -> None:
    result, asked = await ask("When was the lighthouse built?", documents, agents_script(findings=Reply(fault="refusal")))
    assert (result.status, asked) == ("failed", ["AnswerFindings"])
    assert [branch["status"] for branch in result.branches] == ["refused"]


async def test_a_verifier_that_fails_supports_nothing(documents: str) -> None:
    cut = fault("eof", agents_script())
    result, _ = await ask("When was the lighthouse built?", documents, agents_script(judgement=cut), controls={"max_attempts": 1})
    assert result.status == "failed"
    assert result.output is None or result.output["findings"] == []


async def test_a_budget_that_is_used_up_is_a_limit(documents: str) -> None:
    result, asked = await ask("When was the lighthouse built?", documents, quoting(SENTENCE), controls={"budget": {"max_calls": 1}})
    assert (result.status, asked) == ("limited", ["AnswerFindings"])


async def test_offline_an_answer_is_found_and_a_question_about_something_else_is_not_answered(documents: str) -> None:
    result = await run("ask", {"question": "When was the lighthouse of Arkona built?", "documents": [documents]}, model="offline")
    assert result.status == "complete"
    assert result.output is not None
    assert result.output["findings"][0]["citations"][0]["quote"] == SENTENCE
    other = await run("ask", {"question": "Who painted the lighthouse keeper's Mona Lisa?", "documents": [documents]}, model="offline")
    assert other.status == "partial"
    assert other.output is not None
    assert other.output["findings"] == []
