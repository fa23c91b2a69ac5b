"""The inputs of a batch: one JSON value a line, read line by line, each with an id of its own and the id of its run."""

import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from orchestrator.errors import InputError
from orchestrator.inputs import takes_several
from orchestrator.json_input import parse_json
from orchestrator.text import one_line

if TYPE_CHECKING:
    from orchestrator.workflow import Workflow

__all__ = ["LONGEST_ID", "MAX_LINE", "Inputs", "Item", "Line", "Survey", "bad_lines", "read_lines"]

MAX_LINE = 10 * 1024 * 1024
"""Bytes that a line may have; of a longer one no more than this is ever in memory."""

LONGEST_ID = 200
"""Characters of an input's own id."""

_NAMED = 10  # bad lines that are told one by one
_PIECE = 1024 * 1024
_MARK = b"\xef\xbb\xbf"
_REMEDY = 'write one JSON object a line: {"field": "value"}'
_OTHER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is not blank, without its end; `content` is None where it is longer than MAX_LINE. `digest` is of all of it."""

    number: int
    content: bytes | None
    size: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Item:
    """One input: `values` for the workflow, or the `error` that makes it none.

    `run_id` is the same for the same content, wherever its line stands; of equal ones the first, the second ... have one each.
    """

    line: int
    id: str | int
    run_id: str
    values: Mapping[str, Any] | None = None
    error: str = ""


@dataclass(slots=True)
class Survey:
    """What a look at all the lines found; `there` of the `total` inputs have their result already, as `statuses` counts."""

    total: int = 0
    bad: int = 0
    there: int = 0
    named: list[str] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)


def read_lines(file: BinaryIO) -> Iterator[Line]:
    """The lines of a file that is at its start: blank ones are counted and left out, and so is a byte order mark."""
    number = 0
    while piece := file.readline(MAX_LINE + 2):
        number += 1
        if number == 1:
            _check_encoding(piece)
            piece = piece.removeprefix(_MARK)
        digest, size, whole = hashlib.blake2b(), len(piece), piece.endswith(b"\n") or len(piece) < MAX_LINE + 2
        if not whole:
            digest.update(piece)
            while not whole and (more := file.readline(_PIECE)):
                digest.update(more)
                size, whole = size + len(more), more.endswith(b"\n")
            yield Line(number, None, size - whole, digest.digest())
            continue
        content = piece.removesuffix(b"\n").removesuffix(b"\r")
        if not content.strip():
            continue
        digest.update(content)
        yield Line(number, content if len(content) <= MAX_LINE else None, len(content), digest.digest())


def _check_encoding(start: bytes) -> None:
    for mark, name in _OTHER_MARKS.items():
        if start.startswith(mark):
            raise InputError(f"the inputs are {name}, not UTF-8", remedy="save the file as UTF-8")


class Inputs:
    """The inputs in a file of JSON lines, for a workflow; `common` are fields that every line has unless it gives its own.

    A line is an object with the fields of the workflow's input, and perhaps an `id`; or a text, which fills the first text field.
    Raises InputError where the file cannot be read again and again. Every pass over it gives the same items.
    """

    def __init__(self, path: Path | str, workflow: "Workflow", batch: str, common: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.name = str(path)
        self._workflow = workflow
        self._batch = batch
        self._common = dict(common or {})
        self._seen: tuple[int, ...] | None = None
        self._keeps_id = "id" in workflow.input_model.model_fields

    def survey(self, there: Mapping[str, str]) -> Survey:
        """Check every line without keeping it; `there`: by run id, the status of each result that is there already.

        Raises InputError where there is no input at all.
        """
        found = Survey()
        for item in self.items():
            found.total += 1
            if item.error:
                found.bad += 1
                if len(found.named) < _NAMED:
                    found.named.append(f"line {item.line}: {item.error}")
            status = there.get(item.run_id)
            if status is not None:
                found.there += 1
                found.statuses[status] = found.statuses.get(status, 0) + 1
        if not found.total:
            raise InputError("there is no input in the file", where=self.name, remedy=_REMEDY)
        return found

    def items(self) -> Iterator[Item]:
        """The inputs in order; raises InputError where the file is not the one that was read before."""
        ids: dict[bytes, int] = {}
        alike: dict[bytes, int] = {}
        with self._opened() as file:
            for line in read_lines(file):
                self._check_unchanged(file)
                yield self._item(line, ids, alike)

    def same_file(self, other: Path) -> bool:
        """Whether `other` is this file by another name."""
        return other.exists() and os.path.samefile(self.path, other)

    def _opened(self) -> io.BufferedReader:
        if self.name == "-":
            what = "the inputs cannot be standard input: a batch that goes on reads them again"
            raise InputError(what, remedy="write them to a file, and give its name")
        try:
            mode = self.path.stat().st_mode
            if not stat.S_ISREG(mode):
                what = "is a folder" if stat.S_ISDIR(mode) else "is no regular file, which could be read again when the batch goes on"
                raise InputError(f"the inputs cannot be read: {self.name!r} {what}", remedy="give a file of JSON lines")
            file = self.path.open("rb")
        except OSError as error:
            what = f"the inputs cannot be read: {error.strerror or error}"
            raise InputError(what, where=self.name, remedy="give a file of JSON lines") from error
        except ValueError as error:
            raise InputError(
                f"the inputs cannot be read: {error}", where=one_line(self.name), remedy="give a file of JSON lines"
            ) from error
        self._check_unchanged(file)
        return file

    def _check_unchanged(self, file: BinaryIO) -> None:
        found = os.fstat(file.fileno())
        now = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if self._seen is not None and now != self._seen:
            raise InputError(
                "the inputs were changed while the batch read them",
                where=self.name,
                remedy="start the same command again: what is done stays, and what is new or changed is done",
            )
        self._seen = now

    def _item(self, line: Line, ids: dict[bytes, int], alike: dict[bytes, int]) -> Item:
        own, values, identity, error = None, None, line.digest, ""
        try:
            given = self._read(line)
            own = _own_id(given, strict=not self._keeps_id)
            values = self._values(given)
            identity = json.dumps([own, values], sort_keys=True).encode()
            _take(line.number if own is None else own, line.number, ids)
            self._workflow.validate_input(values)
        except InputError as found:
            error = str(found)
        digest = hashlib.sha256(b"bad " + identity if error else identity).digest()
        alike[digest[:12]] = nth = alike.get(digest[:12], 0) + 1
        run_id = f"{self._batch}-{hashlib.sha256(digest + nth.to_bytes(8, 'big')).hexdigest()[:16]}"
        return Item(line.number, line.number if own is None else own, run_id, None if error else values, error)

    def _read(self, line: Line) -> Any:
        if line.content is None:
            what = f"the line has {line.size:,} bytes, and {MAX_LINE // 1024 // 1024} MB is the most"
            raise InputError(what, where=f"at {self.name}:{line.number}", remedy="give documents as files")
        try:
            text = line.content.decode("utf-8")
        except UnicodeDecodeError as error:
            what = f"the line is not UTF-8: byte 0x{line.content[error.start]:02x}"
            where = f"at byte {error.start + 1} of {self.name}:{line.number}"
            raise InputError(what, where=where, remedy="save the file as UTF-8") from error
        return parse_json(text, self.name, line=line.number, remedy=_REMEDY)

    def _values(self, given: Any) -> dict[str, Any]:
        if isinstance(given, str):
            field = self._workflow.text_field
            if field is None:
                what = f"the line is a text, and workflow {self._workflow.name!r} has no text field"
                raise InputError(what, remedy="write an object with the workflow's fields")
            return {**self._common, field: [given] if takes_several(self._workflow.input_model, field) else given}
        if not isinstance(given, dict):
            kind = {list: "a list", bool: "true or false", type(None): "null"}.get(type(given), "a number")
            raise InputError(f"the line is {kind}, not an object or a text", remedy=_REMEDY)
        return {**self._common, **{key: value for key, value in given.items() if key != "id" or self._keeps_id}}


def _own_id(given: Any, *, strict: bool) -> str | int | None:
    """The id that an input has of its own; what can be none is an InputError where `strict`."""
    own = given.get("id") if isinstance(given, dict) else None
    if own is None or (isinstance(own, str | int) and not isinstance(own, bool) and len(str(own)) <= LONGEST_ID):
        return own
    if not strict:
        return None
    what = f"'id' is a text or a whole number of up to {LONGEST_ID} characters, not {one_line(repr(own), 60)}"
    raise InputError(what, remedy="give another id, or none: then the number of the line is the id")


def _take(own: str | int, line: int, ids: dict[bytes, int]) -> None:
    """Raises InputError where an earlier line has this id; from now on this one has."""
    earlier = ids.setdefault(hashlib.sha256(str(own).encode()).digest()[:12], line)
    if earlier != line:
        raise InputError(f"id {one_line(str(own), 80)!r} is that of line {earlier} already", remedy="give each input an id of its own")


def bad_lines(survey: Survey, name: str) -> InputError:
    """The error that refuses a batch for its bad lines."""
    more = [f"and {survey.bad - len(survey.named):,} more"] if survey.bad > len(survey.named) else []
    return _BadLinesError(
        f"{survey.bad:,} of {survey.total:,} lines of {name} are no input, and nothing was started", [*survey.named, *more]
    )


class _BadLinesError(InputError):
    def __init__(self, what: str, lines: Sequence[str]) -> None:
        self.bad = [one_line(line, 300) for line in lines]
        super().__init__(what, remedy="mend them, or leave --strict out: then each of them has its error as its result")

    def lines(self) -> list[str]:
        return [self.what, *self.bad, self.remedy]
