"""Which call it is: for messages, and for what is remembered about its endpoint."""

import hashlib
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from langchain_core.language_models import BaseChatModel
from pydantic import SecretStr

from orchestrator.events import current_branch
from orchestrator.text import one_line, secrets_of, without

__all__ = ["Call", "model_name"]

_KEY_SHAPED = re.compile(r"\b(?:(?:sk|pk|lsv2|xai|gsk)[-_][\w\-*.]{6,}|AIza[\w\-]{20,})|(?<=Bearer )\S+", re.IGNORECASE)
_KEY_NAMES = {"google_genai": "GOOGLE_API_KEY", "mistralai": "MISTRAL_API_KEY", "cohere": "COHERE_API_KEY"}


@dataclass(frozen=True)
class Call:
    """A role's call of a model; `endpoint` is the host with a digest of the key, whose limits all such calls share."""

    role: str
    model: str
    provider: str
    host: str
    openai_like: bool
    endpoint: str
    secrets: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: BaseChatModel, role: str) -> "Call":
        """What can be told about `model` without asking it."""
        openai_like = any(base.__name__ == "BaseChatOpenAI" for base in type(model).__mro__)
        packages = (base.__module__.partition(".")[0] for base in type(model).__mro__)
        package = next(name for name in packages if name != "orchestrator" or not openai_like).removeprefix("langchain_")
        host, key = _host(model), _key(model)
        return cls(role, model_name(model), package, host, openai_like, _endpoint(host or package, key), (key,) if key else ())

    @classmethod
    def at(cls, host: str, key: str, *, model: str, role: str) -> "Call":
        """A call of an OpenAI-compatible host that is made without a chat model; it shares the limits of those that are made with one."""
        return cls(role, model, "openai", host, True, _endpoint(host, key), (key,) if key else ())

    @property
    def where(self) -> str:
        """The line of an error that says where: role, model and host."""
        return f"{self.role} model {self.model!r}" + (f" at {self.host}" if self.host else "")

    @property
    def place(self) -> str:
        """`where`, with the node and the branch that this code runs in."""
        node, branch = _node(), current_branch()
        return self.where + (f", node {node!r}" if node else "") + (f", branch {branch}" if branch else "")

    @property
    def half_characters(self) -> str:
        """The warning about text that is no text."""
        return f"the model {self.model!r} sent half characters (lone surrogates): they were replaced"

    @property
    def key_variable(self) -> str:
        """The environment variable that the provider's key is read from."""
        return _KEY_NAMES.get(self.provider, f"{self.provider.upper()}_API_KEY")

    def shown(self, text: str, limit: int = 200) -> str:
        """`text` on one line without anything that is, or looks like, a key."""
        text = without([*self.secrets, *secrets_of(os.environ).values()], text, "[key]")
        return one_line(_KEY_SHAPED.sub("[key]", text), limit)


def model_name(model: BaseChatModel) -> str:
    """What its provider calls it, which prices go by; the name of its class where it does not say."""
    names = (getattr(model, key, None) for key in ("model_name", "model", "model_id"))
    return next((name for name in names if isinstance(name, str) and name), type(model).__name__)


def _endpoint(host: str, key: str) -> str:
    return f"{host} {hashlib.sha256(key.encode(errors='replace')).hexdigest()[:8]}"


def _host(model: BaseChatModel) -> str:
    client = getattr(model, "root_async_client", None)
    url = getattr(client, "base_url", None) or getattr(model, "base_url", None) or ""
    parts = urlsplit(str(url))
    return parts.netloc.rpartition("@")[2]


def _key(model: BaseChatModel) -> str:
    """The model's key, "" where none is known: fields that hold one are secrets, named for what they are."""
    for name in type(model).model_fields:
        value = getattr(model, name, None) if name.endswith(("api_key", "token")) else None
        if isinstance(value, SecretStr):
            return value.get_secret_value()
    return ""


def _node() -> str | None:
    """The LangGraph node that this code runs in."""
    from langgraph.config import get_config

    try:
        return (get_config().get("metadata") or {}).get("langgraph_node")
    except RuntimeError:  # not inside a graph
        return None
