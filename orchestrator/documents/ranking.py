"""Which passages answer a question."""

from dataclasses import dataclass

from orchestrator.documents.store import Store
from orchestrator.documents.words import STOP_WORDS, terms

__all__ = ["Page", "Ranking"]


@dataclass(frozen=True, slots=True)
class Page:
    """A page that was added for this run: its title, its text and the passages of it as offsets."""

    title: str
    text: str
    spans: tuple[tuple[int, int], ...]


class Ranking:
    """Ranks the passages of a store; `titles` by document id."""

    def __init__(self, store: Store, titles: dict[int, str]) -> None:
        self._store = store
        self._titles = titles

    def search(self, query: str, limit: int, pages: dict[int, Page]) -> list[tuple[int, int, float]]:
        """(document, ordinal, score), the best passage of each document first."""
        wanted = [term for term in dict.fromkeys(terms(query)) if term not in STOP_WORDS][:64]
        if not wanted or limit < 1:
            return []
        match = " OR ".join(f'"{term}"' for term in wanted)
        rows = self._store.query(
            "SELECT p.document, p.ordinal, -f.score FROM (SELECT rowid, bm25(words, 2.0, 1.0) AS score FROM words WHERE words MATCH ? "
            "ORDER BY score LIMIT ?) f JOIN passages p ON p.id = f.rowid ORDER BY f.score",
            (match, limit * 5),
        )
        first, second, seen = [], [], set()
        for document, ordinal, score in rows:
            (second if document in seen else first).append((document, ordinal, score))
            seen.add(document)
        return (first + second)[:limit]
