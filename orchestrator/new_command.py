"""`python -m orchestrator new NAME`: a workflow to begin with, and a test of it that passes."""

import importlib.util
import keyword
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.errors import InputError, OutputError
from orchestrator.options import Parser, parse
from orchestrator.output import say, write_text
from orchestrator.places import SHIPPED, shown
from orchestrator.text import one_line

__all__ = ["new_command", "new_parser"]

PROG = "python -m orchestrator"
_ABOUT = "Write workflows/NAME.py, a workflow to begin with, and tests/test_NAME.py, which tests it. Nothing is overwritten."
_TEMPLATES = Path(__file__).parent / "templates"
_KINDS = {"graph": '"A text of several sentences. It is summed up."', "research": '"Your question" --documents FOLDER'}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)


def new_parser() -> Parser:
    """The options of `new`."""
    parser = Parser(f"{PROG} new", usage=f"{PROG} new NAME [--from graph|research]")
    kinds = "graph, a graph of your own that asks a model (the default), or research, the four shipped agents"
    parser.add_argument("--from", dest="kind", choices=list(_KINDS), default="graph", metavar="KIND", help=f"what to begin with: {kinds}")
    parser.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")
    parser.add_argument("--debug", action="store_true", help="tracebacks")
    parser.add_argument("-h", "--help", action="store_true", help="show this")
    return parser


def new_command(words: Sequence[str], reserved: Collection[str]) -> int:
    """Write the two files in the working directory; a name among `reserved` would never be run. Raises InputError, OutputError."""
    parser = new_parser()
    found, rest = parse(parser, words)
    if found.help:
        write_text(f"{_ABOUT}\n\n{parser.format_help()}")
        return 0
    if len(rest) != 1:
        what = f"new takes one NAME, not {len(rest)}" if rest else "new takes a NAME"
        raise InputError(what, remedy=f"{PROG} new NAME")
    name = _checked(rest[0], reserved)
    module, test = Path.cwd() / "workflows" / f"{name}.py", Path.cwd() / "tests" / f"test_{name}.py"
    for path in (module, test):
        if path.exists() or path.is_symlink():
            raise InputError(f"{shown(path)} is there already", remedy="choose another name, or move the file away: nothing is overwritten")
    _write(module, f"{found.kind}.txt", name)
    try:
        _write(test, f"{found.kind}_test.txt", name)
    except OutputError:
        with suppress(OSError):
            module.unlink()  # both or none
        raise
    if not found.quiet:
        say(f"wrote {shown(module)}", f"wrote {shown(test)}")
        say("next:", f"  {PROG} {name} {_KINDS[found.kind]}", f"  {_pytest()} {shown(test)}", f"  {PROG} describe {name}")
    return 0


def _checked(name: str, reserved: Collection[str]) -> str:
    """A name that can be a module's and is nobody else's; raises InputError."""
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        plain = re.sub(r"\W+", "_", name.removesuffix(".py").lower(), flags=re.ASCII).strip("_")[:64]
        near = f", such as {plain}" if _NAME.fullmatch(plain) and not keyword.iskeyword(plain) else ""
        raise InputError(
            f"{one_line(name, 80)!r} is no name for a workflow", remedy=f"take small letters, digits and '_', a letter first{near}"
        )
    if name in reserved:
        raise InputError(f"{name!r} is a command: a workflow of this name would never be run", remedy="choose another name")
    if (SHIPPED / f"{name}.py").is_file():
        raise InputError(f"{name!r} is a workflow that comes with the package", remedy=f"choose another name, such as my_{name}")
    return name


def _write(path: Path, template: str, name: str) -> None:
    text = (_TEMPLATES / template).read_text(encoding="utf-8").replace("__NAME__", name)
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        remedy = "run it in a folder that you may write to"
        raise OutputError(f"{shown(path)} cannot be written: {error.strerror}", remedy=remedy) from error


def _pytest() -> str:
    return "pytest" if importlib.util.find_spec("pytest") else "pip install pytest && pytest"
