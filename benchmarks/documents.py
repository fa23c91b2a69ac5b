"""How fast documents are indexed, opened again and searched, and how often a search finds what a question needs.

    python -m benchmarks.documents [--files 10000] [--quality FOLDER ...]

Each FOLDER holds `docs/` and a `gold.jsonl` of lines like {"question": "...", "evidence": [{"source": "a.txt"}, ...]}. Recall is the
share of a question's documents among the first five that are found, beside one BM25 query of the same index.
"""

import argparse
import asyncio
import json
import random
import re
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator.documents import Library, open_library
from orchestrator.documents.words import STOP_WORDS

_SIZE = 2048  # bytes of a generated file
_DOCUMENTS = 5  # that count


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000, help="how many files of 2 KB to index (0: none)")
    parser.add_argument("--quality", nargs="*", default=[], metavar="FOLDER", help="folders with docs/ and gold.jsonl")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.files:
            asyncio.run(_speed(Path(scratch), options.files))
        if options.quality:
            asyncio.run(_quality(Path(scratch), options.quality))


async def _speed(scratch: Path, count: int) -> None:
    folder, home = scratch / "files", scratch / "home"
    topics = _generate(folder, count)
    for label in ("first index", "unchanged"):
        wall, cpu = time.perf_counter(), time.process_time()
        library = await open_library([str(folder)], home=home)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        rate = f"{library.opened / cpu:,.0f} files/s of one core" if library.opened else "no file opened"
        print(f"{label:<12} {library.read:>6} files, {library.passages} passages: {wall:.2f} s wall, {cpu:.2f} s cpu; {rate}")
        if label == "first index":
            await library.aclose()
    milliseconds = [await _timed(library, topics, n) for n in range(60)]
    ordered = sorted(milliseconds[1:])
    median, most = statistics.median(ordered), ordered[int(0.95 * len(ordered))]
    print(f"search       median {median:.1f} ms, 95 % {most:.1f} ms, first {milliseconds[0]:.1f} ms")
    await library.aclose()


async def _timed(library: Library, topics: Sequence[str], n: int) -> float:
    started = time.perf_counter()
    await library.search(f"Which person founded the place where {topics[n * 7 % len(topics)]} and {topics[n * 31 % len(topics)]} met?", 10)
    return (time.perf_counter() - started) * 1000


def _generate(folder: Path, count: int) -> list[str]:
    """Files of invented words whose frequencies follow Zipf's law, with names of other files in them; their titles."""
    draw = random.Random(7)  # noqa: S311 - a benchmark, the same each time
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    vocabulary = ["".join(draw.choices(syllables, k=draw.randint(2, 4))) for _ in range(20_000)]
    weights = [1 / rank for rank in range(1, len(vocabulary) + 1)]
    titles = [" ".join(word.title() for word in draw.choices(vocabulary[200:], k=2)) for _ in range(count)]
    for number, title in enumerate(titles):
        words = draw.choices(vocabulary, weights, k=_SIZE // 7)
        for _ in range(6):
            words[draw.randrange(len(words))] = draw.choice(titles)
        lines = [" ".join(words[start : start + 15]).capitalize() + "." for start in range(0, len(words), 15)]
        place = folder / f"{number // 500:03}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:05}.txt").write_text(f"{title}\n\n{' '.join(lines)}"[:_SIZE], encoding="utf-8")
    return titles


async def _quality(scratch: Path, folders: Sequence[str]) -> None:
    print(f"{'recall at 5':<14} {'questions':>9} {'one BM25 query':>15} {'search':>8}")
    for folder in folders:
        lines = (Path(folder) / "gold.jsonl").read_text(encoding="utf-8").splitlines()
        questions = [(row["question"], {item["source"] for item in row["evidence"]}) for row in map(json.loads, lines) if row["evidence"]]
        docs = str(Path(folder) / "docs")
        library = await open_library([docs], home=scratch / "home")
        plain = await _plain_index(library, docs, _names(Path(docs)))
        ours, floor = [], []
        for question, gold in questions:
            found = [passage.source.uri.removeprefix(docs + "/") for passage in await library.search(question, 10)]
            ours.append(_recall(found, gold))
            floor.append(_recall(_bm25(plain, question), gold))
        plain.close()
        await library.aclose()
        print(f"{Path(folder).name:<14} {len(questions):>9} {100 * statistics.mean(floor):>15.1f} {100 * statistics.mean(ours):>8.1f}")


def _recall(found: Sequence[str], gold: set[str]) -> float:
    return len(gold & set(list(dict.fromkeys(found))[:_DOCUMENTS])) / len(gold)


def _names(docs: Path) -> list[str]:
    return sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*"))


async def _plain_index(library: Library, docs: str, names: Sequence[str]) -> sqlite3.Connection:
    """What anyone would build first: SQLite's BM25 over whole files."""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE plain USING fts5(name UNINDEXED, body, tokenize='porter unicode61 remove_diacritics 2')")
    for name in names:
        text = await library.text(f"{docs}/{name}")
        if text is not None:
            connection.execute("INSERT INTO plain VALUES(?, ?)", (name, text))
    return connection


def _bm25(connection: sqlite3.Connection, question: str) -> list[str]:
    match = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", question) if word.lower() not in STOP_WORDS)
    rows = connection.execute("SELECT name FROM plain WHERE plain MATCH ? ORDER BY rank LIMIT 10", (match,)).fetchall()
    return [row[0] for row in rows]


if __name__ == "__main__":
    main()
