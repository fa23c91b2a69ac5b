"""From a model string to a chat model; everything that can be wrong with it is said before a run starts."""

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from orchestrator.errors import ModelSpecError
from orchestrator.text import nearest, one_line

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from orchestrator.models.embedding import EmbeddingModel

__all__ = [
    "CLIENT_TIMEOUT",
    "ModelChoice",
    "check_embeddings",
    "choose_model",
    "model_names",
    "openai_endpoint",
    "resolve_embeddings",
    "resolve_model",
    "warnings_for",
]

_OPENAI_URL = "https://api.openai.com/v1"
_DEFAULT_OPENAI = "openai:gpt-5-mini"
_FORM = "a model is `offline` or `provider:model`, such as `openai:gpt-5-mini` or `ollama:llama3.2`"
_OPENAI_NAMES = re.compile(r"(gpt-|chatgpt|o\d)")  # names that need no provider in front
_BASE_URLS = ("OPENAI_API_BASE", "OPENAI_BASE_URL")  # in the order in which langchain-openai reads them
_NO_KEY = "not-needed"  # what servers without keys are sent: the client insists on one
CLIENT_TIMEOUT = 600.0  # seconds; the OpenAI SDK's own default. `ask` sets a clock of its own on every request


@dataclass(frozen=True)
class ModelChoice:
    """The model strings that count, the preferred first, and why."""

    specs: tuple[str, ...]
    reason: str


def choose_model(specs: str | Sequence[str] | None, environ: Mapping[str, str]) -> ModelChoice:
    """`specs` (--model), else ORCHESTRATOR_MODEL, else OpenAI where OPENAI_API_KEY is set, else offline. Raises ModelSpecError."""
    given = (specs,) if isinstance(specs, str) else tuple(specs or ())
    if any(spec.strip() for spec in given):
        return ModelChoice(tuple(spec.strip() for spec in given), "asked for")
    if named := environ.get("ORCHESTRATOR_MODEL", "").strip():
        return ModelChoice(tuple(model_names(named, "ORCHESTRATOR_MODEL")), "set in ORCHESTRATOR_MODEL")
    if environ.get("OPENAI_API_KEY", "").strip():
        return ModelChoice((_DEFAULT_OPENAI,), "OPENAI_API_KEY is set")
    return ModelChoice(("offline",), "no model is named and OPENAI_API_KEY is not set")


def model_names(text: str, setting: str) -> list[str]:
    """`SPEC,SPEC`, the value of `setting`, as a list; raises ModelSpecError for an empty name, and for one that comes twice."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        what = f"{setting} is empty" if names == [""] else f"{setting} {one_line(text, 80)!r} has an empty name in its list"
        raise ModelSpecError(what, remedy="give offline or provider:model, such as openai:gpt-5-mini")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        what = f"{setting} names {one_line(twice, 80)!r} twice in one list"
        raise ModelSpecError(what, remedy="name each model once, the preferred first")
    return names


def resolve_model(spec: str) -> "BaseChatModel":
    """The chat model that `spec` names; the same OpenAI model is made once a process. Raises ModelSpecError."""
    provider, name = _parts(spec)
    if provider == "offline":
        from orchestrator.models.offline import OfflineModel

        return OfflineModel()
    if provider == "openai":
        base = _base_url(os.environ)
        # Without a base URL the client would read the environment itself, and take a variable that is empty for an address.
        return _openai(name, base.geturl() if base else _OPENAI_URL, _openai_key(os.environ, base))
    return _any_provider(provider, name, spec)


def check_embeddings(spec: str) -> None:
    """Raise ModelSpecError where `resolve_embeddings` would, or where the library is missing that compares vectors."""
    from importlib.util import find_spec

    provider, name = _parts(spec)
    if provider != "openai":
        what = f"{spec!r} is no model for embeddings: they come from OpenAI-compatible endpoints"
        remedy = "give openai:NAME, such as openai:text-embedding-3-small, and OPENAI_BASE_URL for a server of your own"
        raise ModelSpecError(what, remedy=remedy)
    _openai_key(os.environ, _base_url(os.environ))
    if find_spec("numpy") is None:
        raise ModelSpecError(f"embeddings ({name}) need numpy, which is not installed", remedy='pip install "orchestrator[embeddings]"')


def resolve_embeddings(spec: str) -> "EmbeddingModel":
    """The embedding model that `spec` names, at the endpoint that chat models are asked at; made once a process. Raises ModelSpecError."""
    check_embeddings(spec)
    base = _base_url(os.environ)
    return _embeddings(_parts(spec)[1], base.geturl() if base else _OPENAI_URL, _openai_key(os.environ, base))


def openai_endpoint(spec: str, environ: Mapping[str, str]) -> tuple[str, str] | None:
    """The base URL that is asked for this model, and the model's name there; None for other providers. Raises ModelSpecError."""
    provider, name = _parts(spec)
    if provider != "openai":
        return None
    base = _base_url(environ)
    return (base.geturl().rstrip("/") if base else _OPENAI_URL), name


