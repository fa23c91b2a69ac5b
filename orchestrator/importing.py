"""Importing a workflow's module: under a private name, within a time limit, and with an error that points at the user's line."""

import contextlib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import linecache
import os
import re
import signal
import stat
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, ModuleType

from orchestrator.errors import InputError, WorkflowLoadError
from orchestrator.places import SHIPPED, Place, shown
from orchestrator.text import one_line

__all__ = ["file_notes", "import_place", "users_code"]

_NAMESPACE = "orchestrator_workflows"
_AGENTS = SHIPPED.parent / "agents"
_lock = threading.RLock()  # one import at a time: what `agents` means is the whole process's


class _TooLong(BaseException):
    """Raised in the importing frame by the clock; no `except Exception` of the module may swallow it."""


def import_place(place: Place, folder: Path, *, limit: float) -> ModuleType:
    """The module at `place`; raises WorkflowLoadError with the user's own line where it cannot be imported in `limit` seconds."""
    with _lock, _own_agents(place, folder), users_code(place, folder, limit=limit):
        return importlib.import_module(place.module) if place.path is None else _import_file(place.name, place.path)


@contextlib.contextmanager
def users_code(place: Place, folder: Path, *, limit: float) -> Iterator[None]:
    """Runs code of the user's module; whatever it raises becomes a WorkflowLoadError, or stays the InputError that it is."""
    try:
        with _clock(limit):
            yield
    except _TooLong as error:
        what = f"{place.label} took longer than {limit:g} s to import"
        raise WorkflowLoadError(what, where=_user_line(error, place, folder), remedy="Move slow work into the nodes") from error
    except SystemExit as error:
        what = f"{place.label} ends the program when it is imported (sys.exit)"
        raise WorkflowLoadError(what, where=_user_line(error, place, folder), remedy="Put it under: if __name__ == '__main__'") from error
    except InputError as error:
        error.where = error.where or _user_line(error, place, folder)
        raise
    except Exception as error:
        what = f"{place.label} cannot be imported: {type(error).__name__}: {one_line(error, 250)}"
        raise WorkflowLoadError(what, where=_user_line(error, place, folder), remedy=_remedy(error, place)) from error


def _add_to_path(folder: Path, place: Place) -> None:
    """The working directory first, as `python -m` has it; the module's own folder last, so that it never hides a library."""
    if str(folder) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(folder))
    if place.path is not None and not place.shipped and str(place.path.parent) not in sys.path:
        sys.path.append(str(place.path.parent))


def _import_file(name: str, path: Path) -> ModuleType:
    """The file as module `orchestrator_workflows.NAME`, once as long as it does not change."""
    parent = sys.modules.get(_NAMESPACE)
    if parent is None:
        parent = sys.modules[_NAMESPACE] = ModuleType(_NAMESPACE)
        parent.__path__ = []
    full = f"{_NAMESPACE}." + re.sub(r"\W", "_", name)
    known = sys.modules.get(full)
    if known is not None and known.__file__ != str(path):
        full += "_" + hashlib.sha256(str(path).encode()).hexdigest()[:8]
        known = sys.modules.get(full)
    status = path.stat()
    version = (status.st_mtime_ns, status.st_size)
    if known is not None and getattr(known, "__orchestrator_version__", None) == version:
        return known
    if str(path.parent) not in parent.__path__:
        parent.__path__.insert(0, str(path.parent))
    loader = importlib.machinery.SourceFileLoader(full, str(path))
    spec = importlib.util.spec_from_file_location(full, path, loader=loader)
    if spec is None:
        raise ImportError(f"no module can be made of {path}")
    module = importlib.util.module_from_spec(spec)
    linecache.checkcache(str(path))  # the checks read the source that is run, not an earlier one
    sys.modules[full] = module
    try:
        loader.exec_module(module)
    except BaseException:
        sys.modules.pop(full, None)
        raise
    module.__dict__["__orchestrator_version__"] = version
    return module


@contextlib.contextmanager
def _clock(limit: float) -> Iterator[None]:
    """Raises _TooLong in this thread after `limit` seconds; without effect off the main thread and where there is no SIGALRM."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(signum: int, frame: FrameType | None) -> None:
        raise _TooLong

    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, ring)
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if remaining:
            signal.setitimer(signal.ITIMER_REAL, max(remaining - (time.monotonic() - started), 0.001), interval)


@contextlib.contextmanager
def _own_agents(place: Place, folder: Path) -> Iterator[None]:
    """`import agents` means this project's package for shipped modules, and for the user's whatever their path says."""
    _add_to_path(folder, place)
    current = sys.modules.get("agents")
    wanted = _AGENTS / "__init__.py" if place.shipped else _origin("agents")
    if wanted is None or (current is None and wanted == _origin("agents")) or (current is not None and _file_of(current) == wanted):
        yield
        return
    saved = {name: sys.modules.pop(name) for name in [*sys.modules] if name == "agents" or name.startswith("agents.")}
    if place.shipped:
        spec = importlib.util.spec_from_file_location("agents", wanted, submodule_search_locations=[str(wanted.parent)])
        if spec is not None and spec.loader is not None:
            sys.modules["agents"] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules["agents"])
    try:
        yield
    finally:
        if place.shipped and saved:  # the program's own package was there first: it goes on meaning that one
            for name in [name for name in sys.modules if name == "agents" or name.startswith("agents.")]:
                del sys.modules[name]
            sys.modules.update(saved)


def _origin(package: str) -> Path | None:
    spec = importlib.machinery.PathFinder.find_spec(package, None)
    return Path(spec.origin).resolve() if spec is not None and spec.origin else None


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file else None


def _user_line(error: BaseException, place: Place, folder: Path) -> str:
    """The deepest line of the traceback that is the user's own, as file:line."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{shown(Path(error.filename))}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if _is_own(Path(frame.filename), place, folder)]
    if own:
        return f"{shown(Path(own[-1].filename))}:{own[-1].lineno}"
    return place.label


def _is_own(path: Path, place: Place, folder: Path) -> bool:
    if path == place.path:
        return True
    roots = [folder, *([place.path.parent] if place.path else [])]
    return "site-packages" not in path.parts and path != Path(__file__) and any(path.is_relative_to(root) for root in roots)


def _remedy(error: Exception, place: Place) -> str:
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "agents":
        found = error.path or _origin("agents")
        return (
            f"`agents` is {found} here, not this project's package: the distribution openai-agents installs that name too, "
            "and so may a folder of yours"
        )
    if isinstance(error, ModuleNotFoundError) and error.name:
        if place.path is None and place.module.startswith(error.name):
            return "Check the name; it is looked up from the working directory and among the installed packages"
        return f"Install what provides {error.name!r}, or check its name; it is looked up with {sys.executable}"
    return ""


def file_notes(place: Place) -> list[str]:
    """What should be said about the file of a workflow: its name, its owner, who may change it."""
    if place.path is None or place.shipped:
        return []
    notes = []
    if place.path.stem in sys.stdlib_module_names:
        notes.append(
            f"{place.label} has the name of a standard library module: it is loaded by its path, `import {place.path.stem}` is not it"
        )
    status, above = place.path.stat(), place.path.parent.stat()
    if hasattr(os, "getuid") and status.st_uid not in (os.getuid(), 0):
        notes.append(f"{place.label} belongs to another user: running a workflow runs its code")
    if status.st_mode & stat.S_IWOTH or (above.st_mode & stat.S_IWOTH and not above.st_mode & stat.S_ISVTX):
        notes.append(f"{place.label} can be changed by every user of this machine: running a workflow runs its code")
    return notes
