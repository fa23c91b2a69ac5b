"""How good the answers are: runs the agents over a folder of questions, or the verifier over claims, and writes what a scorer reads.

    python -m benchmarks.quality FOLDER [FOLDER ...] --output OUT [--model offline]

A FOLDER holds `docs/` and `questions.jsonl` with lines like {"id", "question"}, or `items.jsonl` with lines like
{"id", "claim", "source_text"}. OUT gets NAME.jsonl for each: {"question_id", "report_markdown", "citations": [{"source", "quote"}],
"findings": [...]} with sources relative to `docs/`, or {"id", "verdict"}.
"""

import argparse
import asyncio
import json
import os
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def main() -> None:
    """Prints a line for each folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--output", type=Path, required=True, help="where the predictions go")
    parser.add_argument("--model", default="offline")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        os.environ["ORCHESTRATOR_HOME"] = home
        for folder in options.folders:
            started = time.perf_counter()
            rows, outcomes = _predict(folder.resolve(), options.model)
            seconds = time.perf_counter() - started
            target = options.output / f"{folder.resolve().name}.jsonl"
            target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            told = ", ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items()))
            each = 1_000 * seconds / max(1, len(rows))
            print(f"{folder.name:<18} {len(rows):>4} in {seconds:6.1f} s, {each:6.1f} ms each: {told} -> {target}")


def _predict(folder: Path, model: str) -> tuple[list[Row], Counter[str]]:
    if (folder / "questions.jsonl").is_file():
        answers = asyncio.run(_answers(_read(folder / "questions.jsonl"), folder / "docs", model))
        return [row for row, _ in answers], Counter(status for _, status in answers)
    verdicts = asyncio.run(_verdicts(_read(folder / "items.jsonl"), model))
    return verdicts, Counter(row["verdict"] for row in verdicts)


def _read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


async def _answers(questions: list[Row], docs: Path, model: str) -> list[tuple[Row, str]]:
    """Every question through the whole research workflow, one after the other."""
    from orchestrator import run

    answers: list[tuple[Row, str]] = []
    for row in questions:
        result = await run("research", {"question": row["question"], "documents": [str(docs)]}, model=model)
        answers.append((_prediction(row["id"], result.output or {}, docs), result.status))
    return answers


def _prediction(question_id: str, output: Mapping[str, Any], docs: Path) -> Row:
    findings = json.loads(json.dumps(output.get("findings", []), default=lambda value: value.model_dump()))
    cited = [
        (finding, {**citation, "source": os.path.relpath(citation["source"], docs)})
        for finding in findings
        for citation in finding["citations"]
    ]
    return {
        "question_id": question_id,
        "report_markdown": output.get("report", ""),
        "citations": [{"source": citation["source"], "quote": citation["quote"]} for _, citation in cited],
        "findings": [
            {
                "claim": finding["claim"],
                "source": citation["source"],
                "quote": citation["quote"],
                "verdict": (finding["verdict"] or {}).get("label", "unsupported"),
            }
            for finding, citation in cited
        ],
    }


async def _verdicts(items: list[Row], model: str) -> list[Row]:
    """Every claim before the verifier's model, with the whole source as its quote; the offline model makes the checks itself."""
    from agents.prompts import VERIFIER, prompt
    from agents.verifier import Judgement
    from orchestrator.models import ask, resolve_model
    from orchestrator.text import data_block

    chat, boundary = resolve_model(model), secrets.token_hex(8)
    verdicts = []
    for item in items:
        parts = [data_block("claim", item["claim"], boundary), data_block("quote", item["source_text"], boundary, source="source")]
        answer = await ask(chat, prompt(VERIFIER, *parts, boundary=boundary), Judgement, role="verifier", timeout=120)
        verdicts.append({"id": item["id"], "verdict": answer.value.label if answer.value else "unsupported"})
    return verdicts


if __name__ == "__main__":
    main()
