"""The report: the answer first, then findings by question, gaps and sources. No sentence without a supported finding."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.context import RunContext
from orchestrator.documents import Library
from orchestrator.evidence import check_claim
from orchestrator.joining import is_lost
from orchestrator.state import BranchResult, Citation, Failure, Finding, Report, Sentence
from orchestrator.text import counted, one_line

__all__ = [
    "OFFLINE_NOTE",
    "cited",
    "colophon",
    "distinct_findings",
    "holds",
    "lapses",
    "listed",
    "markdown_table",
    "plain_markdown",
    "write_report",
]

_ANSWER_CHARACTERS = 1_200
_MARKUP = re.compile(r"[\[\]<]|\\(?=[!-/:-@\[-`{-~])")  # links, images, our own markers, HTML, and what would unescape them
# What would begin a list, a heading, a quote, a rule or a fence that swallows the rest of the report.
_LEADING = re.compile(r"(\d{1,9})(?=[.)](?:\s|$))|(?=#{1,6}(?:\s|$)|[-+*](?:\s|$)|>|~~~|[-*_=]{3})")
OFFLINE_NOTE = "> No language model was used: every sentence below was selected word for word from the documents by the offline model."
"""What the reports of a run begin with that asked no language model."""


async def write_report(
    question: str,
    branches: Sequence[BranchResult],
    findings: Sequence[Finding],
    answer: Sequence[Sentence],
    failures: Sequence[Failure],
    context: RunContext,
    library: Library,
    *,
    offline: bool,
    notes: Sequence[str] = (),
    sections: Sequence[str] = (),
    appendix: Sequence[str] = (),
) -> Report:
    """Put the report together; `answer` counts in `findings`, the distinct findings of `branches`. `notes` stand above the answer.

    A sentence that rests on no finding, or whose numbers, dates or names are not in its findings, is left out; when none is left
    the findings themselves are the answer. `sections`: Markdown behind the answer, `appendix`: behind the findings.
    """
    numbers = _numbers(findings)
    sentences = [sentence for sentence in answer if holds(sentence, findings)] or _from_findings(findings)
    told = _cited(sentences, findings, numbers)
    gaps = [f"{result.task.question} ({result.error or result.gap})" for result in branches if not result.findings or result.status != "ok"]
    gaps += [f"the {failure.role}: {failure.error}" for failure in failures if failure.role not in ("join", "answer")]
    parts = [
        f"# {plain_markdown(question)}",
        OFFLINE_NOTE if offline else "",
        *(f"> {note}" for note in notes),
        _partial(branches, failures),
        # What the offline model selects is no text, but a list.
        ("\n".join(f"- {sentence}" for sentence in told) if offline else " ".join(told)) or _nothing(branches),
        *sections,
        *_by_question(branches, findings, sentences, numbers),
        *appendix,
        listed("Not answered", [f"- {plain_markdown(gap)}" for gap in gaps]),
        listed("Sources", await _sources(numbers, library)),
        "---",
        await colophon(context),
    ]
    named = {citation.source for citation in numbers}
    sources = {source.uri: source for result in branches for source in result.sources if source.uri in named}
    text = "\n\n".join(part for part in parts if part) + "\n"
    return Report(markdown=text, findings=list(findings), gaps=[one_line(gap, 400) for gap in gaps], sources=list(sources.values()))


def distinct_findings(branches: Sequence[BranchResult]) -> list[Finding]:
    """Supported findings in order, the same claim with the same quotes once."""
    distinct: dict[tuple[str, tuple[Citation, ...]], Finding] = {}
    for result in branches:
        for finding in result.findings:
            distinct.setdefault((finding.claim, tuple(finding.citations)), finding)
    return list(distinct.values())


def lapses(library: Library) -> list[Failure]:
    """That searches went on by words alone, where they did: what was found may be less than what is there."""
    return [Failure(role="embeddings", status="failed", error=library.lapse)] if library.lapse else []


def _numbers(findings: Sequence[Finding]) -> dict[Citation, int]:
    numbers: dict[Citation, int] = {}
    for finding in findings:
        for citation in finding.citations:
            numbers.setdefault(citation, len(numbers) + 1)
    return numbers


def cited(sentences: Sequence[Sentence], findings: Sequence[Finding]) -> list[str]:
    """Sentences that hold as Markdown, each with the marks of what it rests on; `findings` are all of the report, in its order."""
    return _cited(sentences, findings, _numbers(findings))


def _cited(sentences: Sequence[Sentence], findings: Sequence[Finding], numbers: Mapping[Citation, int]) -> list[str]:
    return [f"{plain_markdown(sentence.text)} {_marks([findings[n - 1] for n in sentence.findings], numbers)}" for sentence in sentences]


def holds(sentence: Sentence, findings: Sequence[Finding]) -> bool:
    """Whether a sentence may stand in a report: its findings exist, and its numbers, dates and names are in them."""
    if not sentence.text.strip() or not sentence.findings or not all(1 <= number <= len(findings) for number in sentence.findings):
        return False
    rests_on = [findings[number - 1] for number in sentence.findings]
    words = [text for finding in rests_on for text in (finding.claim, *(citation.quote for citation in finding.citations))]
    return all(check.passed for check in check_claim(sentence.text, words))


def _from_findings(findings: Sequence[Finding]) -> list[Sentence]:
    sentences, room = list[Sentence](), _ANSWER_CHARACTERS
    for number, finding in enumerate(findings, start=1):
        room -= len(finding.claim)
        if room < 0 and sentences:
            break
        sentences.append(Sentence(text=finding.claim, findings=[number]))
    return sentences


def _marks(findings: Sequence[Finding], numbers: Mapping[Citation, int]) -> str:
    marks = dict.fromkeys(numbers[citation] for finding in findings for citation in finding.citations)
    return "".join(f"[{number}]" for number in sorted(marks))


def plain_markdown(text: str) -> str:
    """`text` as Markdown on one line, with what could become a link, a citation mark or HTML escaped: it came from documents and models."""
    line = one_line(text, 4_000)
    if "[" in line or "]" in line or "<" in line or "\\" in line:
        line = _MARKUP.sub(r"\\\g<0>", line)
    if "`" in line and (line.count("`") % 2 or line.startswith("```")):  # an open code span, or a fence, would swallow the marks behind it
        line = line.replace("`", "\\`")
    leading = _LEADING.match(line)
    return f"{leading[1] or ''}\\{line[leading.end() :]}" if leading else line


def unfinished_report(status: str, done: Sequence[str], left: Sequence[str], output: Mapping[str, Any]) -> str:
    """What there is of a run that ended before its report was written: the steps that were done, those that were left, the output so far.

    `status` is the run's; `done` and `left` are steps by name. Values of the output are plain data.
    """
    why = {"cancelled": "The run was stopped", "limited": "The run reached a limit"}.get(status, "The run failed")
    steps = [f"{word}: {plain_markdown(', '.join(names))}." for word, names in (("Done", done), ("Not done", left)) if names]
    parts = [f"> {' '.join([f'{why} before its report was written.', *steps])}"]
    return "\n\n".join([*parts, *(f"**{plain_markdown(key)}:**{_value(value)}" for key, value in output.items())]) + "\n"


def _value(value: Any) -> str:
    """Plain data as Markdown: a text, a list of words, or rows of such; what is deeper than that as JSON."""
    if isinstance(value, Mapping) and all(map(_is_flat, value.values())):
        return "\n\n" + "\n".join(f"- {plain_markdown(key)}:{_value(item)}" for key, item in value.items())
    if _is_flat(value):
        return " " + plain_markdown(", ".join(map(str, value)) if isinstance(value, list) else str(value))
    # What a model wrote must not end the fence.
    return f"\n\n```json\n{json.dumps(value, ensure_ascii=False, indent=2, default=str).replace('```', '`` `')}\n```"


def _is_flat(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return not any(isinstance(item, Mapping | list) for item in items)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """A table of cells that are Markdown already; the columns `numbers`, counted from 0, stand to the right."""
    rule = ["--:" if place in numbers else "---" for place in range(len(head))]
    return "\n".join(f"| {' | '.join(cell.replace('|', '¦') for cell in row)} |" for row in (head, rule, *rows))


def _partial(branches: Sequence[BranchResult], failures: Sequence[Failure]) -> str:
    """What the run lost; branches that the join policy ended because nobody needed them any more are no loss, but are named."""
    lost = [result for result in branches if is_lost(result)]
    ended = [result for result in branches if result.status != "ok" and not is_lost(result)]
    said = [f"{len(lost)} of {len(branches)} questions could not be researched"] if lost else []
    said += [f"the {failure.role} failed" for failure in failures if failure.role not in ("supervisor", "answer", "join")]
    failed = [plain_markdown(failure.error) for failure in failures if failure.role == "join"]
    parts = [f"Failed: {'; '.join(failed)}." if failed else "", f"Partial: {' and '.join(said)}." if said and not failed else ""]
    parts += [f"{len(ended)} of {len(branches)} questions were left when the round was over." if ended else ""]
    told = " ".join(part for part in parts if part)
    return f"> {told} What is missing is listed under “Not answered”." if told else ""


def _nothing(branches: Sequence[BranchResult]) -> str:
    """What stands where no finding does: that is a verdict on the documents only where every branch came to its end."""
    return "No finding was verified." if any(map(is_lost, branches)) else "No finding is supported by the documents."


def _by_question(
    branches: Sequence[BranchResult], findings: Sequence[Finding], answer: Sequence[Sentence], numbers: Mapping[Citation, int]
) -> list[str]:
    """Findings under their questions. Where there is one question, what the answer says word for word is not said again."""
    parts = []
    said = {sentence.text for sentence in answer} if len(branches) == 1 else set()
    told = any(finding.claim in said for finding in findings)
    for result in branches:
        lines = [
            f"- {plain_markdown(finding.claim)} {_marks([finding], numbers)}" for finding in result.findings if finding.claim not in said
        ]
        if result.rejected:
            lines.append(f"- Left out: {counted(len(result.rejected), 'claim')} that the quotes did not support.")
        if lines:
            title = plain_markdown(result.task.question) if len(branches) > 1 else "Further findings" if told else "Findings"
            parts.append("\n".join([f"## {title}", "", *lines]))
    return parts


def listed(title: str, lines: Sequence[str]) -> str:
    """A section of these lines; "" where there are none."""
    return "\n".join([f"## {title}", "", *lines]) if lines else ""


async def _sources(numbers: Mapping[Citation, int], library: Library) -> list[str]:
    places = await library.where([(citation.source, citation.start) for citation in numbers])
    names = {source: plain_markdown(source) for source in {citation.source for citation in numbers}}
    return [
        f"{number}. {names[citation.source]}, {where}: “{plain_markdown(citation.quote)}”"
        for (citation, number), where in zip(numbers.items(), places, strict=True)
    ]


async def colophon(context: RunContext) -> str:
    """What a run has used so far, as the last line of its report; "" where no model was asked."""
    usage = await context.ledger.usage()
    if not usage.model_calls:
        return ""
    cost = "unknown cost" if usage.cost_usd is None else f"${usage.cost_usd:.4f}" if usage.cost_usd else "$0"
    calls = f"{counted(usage.model_calls, 'call')}, {usage.input_tokens:,} tokens in, {usage.output_tokens:,} out"
    return f"{plain_markdown(', '.join(await context.ledger.by_model()))}: {calls}, {cost}, {time.monotonic() - context.began:.1f} s"
