"""What `doctor` looks at: the installation, the model, storage, documents and tracing, each with what to do."""

import http.client
import importlib.util
import json
import stat
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from orchestrator.errors import ModelSpecError, OrchestratorError
from orchestrator.text import one_line
from orchestrator.tracing.langsmith import SWITCHES

__all__ = ["Finding", "diagnose"]

State = Literal["ok", "warn", "fail"]

ENDPOINT_SECONDS = 5.0
"""How long the endpoint may take to answer."""

_ROOT = Path(__file__).resolve().parent.parent
_LARGEST_ANSWER = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `remedy` says what to do where it is not in order."""

    name: str
    state: State
    told: str
    remedy: str = ""

    def lines(self) -> list[str]:
        """`ok    name: told`, and the remedy on a line of its own."""
        first = f"{self.state:<5} {self.name}: {one_line(self.told, 300)}"
        return [first, f"      do: {one_line(self.remedy, 300)}"] if self.remedy else [first]


def diagnose(
    environ: Mapping[str, str],
    *,
    documents: Sequence[str] = (),
    model: str | Mapping[str, str | list[str]] | None = None,
    folder: Path | None = None,
) -> list[Finding]:
    """Everything that `doctor` says, in order; nothing is raised and no key is shown. `folder`: the working directory."""
    folder = folder or Path.cwd()
    checks: list[Callable[[], Iterator[Finding]]] = [
        _python,
        _packages,
        lambda: _clashes(folder),
        lambda: _models(environ, model),
        _storage,
        lambda: _documents(documents, folder),
        lambda: _tracing(environ),
    ]
    return [finding for check in checks for finding in check()]


def _python() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{sys.version.split()[0]} at {sys.executable}")  # an older one could not have read this far


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(line) for line in requires("orchestrator") or ()]
        ours = version("orchestrator")
    except PackageNotFoundError:
        yield Finding("packages", "warn", "orchestrator itself is not installed here", "pip install . in its folder, or make install")
        return
    wrong, right = list[str](), list[str]()
    for requirement in needed:
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        (right if fits else wrong).append(f"{requirement.name} {found}" + ("" if fits else f", not {requirement.specifier}"))
    if wrong:
        yield Finding("packages", "fail", "; ".join(wrong), "make install, or pip install . in an environment of its own")
    else:
        yield Finding("packages", "ok", f"orchestrator {ours}, {', '.join(right[:4])} and {len(right) - 4} more")


def _clashes(folder: Path) -> Iterator[Finding]:
    """Other packages of the names `agents` and `workflows`, as openai-agents and llama-index-workflows install them."""
    for name in ("agents", "workflows"):
        spec = importlib.util.find_spec(name)
        places = [Path(place).resolve() for place in (spec.submodule_search_locations or ()) if place] if spec is not None else []
        foreign = [place for place in places if place not in (_ROOT / name, (folder / name).resolve())]
        if spec is None:
            yield Finding(name, "fail", f"the package {name!r} of this project is not there", "pip install . once more")
        elif foreign:
            remedy = (
                f"keep the package that installs {name!r} in another environment (openai-agents and llama-index-workflows are known to)"
            )
            yield Finding(name, "warn", f"`import {name}` means {foreign[0]}, not this project's package", remedy)


def _models(environ: Mapping[str, str], given: str | Mapping[str, str | list[str]] | None) -> Iterator[Finding]:
    from orchestrator.models import choose_model

    by_role = dict(given) if isinstance(given, Mapping) else {"": given}
    for role, asked in by_role.items():
        name = f"model of {role}" if role else "model"
        try:
            choice = choose_model(asked, environ)
        except ModelSpecError as error:
            yield Finding(name, "fail", error.what, error.remedy)
            continue
        for place, spec in enumerate(choice.specs):
            yield from _model(f"{name} where {place} failed" if place else name, spec, choice.reason, environ)


def _model(name: str, spec: str, reason: str, environ: Mapping[str, str]) -> Iterator[Finding]:
    from orchestrator.models import openai_endpoint, resolve_model, warnings_for

    try:
        resolve_model(spec)
        cautions = warnings_for(spec, environ)
        endpoint = openai_endpoint(spec, environ)
    except ModelSpecError as error:
        yield Finding(name, "fail", f"{spec} ({reason}): {'; '.join(error.lines()[:-1] or error.lines())}", error.remedy)
        return
    if spec == "offline":
        remedy = "" if reason == "asked for" else "for a language model: export OPENAI_API_KEY, or --model provider:model"
        yield Finding(name, "ok", f"offline ({reason}): nothing is sent anywhere", remedy)
    else:
        yield Finding(name, "ok", f"{spec} ({reason})")
        yield from (Finding(name, "warn", caution) for caution in cautions)
    if endpoint is not None:
        yield _endpoint(*endpoint, environ.get("OPENAI_API_KEY", ""))


def _endpoint(base: str, model: str, key: str) -> Finding:
    """Whether the OpenAI-compatible endpoint answers `GET /models` with this model in it; the key is sent to it and to nobody else."""
    answered: list[Finding] = []
    # A thread of its own: a server that sends a byte now and then outlasts every timeout of the socket.
    asking = threading.Thread(target=lambda: answered.append(_ask_endpoint(base, model, key)), daemon=True)
    asking.start()
    asking.join(ENDPOINT_SECONDS)
    remedy = "check the network and OPENAI_BASE_URL, or use --model offline"
    return answered[0] if answered else Finding("endpoint", "fail", f"{base} gave no answer within {ENDPOINT_SECONDS:g} s", remedy)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like another: the key must not follow it."""

    def redirect_request(self, *_: object) -> None:
        """Nothing is asked again."""


