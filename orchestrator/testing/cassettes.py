"""A finished run as a folder that is a test: played with the code as it is now, without a network, a key or a database.

def test_the_recorded_run():
    replay_cassette("tests/cassettes/capital")
"""

import asyncio
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from orchestrator.controls import Controls
from orchestrator.documents.files import Listed, documents_folder, list_files
from orchestrator.errors import InputError
from orchestrator.replaying import Replayed, play
from orchestrator.runner import Graph
from orchestrator.storage import open_storage
from orchestrator.storage.journal import JournalUsage
from orchestrator.tapes import Tape, TapedCall, passages_of, read_tape, renamed
from orchestrator.text import one_line, secrets_of, without
from orchestrator.workflow import Workflow

__all__ = ["load_cassette", "replay_cassette", "save_cassette"]

_FORMAT = 1
_RUN, _CALLS, _FILES = "run.json", "calls.json", "files"
_LARGEST = 20_000_000
"""Bytes of documents that a cassette holds at most: it belongs beside the tests that run it."""

_NUMBER = re.compile(r"(\d+)")
_LINES = "$lines"  # a text of several lines is stored as a list of them, so that a change of it is read line by line
_OF_A_CALL = ("scope", "kind", "role", "model", "state", "error", "request", "response")
_OF_A_RESULT = ("status", "output", "branches", "error", "model")


def replay_cassette(folder: str | Path, workflow: str | Workflow | Graph | None = None) -> Replayed:
    """Play a cassette; raises AssertionError with what is different where a request or the outcome is another one.

    `workflow`: for one that was made in Python; else it is looked up from the working directory, as it was when the run was started.
    """
    path = Path(folder)
    played = _outside_a_loop(lambda: asyncio.run(_played(path, workflow)))
    if not played.identical:
        raise AssertionError(f"{path}: the run is not what was recorded\n\n" + "\n\n".join(played.differences))
    return played


async def _played(path: Path, workflow: str | Workflow | Graph | None) -> Replayed:
    tape = await asyncio.to_thread(load_cassette, path)
    files = await asyncio.to_thread(lambda: (path / _FILES).resolve() if (path / _FILES).is_dir() else None)
    return await play(tape, workflow, folder=files)


def _outside_a_loop(work: Callable[[], Replayed]) -> Replayed:
    """What `work` comes to; in a thread where the test itself runs in an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1, thread_name_prefix="cassette") as thread:
        return thread.submit(work).result()


async def save_cassette(
    run_id: str, folder: str | Path, *, db: str | None = None, workflow: str | Workflow | Graph | None = None
) -> Replayed:
    """Write a finished run and the documents that it read to `folder`, where its replay is identical; else nothing is written.

    A cassette that is there is replaced. Raises InputError for a run that cannot be played, and where the folder holds anything else.
    """
    target = Path(folder)
    await asyncio.to_thread(_check_target, target)
    async with open_storage(db) as storage:
        record = await storage.runs.get(run_id)
        if record is None:
            raise await storage.runs.unknown(run_id)
        tape = await read_tape(storage, record)
    if tape.start is not None:
        what = f"run {run_id!r} was forked off run {record.parent!r}: a cassette begins with an input"
        raise InputError(what, remedy="replay it from the store, or save a run that was started as one")
    played = await play(tape, workflow)
    if played.identical:
        try:
            await asyncio.to_thread(_write, tape, target, played.documents)
        except OSError as error:
            raise InputError(
                f"the cassette cannot be written: {error.strerror or error}", where=str(target), remedy="name another folder"
            ) from error
    return played


def _check_target(target: Path) -> None:
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / _RUN).is_file())):
        raise InputError(f"{one_line(target, 120)!r} is there, and is no cassette", remedy="name a folder that is new or holds a cassette")


def _write(tape: Tape, target: Path, documents: Sequence[str]) -> None:
    listed = _documents(tape, documents)
    calls = _ordered(tape.calls)
    texts = {_RUN: _dumped(_run_of(tape), "the run"), _CALLS: _dumped([_call_of(call) for call in calls], "an answer of a call")}
    target.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target / _FILES, ignore_errors=True)
    for file in listed:
        place = target / _FILES / file.uri
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.path, place)
    for name, text in texts.items():
        (target / name).write_text(text, encoding="utf-8", newline="\n")


def _documents(tape: Tape, documents: Sequence[str]) -> list[Listed]:
    """The files to take along; raises InputError where they are named in a way that holds on this machine only."""
    if not documents:
        return []
    named = documents_folder.set(tape.folder)
    try:
        listed = list_files(documents).files
    finally:
        documents_folder.reset(named)
    for file in listed:
        if os.path.isabs(file.uri) or ".." in Path(file.uri).parts or file.uri.startswith("~"):
            what = f"the document {one_line(file.uri, 120)!r} lies outside of the folder that the run was started in"
            raise InputError(what, remedy="run it from a folder above its documents, and name them relative to that")
    size = sum(file.size for file in listed)
    if size > _LARGEST:
        raise InputError(f"the documents of the run have {size:,} bytes, and a cassette holds {_LARGEST:,}", remedy="run it with fewer")
    return listed


def _ordered(calls: Iterable[TapedCall]) -> list[TapedCall]:
    """The calls branch by branch, each branch's in the order in which they were answered; documents numbered as they come."""
    in_order = sorted(calls, key=lambda call: [int(part) if part.isdigit() else part for part in _NUMBER.split(call.scope)])
    numbers: dict[str, str] = {}
    for call in in_order:
        for number in passages_of([call.request, call.response]):
            numbers.setdefault(number, str(len(numbers) + 1))
    return [replace(call, request=renamed(call.request, numbers), response=renamed(call.response, numbers)) for call in in_order]


