"""What MCP servers said of their tools when they were first met: one that says something else now is not trusted silently.

A tool's description is read by the model, so a server that changes it can change what the model does.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator.errors import StorageError

__all__ = ["changed_tools", "digest_of", "pins_path"]


def pins_path(home: Path) -> Path:
    """Where the pins are kept."""
    return home / "mcp-pins.json"


def digest_of(told: Any) -> str:
    """The SHA-256 of what a server says of a tool."""
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def changed_tools(path: Path, server: str, digests: Mapping[str, str]) -> list[str]:
    """The tools of a server that are not what they were when it was first met; a server that is new is remembered as it is.

    Raises StorageError where the pins cannot be read or written.
    """
    try:
        pins = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        known = pins.get(server)
        if known is not None:
            return [name for name, digest in digests.items() if known.get(name) != digest]
        _write(path, {**pins, server: dict(digests)})
    except (OSError, ValueError, AttributeError) as error:
        remedy = f"delete {path}: then every server counts as new"
        raise StorageError("What MCP servers said of their tools cannot be read or kept", where=str(path), remedy=remedy) from error
    return []


def _write(path: Path, pins: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".mcp-pins.")  # 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(pins, file, indent=1, sort_keys=True)
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
