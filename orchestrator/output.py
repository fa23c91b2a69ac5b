"""Results on their way out: stdout, the report's file, and what `list`, `describe` and errors look like."""

import io
import json
import os
import re
import shutil
import stat
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from orchestrator.errors import OrchestratorError, OutputError
from orchestrator.events import Event
from orchestrator.text import in_words, one_line, printable

if TYPE_CHECKING:
    import argparse

__all__ = [
    "answer_of",
    "columns",
    "deliver",
    "deliver_json",
    "describe_error",
    "description_text",
    "is_terminal",
    "open_streams",
    "own_stdout",
    "say",
    "source_lines",
    "stdout",
    "terminal_width",
    "write_event",
    "write_file",
    "write_json",
    "write_output",
    "write_text",
]


@contextmanager
def open_streams() -> Iterator[None]:
    """Make stdout and stderr take every character; a reader that leaves early ends the block quietly."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            _flush(stream)


_kept: list[TextIO | None] = []  # the stdout that is ours, while everybody else's goes to stderr


class _ToStderr(io.TextIOBase):
    """What a workflow prints: shown, but never part of the output."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text) if sys.stderr is not None else len(text)

    def flush(self) -> None:
        if sys.stderr is not None:
            sys.stderr.flush()


@contextmanager
def own_stdout() -> Iterator[None]:
    """Keep stdout for the functions of this module: inside, `print` of anybody else goes to stderr."""
    _kept.append(sys.stdout)
    try:
        with redirect_stdout(_ToStderr()):
            yield
    finally:
        _kept.pop()


def stdout() -> TextIO | None:
    """Where the output goes; None where it was closed before we started."""
    return _kept[-1] if _kept else sys.stdout


def is_terminal() -> bool:
    """Whether a person reads the output."""
    stream = stdout()
    return stream is not None and stream.isatty()


def _flush(stream: TextIO | None) -> None:
    """Flush now; where nobody reads any more, what is left goes nowhere, so that the interpreter's own flush finds no fault."""
    if stream is None or stream.closed:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def say(*lines: str) -> None:
    """Lines on stderr; where there is none, they are lost and no more than that."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            sys.stderr.write("".join(f"{printable(line)}\n" for line in lines))
            sys.stderr.flush()


def describe_error(error: OrchestratorError) -> list[str]:
    """`error: what`, where, and `do: remedy`, a line each."""
    lines = error.lines()
    remedy = [f"  do: {error.remedy}"] if error.remedy else []
    middle = lines[1 : len(lines) - len(remedy)]
    return [f"error: {error.what}", *(f"  {line}" for line in middle), *remedy]


def write_text(text: str) -> None:
    """Text on stdout; raises BrokenPipeError where nobody reads any more, and OutputError where it cannot be written."""
    stream = stdout()
    if stream is None:
        raise OutputError("stdout is closed", remedy="write to a file with --output, or to /dev/null")
    try:
        stream.write(text if text.endswith("\n") or not text else text + "\n")
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"stdout cannot be written: {error.strerror}", remedy="write to a file with --output") from error


def write_json(value: object, *, indent: int | None = None) -> None:
    """One JSON value on stdout: on one line unless `indent`; ASCII where stdout takes no more."""
    write_text(_dumped(value, indent, getattr(stdout(), "encoding", None)))


def _dumped(value: object, indent: int | None, encoding: str | None) -> str:
    text = json.dumps(value, ensure_ascii=(encoding or "").lower().replace("-", "") != "utf8", indent=indent, default=_plain)
    # What a terminal obeys or hides stands in strings only, and as an escape it is the same JSON. So does half a surrogate pair,
    # from a file name that is no UTF-8, which cannot be encoded.
    return re.sub(r"[^ -~\n]", lambda odd: odd[0] if odd[0].isprintable() else json.dumps(odd[0])[1:-1], text)


def _plain(value: object) -> object:
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if callable(dump) else one_line(value, 2000)


def write_event(event: Event, run_id: str) -> None:
    """An event as one line of JSON on stdout."""
    write_json(event.to_json(run_id))


def answer_of(output: Mapping[str, Any]) -> str | None:
    """The text that a workflow which talks comes to: its `answer`, else the last of its messages where that is a model's; None without."""
    answer, messages = output.get("answer"), output.get("messages")
    if isinstance(answer, str):
        return answer
    last = messages[-1] if isinstance(messages, list) and messages else None
    if isinstance(last, Mapping) and last.get("type") == "ai":
        from langchain_core.messages import AIMessage

        return str(AIMessage(last.get("content") or "").text)
    return None


