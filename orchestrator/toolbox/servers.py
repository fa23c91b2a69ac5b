"""Which MCP servers there are: the `mcpServers` file that others use, too, read and checked before anything is started."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from orchestrator.errors import InputError
from orchestrator.models.answers import explain
from orchestrator.text import one_line
from orchestrator.toolbox.endpoints import Environ

__all__ = ["Server", "read_servers"]

_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)(?::-([^}]*))?\}")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_BYTES = 1024 * 1024


class Server(BaseModel):
    """One server: a `command` with `args`, started without a shell, or a `url`. Keys of other programs are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    command: str = ""
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    cwd: str | None = None
    url: str = ""
    type: Literal["stdio", "http", "streamable-http", "sse"] | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    disabled: bool = False

    @field_validator("url")
    @classmethod
    def _is_web(cls, url: str) -> str:
        if url and not re.match(r"https?://[^\s/]", url):
            raise ValueError("a URL begins with http:// or https://")
        return url

    @model_validator(mode="after")
    def _one_way(self) -> "Server":
        if bool(self.command.strip()) == bool(self.url):
            raise ValueError("give either a command with args, or a url")
        return self

    @property
    def identity(self) -> str:
        """What tells this server from another one of the same name; without its secrets."""
        told = json.dumps([self.command, self.args, self.cwd, self.url])
        return hashlib.sha256(told.encode()).hexdigest()[:16]


def read_servers(file: str, environ: Environ) -> dict[str, Server]:
    """The servers of a file by name, without those that are disabled; `${NAME}` in it is a variable's value. Raises InputError."""
    where = f"the MCP servers in {one_line(file, 200)}"
    try:
        with Path(file).expanduser().open("rb") as opened:
            content = opened.read(_BYTES + 1)
    except OSError as error:
        raise InputError(f"The file cannot be read: {error.strerror}", where=where, remedy="name a file in ORCHESTRATOR_MCP") from error
    if len(content) > _BYTES:
        raise InputError("The file is larger than 1 MiB", where=where)
    try:
        told = json.loads(content)
    except ValueError as error:
        raise InputError(f"The file is no JSON: {error}", where=where) from error
    servers = told.get("mcpServers") if isinstance(told, Mapping) else None
    if not isinstance(servers, Mapping):
        raise InputError(
            "The file has no object 'mcpServers'", where=where, remedy='{"mcpServers": {"NAME": {"command": "...", "args": []}}}'
        )
    found: dict[str, Server] = {}
    for name, entry in servers.items():
        if not _NAME.fullmatch(name):
            raise InputError(f"{one_line(name, 60)!r} is no name of a server", where=where, remedy="use up to 32 letters, digits, - and _")
        try:
            found[name] = Server.model_validate(_filled(entry, environ, f"server {name!r} of {where}"))
        except ValidationError as error:
            raise InputError(f"server {name!r}: {explain(error)}", where=where) from error
    return {name: server for name, server in found.items() if not server.disabled}


def _filled(entry: object, environ: Environ, where: str) -> object:
    """A value with the variables that it names; raises InputError where one is not set."""
    if isinstance(entry, str):

        def value(found: re.Match[str]) -> str:
            if found[1] in environ:
                return environ[found[1]]
            if found[2] is None:
                raise InputError(f"The variable {found[1]} is not set", where=where, remedy=f"set it, or write ${{{found[1]}:-DEFAULT}}")
            return found[2]

        return _VARIABLE.sub(value, entry)
    if isinstance(entry, list):
        return [_filled(item, environ, where) for item in entry]
    return {key: _filled(item, environ, where) for key, item in entry.items()} if isinstance(entry, Mapping) else entry
