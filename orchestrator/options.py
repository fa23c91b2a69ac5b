"""From words on the command line to values: our options, those of a workflow's input schema, and the whole input at once."""

import argparse
import os
import re
import stat
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

from orchestrator.errors import InputError
from orchestrator.events import RUN_ID
from orchestrator.json_input import parse_json
from orchestrator.limits import add_controls, option_controls, option_of
from orchestrator.text import nearest, one_line

if TYPE_CHECKING:
    from pydantic import BaseModel

    from orchestrator.workflow import Workflow

__all__ = [
    "Parser",
    "add_controls",
    "add_fields",
    "add_trace_content",
    "add_trace_options",
    "bare_input",
    "field_options",
    "field_values",
    "model_specs",
    "own_options",
    "parse",
    "read_input",
    "run_parser",
    "writable_file",
]

MAX_INPUT = 10 * 1024 * 1024
"""Bytes that `--input` and standard input may have."""

_OPTION = re.compile(r"--[A-Za-z][\w-]*(=|\Z)|-[A-Za-z]\Z")
_ROLE = re.compile(r"([A-Za-z_][\w-]*)=(.*)\Z", re.DOTALL)
_LISTS = (list, set, frozenset, tuple, Sequence, Iterable)
_SOURCES = (Path(__file__).parent, Path(__file__).parent.parent / "agents")
_KNOWN_IMPORTS = {"orchestrator", "agents", "langgraph", "langchain_core", "pydantic", "typing_extensions"}
_MADE_FIELDS = re.compile(r"create_model|make_dataclass|TypedDict\s*\(|__annotations__|\bexec\b|\beval\b|setattr|importlib|__import__")
_ANNOTATED = re.compile(r"^\s+(\w+)\s*:", re.MULTILINE)
_FIELD = "field "  # no option of ours has a space in its name


class Parser(argparse.ArgumentParser):
    """An argument parser that raises InputError instead of ending the process, and takes no abbreviations."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog=prog, add_help=False, allow_abbrev=False, **options)

    @property
    def names(self) -> list[str]:
        """Every option, as it is written; argparse has no public list."""
        return [name for action in self._actions for name in action.option_strings]

    def error(self, message: str) -> NoReturn:
        """What argparse found wrong, as an InputError."""
        option, _, what = message.removeprefix("argument ").partition(": ")
        told = f"{option.split('/')[0]} {what}" if message.startswith("argument ") else message
        raise InputError(told, remedy=f"see {self.prog} --help")


def run_parser(prog: str) -> Parser:
    """The options that every run has, without controls and fields."""
    parser = Parser(prog, usage=f"{prog} [INPUT] [--FIELD VALUE ...] [options]", formatter_class=_Help)
    group = parser.add_argument_group("options")
    model = "offline, or provider:model; ROLE=SPEC for one role; repeatable; SPEC,SPEC: the second where the first fails"
    group.add_argument("--model", action="append", default=[], metavar="SPEC[,SPEC]", help=model)
    group.add_argument("--input", metavar="JSON|@FILE|-", help="the whole input as a JSON object")
    group.add_argument("--dry-run", action="store_true", help="check everything and say what the run may cost at most; call no model")
    group.add_argument("--json", action="store_true", help="stdout holds one JSON object: the result")
    group.add_argument("--events", action="store_true", help="stdout holds one JSON event a line; the last is the result")
    group.add_argument("--output", metavar="FILE", help="write the report to FILE instead of stdout")
    group.add_argument("--run-id", metavar="ID", help="1 to 128 letters, digits, '_', '.' and '-'")
    group.add_argument("--thread", metavar="NAME", help="continue the conversation NAME, or begin it: earlier questions and answers count")
    group.add_argument("--db", metavar="URL", help="where the run is kept: sqlite:///PATH, postgresql://USER@HOST/NAME or memory://")
    add_trace_options(group)
    group.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")
    group.add_argument("--debug", action="store_true", help="tracebacks, all logs, asyncio's debug mode, what blocks the event loop")
    group.add_argument("--log-file", metavar="FILE", help="append logs to FILE instead of stderr")
    group.add_argument("--log-format", choices=("console", "json"), default="console", help="how a log line looks (default: console)")
    group.add_argument("-h", "--help", action="store_true", help="show this")
    return parser


def add_trace_options(group: "argparse._ActionsContainer") -> None:
    """How a run is traced; LangSmith's own variables say the rest."""
    group.add_argument("--trace-project", metavar="NAME", help="LangSmith's project (default: LANGSMITH_PROJECT)")
    group.add_argument("--trace-tag", action="append", default=[], metavar="TAG", help="a tag of every span in LangSmith; repeatable")
    sampling = "share of runs that LangSmith is sent, from 0 to 1 (default: LANGSMITH_TRACING_SAMPLING_RATE)"
    group.add_argument("--trace-sampling", type=_share, metavar="SHARE", help=sampling)
    group.add_argument("--trace-otlp", action="store_true", help="send spans to the OpenTelemetry collector of OTEL_EXPORTER_OTLP_ENDPOINT")
    add_trace_content(group)


