"""What can be said of a finding by looking into its documents once more."""

from collections.abc import Mapping

from orchestrator.documents.library import Library
from orchestrator.state import Check, Finding, Source

__all__ = ["check_hashes", "check_quotes"]


async def check_quotes(finding: Finding, library: Library) -> Check:
    """Whether each quote of a finding stands in the text of its source, at the offsets that its citation gives."""
    for citation in finding.citations:
        text = await library.text(citation.source)
        if text is None:
            return Check(name="quote", passed=False, detail=f"there is no source {citation.source!r}")
        if citation.start < 0 or text[citation.start : citation.end] != citation.quote:
            return Check(name="quote", passed=False, detail=f"the quote is not in {citation.source!r} word for word")
    return Check(name="quote", passed=True)


async def check_hashes(finding: Finding, known: Mapping[str, Source], library: Library) -> Check:
    """Whether the sources of a finding are still what they were when they were retrieved; `known` are those, by uri."""
    for uri in dict.fromkeys(citation.source for citation in finding.citations):
        retrieved = known[uri].sha256 if uri in known else None
        if retrieved is None:
            return Check(name="hash", passed=False, detail=f"{uri!r} is not among the sources that were retrieved")
        if await library.current_sha256(uri) != retrieved:
            return Check(name="hash", passed=False, detail=f"{uri!r} has changed since it was read")
    return Check(name="hash", passed=True)