def source_lines(output: Mapping[str, Any]) -> list[str]:
    """What an answer cites, a line each, and what is wrong with that: `[d1.2] docs/ada.md, line 3: “Ada Byron was born in London.”`."""
    cited, doubts = (
        [row for row in rows if row] if isinstance(rows, list) else [] for rows in (output.get("sources"), output.get("doubts"))
    )
    lines = []
    for source in cited:
        if isinstance(source, Mapping) and source.get("id"):
            place = ", ".join(one_line(source[key]) for key in ("uri", "where") if source.get(key))
            lines.append(f"[{one_line(source['id'], 20)}] {place}: “{one_line(source.get('quote', ''))}”")
    return lines + [f"doubtful: {one_line(doubt, 300)}" for doubt in doubts]


def _report_text(result: Mapping[str, Any]) -> str | None:
    """What a run was for: the report's markdown, else an answer with what it cites, else the output as JSON; None without any."""
    output = result.get("output") or {}
    report = output.get("report")
    if isinstance(report, str):
        return printable(report) or None
    answer = answer_of(output)
    if answer is not None:
        cited = source_lines(output)
        return printable(answer + ("\n\n" + "\n".join(cited) if cited else "")) or None
    if not output or list(output) == ["messages"]:  # a conversation in which nothing was answered
        return None
    if result.get("status") in ("cancelled", "limited", "failed") and not any(output.values()):  # it ended before there was anything
        return None
    return _dumped(output, 2, "utf-8")


def write_output(result: Mapping[str, Any]) -> None:
    """The output on stdout: a report rendered where a terminal reads it, plain text or JSON elsewhere."""
    text, output = _report_text(result), result.get("output") or {}
    if text is None:
        return
    if isinstance(output.get("report"), str) and is_terminal():
        _render(text)
    elif isinstance(output.get("report"), str) or answer_of(output) is not None:
        write_text(text)
    else:
        write_json(output, indent=2)


def _render(markdown: str) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    # No hyperlinks: they are escape sequences whose target the reader does not see.
    Console(file=stdout(), highlight=False).print(Markdown(markdown, hyperlinks=False))


def write_file(path: Path, text: str) -> None:
    """Write `text` to `path` at once or not at all; what is no regular file is written straight to. Raises OSError."""
    content = (text if text.endswith("\n") else text + "\n").encode("utf-8", "backslashreplace")
    path = path.resolve()
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        path.write_bytes(content)
        return
    import tempfile

    mask = os.umask(0)
    os.umask(mask)
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~mask
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def deliver(options: "argparse.Namespace", output: Path | None, result: Mapping[str, Any], *, shown: bool = False) -> int:
    """Write the result to where it was asked for; the run's own exit code, or 1 where its report could not be written.

    `shown`: the terminal has the answer already, as it came.
    """
    from orchestrator.outcome import EXIT_CODES

    code = EXIT_CODES[result["status"]]
    if options.quiet and result.get("error"):
        say(f"error: {result['status']}: {one_line(result['error'], 400)}")
    with suppress(BrokenPipeError):  # the run itself is over, and its code says how
        text = _report_text(result)
        if output is not None and text is not None:
            code = _write_report(options, output, text) or code
        elif not options.json and not options.events and not shown:
            write_output(result)
        if options.json:
            write_json(result)
    return code


def _write_report(options: "argparse.Namespace", path: Path, text: str) -> int:
    """Write the report's file; 1 where that failed, and then stdout has the report."""
    try:
        write_file(path, text)
    except OSError as error:
        say(f"error: --output cannot be written: {error.strerror}", f"  {path}")
        if not options.json and not options.events:
            write_text(text)  # it was paid for
        return 1
    if not options.quiet:
        say(f"report: {path}")
    return 0