def add_trace_content(group: "argparse._ActionsContainer") -> None:
    """How much of texts a trace holds that leaves the store."""
    content = "prompts, answers and errors in what is sent or exported: none, redacted (without keys; the default) or full"
    group.add_argument("--trace-content", choices=("none", "redacted", "full"), metavar="HOW", help=content)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{one_line(text, 40)!r} is not a number from 0 to 1")
    return share


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


def parse(parser: Parser, words: Sequence[str], *, fields_known: bool = True) -> tuple[argparse.Namespace, list[str]]:
    """The options of `words`, and what remains: the INPUT. Without `fields_known` unknown options are left to a later look."""
    head, tail = (list(words), [])
    if "--" in head:
        place = head.index("--")
        head, tail = head[:place], head[place + 1 :]
    found, rest = parser.parse_known_args(head)
    if fields_known:
        for word in rest:
            if _OPTION.match(word):
                _refuse_option(parser, word.partition("=")[0])
    return found, [*rest, *tail]


def _refuse_option(parser: Parser, option: str) -> NoReturn:
    near = nearest(option, parser.names, 0.7)
    raise InputError(f"unknown option {option!r}", remedy=f"did you mean {near}?" if near else f"see {parser.prog} --help")


def field_options(model: "type[BaseModel]", parser: Parser) -> dict[str, str]:
    """The option of each input field; "" where an option of ours has that name and the field is reached by --input alone."""
    taken = set(parser.names)
    options = {}
    for name, info in model.model_fields.items():
        option = option_of(name)
        clashes = {option, "--no" + option[1:]} if _is_flag(info.annotation) else {option}
        options[name] = "" if clashes & taken else option
        taken |= clashes
    return options


def add_fields(parser: Parser, model: "type[BaseModel]", title: str) -> None:
    """An option for each field of a workflow's input."""
    group = parser.add_argument_group(title)
    for name, option in field_options(model, parser).items():
        info = model.model_fields[name]
        if not option:
            continue
        shared: dict[str, Any] = {"dest": _FIELD + name, "default": argparse.SUPPRESS, "help": _help(info)}
        if _is_flag(info.annotation):
            group.add_argument(option, action=argparse.BooleanOptionalAction, **shared)
        elif _is_list(info.annotation):
            group.add_argument(option, nargs="+", action="extend", metavar=name.upper(), **shared)
        else:
            group.add_argument(option, metavar=name.upper(), **shared)


def _help(info: Any) -> str:
    from orchestrator.drawing import type_name

    default = "" if info.is_required() or info.default in (None, [], "") or info.default_factory else f" (default: {info.default})"
    text = one_line(f"{info.description or type_name(info.annotation)}{' (required)' if info.is_required() else default}", 300)
    return text.replace("%", "%%")


def field_values(found: argparse.Namespace, model: "type[BaseModel]") -> dict[str, Any]:
    """The fields that were given as options, nested ones read as JSON; raises InputError."""
    values = {}
    for key, value in vars(found).items():
        if key.startswith(_FIELD):
            name = key.removeprefix(_FIELD)
            values[name] = _field_value(option_of(name), value, model.model_fields[name].annotation)
    return values


def _field_value(option: str, value: Any, annotation: Any) -> Any:
    if isinstance(value, list):
        items = get_args(_bare(annotation))
        if not items or not _is_nested(items[0]):
            return value
        read = [parse_json(text, option) for text in value]
        return read[0] if len(read) == 1 and isinstance(read[0], list) else read
    if isinstance(value, str) and (_is_nested(annotation) or (_bare(annotation) is Any and value[:1] in ("{", "["))):
        return parse_json(value, option)
    return value


