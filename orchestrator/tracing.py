"""LangSmith, on where its own variables say so, with a client that cannot hold a run up."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.text import one_line

__all__ = ["SWITCHES", "langsmith_tracing"]

_CONNECT_MS, _READ_MS = 1_000, 2_000  # with these and no retries a dead endpoint was measured to hold the end of a run 4 to 6 s
_FLUSH_SECONDS = 2.0
SWITCHES = (
    "LANGSMITH_TRACING",
    "LANGSMITH_TRACING_V2",
    "LANGCHAIN_TRACING",
    "LANGCHAIN_TRACING_V2",
)  # each is on for exactly the word `true`


@contextmanager
def langsmith_tracing() -> Iterator[bool]:
    """Give langsmith a bounded client for the length of the block, and send what is left at its end; False: tracing is off.

    What could not be sent is one line of the log, whatever langsmith itself has to say about it.
    """
    if "true" not in {os.environ.get(name) for name in SWITCHES}:
        yield False
        return
    os.environ.setdefault("LANGSMITH_USE_DAEMON", "true")  # else its threads keep the process alive
    import langsmith
    from urllib3 import Retry

    errors: list[Exception] = []
    client = langsmith.Client(timeout_ms=(_CONNECT_MS, _READ_MS), retry_config=Retry(total=0), tracing_error_callback=errors.append)
    langsmith.configure(client=client)
    its_log = logging.getLogger("langsmith")
    level = its_log.level
    its_log.setLevel(logging.CRITICAL)
    try:
        yield True
    finally:
        client.close(timeout=_FLUSH_SECONDS)
        langsmith.configure(client=None)
        if errors:
            logging.getLogger("orchestrator").warning("the trace did not reach LangSmith: %s", one_line(errors[0]))
        its_log.setLevel(level)