def warnings_for(spec: str, environ: Mapping[str, str]) -> list[str]:
    """What a person should know about this model's settings though it will work. Raises ModelSpecError."""
    if _parts(spec)[0] != "openai":
        return []
    base = _base_url(environ)
    if (
        base
        and base.scheme == "http"
        and not _is_local(base.hostname or "", loopback_only=True)
        and environ.get("OPENAI_API_KEY", "").strip()
    ):
        return [f"{_base_url_name(environ)} is http: the key and every prompt travel to {base.hostname} in clear text"]
    return []


def _parts(spec: str) -> tuple[str, str]:
    """Provider and model name; the provider is "" where only a name was given."""
    if not spec.strip():
        raise ModelSpecError("the model string is blank", remedy=_FORM)
    if re.search(r"\s|[^\x21-\x7e]", spec.strip()) or len(spec) > 200:
        raise ModelSpecError(f"{spec!r} is not a model", remedy=_FORM)
    spec = spec.strip()
    if spec.lower() == "offline":
        return "offline", ""
    provider, colon, name = spec.partition(":")
    if not colon:
        return ("openai", spec) if _OPENAI_NAMES.match(spec) else ("", spec)
    if not provider or not name:
        raise ModelSpecError(f"{spec!r} names no {'model' if provider else 'provider'}", remedy=_FORM)
    return provider.replace("-", "_").lower(), name


def _base_url_name(environ: Mapping[str, str]) -> str | None:
    return next((name for name in _BASE_URLS if environ.get(name, "").strip()), None)


def _base_url(environ: Mapping[str, str]) -> SplitResult | None:
    """The checked base URL of the environment; None, where no variable is set or all are blank, is OpenAI's own."""
    name = _base_url_name(environ)
    if name is None:
        return None
    value = environ[name]
    remedy = f"set {name} to something like http://127.0.0.1:11434/v1, or unset it"
    if value.strip() != value or value[:1] in "\"'" or re.search(r"\s", value):
        raise ModelSpecError(f"{name} has quotes or white space in its value", remedy=remedy)
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = None
    if not usable:
        raise ModelSpecError(f"{name} is not a URL: {value!r}", remedy=remedy)
    if parts.path.rstrip("/").endswith(("/chat/completions", "/responses")):
        raise ModelSpecError(f"{name} ends in the path of one call: {parts.path!r}", remedy="leave off what follows /v1")
    return parts