def _bare(annotation: Any) -> Any:
    """An annotation without Annotated and None."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [item for item in get_args(annotation) if item is not types.NoneType]
        if len(rest) == 1:
            return _bare(rest[0])
    return annotation


def _is_flag(annotation: Any) -> bool:
    return _bare(annotation) is bool


def _is_list(annotation: Any) -> bool:
    bare = _bare(annotation)
    return (get_origin(bare) or bare) in {*_LISTS, *(get_origin(kind[Any]) for kind in (Sequence, Iterable))}


def _is_nested(annotation: Any) -> bool:
    """Whether a value can only be written as JSON: an object, a list in a list, or a choice between such."""
    bare = _bare(annotation)
    if get_origin(bare) in (Union, types.UnionType):
        return all(_is_nested(item) for item in get_args(bare) if item is not types.NoneType)
    if get_origin(bare) is Literal or bare is Any:
        return False
    kind = get_origin(bare) or bare
    if _is_list(bare) or (isinstance(kind, type) and issubclass(kind, Mapping)):
        return True
    return any(hasattr(kind, mark) for mark in ("model_fields", "__required_keys__", "__dataclass_fields__"))


def model_specs(given: Sequence[str]) -> str | dict[str, str | list[str]] | None:
    """`--model SPEC` and `--model ROLE=SPEC` as the runner takes them; the last one of a role counts.

    `SPEC,SPEC` is a list: the second is asked where the first fails.
    """
    if not given:
        return None
    from orchestrator.models import model_names

    specs: dict[str, str | list[str]] = {}
    for word in given:
        match = _ROLE.match(word)
        role, text = (match[1], match[2]) if match else ("", word)
        names = model_names(text, f"--model {role}=" if role else "--model")
        specs[role] = names if len(names) > 1 else names[0]
    only = specs.get("")
    return only if specs.keys() == {""} and isinstance(only, str) else specs


def own_options(prog: str, words: Sequence[str], path: Path | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Our options and the controls, checked before the workflow is loaded; its fields are left to a later look."""
    parser = run_parser(prog)
    found, rest = parse(parser, words, fields_known=False)
    for word in rest:
        option = word.partition("=")[0]
        if _OPTION.match(word) and (len(option) == 2 or (path is not None and _is_written_nowhere(option, path, parser))):
            _refuse_option(parser, option)
    controls = {}
    if any(word.startswith("--") for word in rest):
        add_controls(parser)
        found, rest = parse(parser, words, fields_known=False)
        controls = option_controls(found)
    _check_run_id(found.run_id)
    if found.dry_run and found.events:
        raise InputError("--dry-run runs nothing, so there are no --events", remedy="leave one out; --json gives the forecast as JSON")
    if found.json and found.events:
        raise InputError("--json and --events exclude each other: each says what stdout holds", remedy="choose one")
    return found, controls


def _is_written_nowhere(option: str, path: Path, parser: Parser) -> bool:
    """Whether no field of the workflow in this file can have this option: a quick no to what need not be loaded to be refused.

    Sure only where the file imports nothing beyond this project and the libraries that it stands on, so that every name of a field
    is written in one of the files at hand; and where nothing there is near it, so that loading would find no better answer.
    """
    try:
        source = path.read_text(encoding="utf-8")
        ours = [file.read_text(encoding="utf-8") for folder in _SOURCES for file in folder.rglob("*.py")]
    except (OSError, UnicodeDecodeError):
        return False
    imported = {name.partition(".")[0] for name in re.findall(r"^\s*(?:from|import)\s+([\w.]+)", source, re.MULTILINE)}
    if not imported <= _KNOWN_IMPORTS | sys.stdlib_module_names or _MADE_FIELDS.search(source):
        return False
    name = option.lstrip("-").replace("-", "_")
    names = {name, name.removeprefix("no_")}
    if "messages" in names:
        return False
    for text in (source, *ours):
        if any(each in text and re.search(rf"\b{re.escape(each)}\b", text) for each in names):
            return False
    if nearest(option, parser.names, 0.8):
        return True
    fields = {"messages", *_ANNOTATED.findall(source)}
    further = {"budget_usd", *_ANNOTATED.findall("\n".join(ours))}
    return not any(nearest(each, fields) or nearest(each, further, 0.85) for each in names)


def _check_run_id(given: str | None) -> None:
    if given is not None and not RUN_ID.fullmatch(given):
        raise InputError(f"--run-id is not usable: {one_line(given, 80)!r}", remedy="use 1 to 128 letters, digits, '_', '.' and '-'")