def _ask_endpoint(base: str, model: str, key: str) -> Finding:
    headers = {"Authorization": f"Bearer {key}"} if key.strip() else {}
    request = urllib.request.Request(f"{base}/models", headers=headers)  # noqa: S310 - http or https: the model was made with this URL
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=2 * ENDPOINT_SECONDS) as response:
            listed = json.loads(response.read(_LARGEST_ANSWER))
        names = [str(entry["id"]) for entry in listed["data"]]
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return Finding("endpoint", "fail", f"{base} refused the key (HTTP {error.code})", "export a valid OPENAI_API_KEY")
        return Finding(
            "endpoint", "warn", f"{base} answers, but GET /models says HTTP {error.code}", "check that OPENAI_BASE_URL ends in /v1"
        )
    except (OSError, http.client.HTTPException) as error:
        told = f"{base} is not reached: {getattr(error, 'reason', None) or error}"
        return Finding("endpoint", "fail", told, "check the network and OPENAI_BASE_URL, or use --model offline")
    except (ValueError, KeyError, TypeError):
        return Finding("endpoint", "warn", f"{base} answers, but not as an OpenAI-compatible server does", "check OPENAI_BASE_URL")
    if model not in names:
        known = f"it has {', '.join(one_line(name, 60) for name in names[:5])}" if names else "it lists none"
        return Finding("endpoint", "warn", f"{base} does not list the model {model!r}: {known}", "name one with --model openai:NAME")
    return Finding("endpoint", "ok", f"{base} answers and lists {model!r}")


def _storage() -> Iterator[Finding]:
    from orchestrator.documents.store import default_home

    home = default_home()
    remedy = "set ORCHESTRATOR_HOME to a folder of yours that can be written to"
    if home.exists() and not home.is_dir():
        yield Finding("storage", "fail", f"{home} is no folder", remedy)
        return
    nearest = next(folder for folder in (home, *home.parents) if folder.is_dir())
    try:
        with tempfile.TemporaryDirectory(dir=nearest):  # permission bits alone do not tell: /proc takes no folder of anybody's
            usable = True
    except OSError:
        usable = False
    index = home / "index"  # what is kept of documents; its mode is the one that counts
    mode = stat.S_IMODE((index if index.is_dir() else nearest).stat().st_mode)
    if not usable:
        yield Finding("storage", "fail", f"{nearest} cannot be written to", remedy)
    elif nearest == home and mode & 0o077:
        yield Finding("storage", "warn", f"{home} is open to others (mode {mode:o})", f"chmod -R go= {home}")
    else:
        yield Finding("storage", "ok", f"{home}" + ("" if nearest == home else ", made at the first run"))


def _documents(documents: Sequence[str], folder: Path) -> Iterator[Finding]:
    paths = list(documents) or (["docs"] if (folder / "docs").is_dir() else [])
    if not paths:
        yield Finding("documents", "ok", "none named, and there is no ./docs", "name some: --documents FOLDER")
        return
    import asyncio

    from orchestrator.documents import Library, open_library

    async def count() -> Library:
        library = await open_library(paths)
        await library.aclose()
        return library

    try:
        library = asyncio.run(count())
    except OrchestratorError as error:
        yield Finding(
            "documents", "fail" if documents else "warn", "; ".join(part for part in (error.what, error.where) if part), error.remedy
        )
        return
    told = f"{', '.join(paths)}: read {library.read:,}, skipped {len(library.skipped):,}"
    first = "; ".join(f"{skip.uri}: {skip.reason}" for skip in library.skipped[:3])
    yield Finding("documents", "warn" if first else "ok", told, f"look at {first}" if first else "")


def _tracing(environ: Mapping[str, str]) -> Iterator[Finding]:
    switch = next((name for name in SWITCHES if environ.get(name)), None)
    if switch is None:
        yield Finding("tracing", "ok", "LangSmith is off", "")
    elif environ[switch] != "true":
        yield Finding("tracing", "warn", f"{switch} is {environ[switch]!r}: LangSmith stays off", f"export {switch}=true, or unset it")
    elif not (environ.get("LANGSMITH_API_KEY") or environ.get("LANGCHAIN_API_KEY")):
        yield Finding("tracing", "warn", "LangSmith is on, and LANGSMITH_API_KEY is not set", "export LANGSMITH_API_KEY")
    else:
        endpoint = environ.get("LANGSMITH_ENDPOINT") or environ.get("LANGCHAIN_ENDPOINT") or "LangSmith's own endpoint"
        project = environ.get("LANGSMITH_PROJECT") or environ.get("LANGCHAIN_PROJECT") or "default"
        yield Finding("tracing", "ok", f"LangSmith is on: project {project!r} at {endpoint}; the key is set")