def _is_local(host: str, *, loopback_only: bool = False) -> bool:
    """Whether `host` is this machine or, unless `loopback_only`, a name or address of a private network."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return not loopback_only and ("." not in host or host.endswith((".local", ".internal", ".lan")))
    return address.is_loopback or (not loopback_only and address.is_private)


def _openai_key(environ: Mapping[str, str], base: SplitResult | None) -> str:
    key = environ.get("OPENAI_API_KEY", "")
    local = base is not None and _is_local(base.hostname or "")
    if not key.strip():
        if local:
            return _NO_KEY
        state = "is not set" if "OPENAI_API_KEY" not in environ else "is blank"
        raise ModelSpecError(
            f"OPENAI_API_KEY {state}",
            where=f"the model asks {base.hostname if base else 'api.openai.com'}",
            remedy="export OPENAI_API_KEY, or use `--model offline`, or set OPENAI_BASE_URL to a server of your own",
        )
    if wrong := _wrong_with(key):
        raise ModelSpecError(f"OPENAI_API_KEY {wrong}", remedy="export the bare key, without quotes or white space")
    return key


def _wrong_with(key: str) -> str:
    """What makes `key` unusable as a header, in words that do not show it."""
    if "\n" in key or "\r" in key:
        return "contains a line break"
    if key[0] in "\"'`" or key[-1] in "\"'`":
        return "is in quotes: they are part of its value"
    if re.search(r"\s", key):
        return "contains white space"
    return "contains characters that no key has" if re.search(r"[^\x21-\x7e]", key) else ""


@lru_cache(maxsize=32)
def _openai(name: str, base_url: str, key: str) -> "BaseChatModel":
    # Not through init_chat_model: the import of `langchain` would show in the time to the first call.
    from pydantic import SecretStr

    from orchestrator.models.connection import LazyClient, LoopClient
    from orchestrator.models.lean import LeanChatOpenAI

    return LeanChatOpenAI(
        model=name,
        base_url=base_url,
        api_key=SecretStr(key),
        timeout=CLIENT_TIMEOUT,
        max_retries=0,  # `ask` is the one place that makes a request again
        stream_chunk_timeout=None,  # and the one that watches a stream
        stream_usage=True,  # off by default where the base URL is not OpenAI's
        http_client=LazyClient(timeout=CLIENT_TIMEOUT),
        http_async_client=LoopClient(timeout=CLIENT_TIMEOUT),
    )


@lru_cache(maxsize=32)
def _embeddings(name: str, base_url: str, key: str) -> "EmbeddingModel":
    import openai

    from orchestrator.models.call import Call
    from orchestrator.models.connection import LoopClient
    from orchestrator.models.embedding import ROLE, EmbeddingModel

    host = urlsplit(base_url).netloc.rpartition("@")[2]
    client = openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0, http_client=LoopClient(timeout=CLIENT_TIMEOUT))
    return EmbeddingModel(Call.at(host, key, model=name, role=ROLE), client)


def _any_provider(provider: str, name: str, spec: str) -> "BaseChatModel":
    from langchain.chat_models import init_chat_model

    known = _providers()
    if provider and provider not in known:
        near = nearest(provider, [*known, "offline"])
        hint = f"did you mean {near!r}?" if near else f"known: {', '.join(sorted(known))}"
        raise ModelSpecError(f"unknown provider {provider!r} in {spec!r}", remedy=hint)
    try:
        model = init_chat_model(name, model_provider=provider or None)
        if getattr(model, "max_retries", 0):  # `ask` is the one place that makes a request again
            model = init_chat_model(name, model_provider=provider or None, max_retries=0)
    except ImportError as error:
        package = re.search(r"pip install ([\w.\-]+)", str(error))
        remedy = f"pip install {package[1]}" if package else str(error)
        raise ModelSpecError(f"the package for {provider or name!r} is not installed", remedy=remedy) from error
    except Exception as error:
        raise _not_made(provider, spec, error) from error
    return model


def _not_made(provider: str, spec: str, error: Exception) -> ModelSpecError:
    """Why a provider's class would not be made: the bare errors of init_chat_model and of the class itself."""
    if not provider:
        near = nearest(spec, ["offline"])
        return ModelSpecError(f"no provider is known for the model {spec!r}", remedy=f"did you mean {near!r}?" if near else _FORM)
    variable = re.search(r"\b[A-Z][A-Z0-9]*_(?:API_)?(?:KEY|TOKEN)\b", str(error))
    if variable:
        return ModelSpecError(f"{variable[0]} is not set or not usable", where=f"the model is {spec!r}", remedy=f"export {variable[0]}")
    return ModelSpecError(f"the model {spec!r} cannot be made: {type(error).__name__}", remedy=_FORM)


def _providers() -> list[str]:
    """What init_chat_model knows by name; it tells in the message of its own error only."""
    from langchain.chat_models import init_chat_model

    try:
        init_chat_model("-", model_provider="-")
    except ValueError as error:
        return re.findall(r"\w+", str(error).rpartition(":")[2])
    return []