def writable_file(option: str, given: str | None) -> Path | None:
    """The path of a file that can be written to; raises InputError where it cannot, and writes nothing."""
    if given is None:
        return None
    path = Path(given).expanduser()
    if not given.strip() or "\0" in given:
        raise InputError(f"{option} names no file", remedy=f"give {option} FILE")
    folder = path.parent
    try:
        mode = path.stat().st_mode if path.exists() else None
        usable = folder.is_dir()
    except OSError as error:
        raise InputError(f"{option} cannot be used: {error.strerror}", where=given) from error
    if mode is not None and stat.S_ISDIR(mode):
        raise InputError(f"{option} is a folder, not a file", where=given, remedy=f"name a file in it: {Path(given) / 'report.md'}")
    if not usable:
        what = "is no folder" if folder.exists() else "does not exist"
        raise InputError(f"{option}: the folder {str(folder)!r} {what}", where=given, remedy="make the folder first")
    if not os.access(path if mode is not None and not stat.S_ISREG(mode) else folder, os.W_OK):
        raise InputError(f"{option} cannot be written: no permission", where=given, remedy="choose a folder that you may write to")
    return path


def read_input(given: str) -> dict[str, Any]:
    """The value of --input: JSON itself, `@FILE`, or `-` for standard input; raises InputError."""
    if given == "-":
        text, source = _read_stdin("--input -"), "standard input"
    elif given.startswith("@"):
        text, source = _read_file(given[1:]), given[1:]
    else:
        text, source = given, "--input"
    value = parse_json(text, source)
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(value), "a number")
        raise InputError(f"the input is {kind}, not a JSON object", where=f"in {source}", remedy='write {"field": value, ...}')
    return value


def _read_file(name: str) -> str:
    path = Path(name).expanduser()
    try:
        mode = path.stat().st_mode
        # A shell's <(...) is a pipe under /dev/fd; any other pipe could keep us waiting for ever.
        if not stat.S_ISREG(mode) and not (stat.S_ISFIFO(mode) and name.startswith(("/dev/fd/", "/proc/self/fd/", "/dev/stdin"))):
            raise InputError(f"--input @{name} is not a regular file", remedy="give a file that holds one JSON object")
        with path.open("rb") as file:
            return _decoded(file.read(MAX_INPUT + 1), name)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"--input @{name} cannot be read: {reason}", remedy="give a file that holds one JSON object") from error


def bare_input(rest: list[str], workflow: "Workflow", values: dict[str, Any], given: dict[str, Any], *, stdin_used: bool) -> dict[str, Any]:
    """The bare INPUT, or several where the field is a list, under the name of the field that it fills; raises InputError."""
    field = workflow.text_field
    if not rest:
        took = next((name for name, value in given.items() if isinstance(value, list) and len(value) > 1), None)
        if took and field and field not in values and not workflow.talks and workflow.input_model.model_fields[field].is_required():
            option = option_of(took)
            where = f"{option} took {len(given[took])} values, the last is {one_line(given[took][-1], 80)!r}"
            raise InputError(f"{field!r} is missing", where=where, remedy=f"put the INPUT before {option}")
        return {}
    from orchestrator.inputs import takes_several  # with the workflow it is there

    several = field is not None and takes_several(workflow.input_model, field)
    if len(rest) > 1 and not several:
        raise InputError(f"one INPUT is taken, and {one_line(rest[1], 80)!r} is one more", remedy="put quotes around a text with spaces")
    if field is None:
        what = f"workflow {workflow.name!r} has no text field for the INPUT {one_line(rest[0], 80)!r}"
        raise InputError(what, remedy="see --help")
    if field in values:
        raise InputError(f"{field!r} is given twice: as INPUT and by an option", remedy="give it once")
    if rest[0] == "-" and stdin_used:
        raise InputError("standard input cannot be both the INPUT and --input", remedy="give one of them another way")
    texts = [_read_stdin("INPUT -").rstrip("\r\n") if word == "-" and len(rest) == 1 else _whole_text(word) for word in rest]
    return {field: texts if several else texts[0]}


def _whole_text(word: str) -> str:
    """A word of the command line as text: in the C locale its UTF-8 arrives byte by byte, as halves of surrogate pairs."""
    try:
        return os.fsencode(word).decode("utf-8")
    except UnicodeError:
        raise InputError("the INPUT is not UTF-8", remedy="give the text in UTF-8") from None


def _read_stdin(what: str) -> str:
    """Standard input, whole; raises InputError where it is closed, too long or not UTF-8."""
    if sys.stdin is None or sys.stdin.closed:
        raise InputError(f"{what}: standard input is closed", remedy="give the text itself, or --input @FILE")
    return _decoded(sys.stdin.buffer.read(MAX_INPUT + 1), "standard input")


def _decoded(content: bytes, source: str) -> str:
    if len(content) > MAX_INPUT:
        raise InputError(f"the input is longer than {MAX_INPUT // 1024 // 1024} MB", where=f"in {source}", remedy="give documents as files")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"the input is not UTF-8: byte 0x{content[error.start]:02x}"
        raise InputError(what, where=f"at byte {error.start} of {source}", remedy="save it as UTF-8") from error