def _run_of(tape: Tape) -> dict[str, Any]:
    defaults = Controls().model_dump(mode="json")
    result = {key: tape.result.get(key) for key in _OF_A_RESULT}
    result["branches"] = [{key: value for key, value in branch.items() if key != "seconds"} for branch in result["branches"] or []]
    return {
        "format": _FORMAT,
        "run_id": tape.run_id,
        "workflow": tape.workflow,
        "spec": tape.spec,
        "input": tape.input,
        "models": tape.models,
        "controls": {key: value for key, value in tape.controls.items() if value != defaults.get(key)},
        "boundary": tape.boundary,
        "answers": tape.answers,
        "sure": tape.sure,
        "used": [[role, model, branch, list(usage)] for role, model, branch, usage in tape.sums],
        "result": result,
    }


def _call_of(call: TapedCall) -> dict[str, Any]:
    fields = asdict(call)
    return {key: fields[key] for key in _OF_A_CALL if fields[key] is not None}


def _dumped(value: Any, what: str) -> str:
    """`value` as JSON to read, without the values of secret environment variables; raises InputError for what JSON does not hold."""
    try:
        text = json.dumps(_in_lines(value), indent=1, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} is no JSON: {one_line(error)}", remedy="let the tool answer with text, numbers, lists and objects"
        ) from error
    return without((json.dumps(secret)[1:-1] for secret in secrets_of(os.environ).values()), text, "[key]") + "\n"


def _in_lines(value: Any) -> Any:
    if isinstance(value, str):
        return {_LINES: value.split("\n")} if "\n" in value else value
    if isinstance(value, Mapping):
        return {key: _in_lines(item) for key, item in value.items()}
    return [_in_lines(item) for item in value] if isinstance(value, list | tuple) else value


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return "\n".join(value[_LINES]) if value.keys() == {_LINES} else {key: _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list) else value


def load_cassette(folder: Path) -> Tape:
    """The run that a folder holds; raises InputError where it holds none that can be read."""
    try:
        run, calls = (_whole(json.loads((folder / name).read_text(encoding="utf-8"))) for name in (_RUN, _CALLS))
    except (OSError, ValueError) as error:
        remedy = f"python -m orchestrator replay RUN --save {one_line(folder, 80)}"
        raise InputError(f"{one_line(folder, 120)!r} is no cassette: {one_line(error)}", remedy=remedy) from error
    if run.get("format") != _FORMAT:
        what = f"the cassette {one_line(folder, 120)!r} has format {one_line(run.get('format'), 20)}, and this version reads {_FORMAT}"
        raise InputError(what, remedy="save it once more")
    defaults = Controls().model_dump(mode="json")
    return Tape(
        run_id=run["run_id"],
        workflow=run["workflow"],
        spec=run["spec"],
        folder="",
        input=run["input"],
        models=run["models"],
        controls={**defaults, **run["controls"]},
        boundary=run["boundary"],
        answers=run["answers"],
        result=run["result"],
        calls=[TapedCall(**{"response": None, **call}) for call in calls],
        sums=[(role, model, branch, JournalUsage(*used)) for role, model, branch, used in run["used"]],
        sure=run["sure"],
    )