def deliver_json(options: "argparse.Namespace", run_id: str, result: Mapping[str, Any]) -> None:
    """What stands in for a result, for those who read JSON: nothing where nobody asked for it."""
    with suppress(BrokenPipeError):
        if options.json:
            write_json(result)
        elif options.events:
            write_event(Event("result", result), run_id)


def columns(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Rows as text in columns two spaces apart; the last column is as wide as it is."""
    widths = [max((len(row[place]) for row in rows), default=0) for place in range(len(rows[0]) if rows else 0)]
    padded = (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(line.rstrip() + "\n" for line in padded)


def terminal_width() -> int | None:
    """Columns of the terminal that shows the output; None where none does, and lines are as long as they are."""
    return shutil.get_terminal_size().columns if is_terminal() else None


def description_text(told: Mapping[str, Any], *, width: int | None = None) -> str:
    """What `describe` says of a workflow, for people, in lines of `width` columns where it is given."""
    parts = [f"{told['name']}: {told['description']}\n" if told["description"] else f"{told['name']}\n"]
    if told["path"]:
        parts.append(f"{told['path']}\n")
    fields = [_field_row(field, told["text_field"]) for field in told["input"]]
    nodes = [(node["name"] + (" ×N" if node["many"] else ""), "-> " + (", ".join(node["to"]) or "END")) for node in told["nodes"]]
    agents = [(agent["name"], f"{_names(agent['input'])} -> {_names(agent['output'])}") for agent in told["agents"]]
    output = [(field["name"], field["type"]) for field in told["output"]]
    structure = [(row["node"], in_words(row["value"]), row["meaning"]) for row in told["structure"]]
    controls = [(_option(row), in_words(row["value"]), row["origin"], row["meaning"]) for row in told["controls"]]
    tables: dict[str, Sequence[Sequence[str]]] = {"input": fields, "output": output, "nodes": nodes, "agents": agents}
    for title, rows in {**tables, "limits of the graph": structure, "limits in force": controls}.items():
        if rows:
            parts.append(f"\n{title}\n{_table(rows, width)}")
    if told["notes"]:
        parts.append("\nnotes\n" + "".join(f"  {one_line(note, 300)}\n" for note in told["notes"]))
    return printable("".join(parts))


def _option(limit: Mapping[str, Any]) -> str:
    return f"{limit['option']} {one_line(limit['of'], 40)}=" if limit["of"] else str(limit["option"])


_NARROWEST = 30
"""Columns that a text needs beside the others; in less it stands below them."""


def _table(rows: Sequence[Sequence[str]], width: int | None) -> str:
    """Rows in columns; where `width` leaves the last one too little room it stands below its row."""
    room = 0 if width is None else width - 2 - sum(max(len(row[place]) for row in rows) + 2 for place in range(len(rows[0]) - 1))
    longest = max(len(row[-1]) for row in rows)
    if width is None or longest <= room:
        return columns(rows, indent="  ")
    if room >= max(_NARROWEST, longest // 2):
        return columns([line for row in rows for line in _wrapped(row, room)], indent="  ")
    heads = columns([row[:-1] for row in rows], indent="  ").splitlines()
    texts = [textwrap.fill(row[-1], width, initial_indent="      ", subsequent_indent="      ") for row in rows]
    return "".join(f"{head}\n{text}\n" if text else f"{head}\n" for head, text in zip(heads, texts, strict=True))


def _wrapped(row: Sequence[str], room: int) -> list[list[str]]:
    """A row as several, the last cell wrapped to `room` columns."""
    first, *others = textwrap.wrap(row[-1], room) or [""]
    return [[*row[:-1], first], *([""] * (len(row) - 1) + [other] for other in others)]


def _field_row(field: Mapping[str, Any], text_field: str | None) -> tuple[str, str, str, str]:
    default = "required" if field["required"] else f"default {json.dumps(field.get('default'), ensure_ascii=False)}"
    ways = [field["option"] or "by --input only: an option of every run has this name"]
    if field["name"] == text_field:
        ways.insert(0, "INPUT or")
    return " ".join(ways), one_line(field["type"], 60), one_line(default, 60), one_line(field["description"], 200)


def _names(fields: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(one_line(field["name"], 40) for field in fields)
