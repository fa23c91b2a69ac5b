"""Tools by name, ready for an agent: what is shipped, and what the user has configured."""

from orchestrator.toolbox.resolving import TOOLS, Toolbox, resolve_tools

__all__ = ["TOOLS", "Toolbox", "resolve_tools"]
