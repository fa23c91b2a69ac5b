"""What the command line asks of a run's trace, in LangSmith's own terms."""

import argparse
import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.errors import InputError
from orchestrator.tracing.langsmith import SWITCHES, is_on
from orchestrator.tracing.recording import traces_sent
from orchestrator.tracing.redaction import content_asked

__all__ = ["traced_as"]


@contextmanager
def traced_as(options: argparse.Namespace) -> Iterator[None]:
    """Runs inside are traced as the options ask; what they have to send is waited for, within bounds, at the end of the block.

    Raises InputError where that cannot be, before anything has started.
    """
    langsmith = [name for name in ("project", "tag", "sampling") if getattr(options, f"trace_{name}") not in (None, [])]
    if langsmith and not is_on():
        raise InputError(f"--trace-{langsmith[0]} is LangSmith's, and LangSmith is off", remedy=f"export {SWITCHES[0]}=true")
    content_asked(options.trace_content)
    with contextlib.ExitStack() as stack:
        if options.trace_content is not None:
            stack.enter_context(_variable("ORCHESTRATOR_TRACE_CONTENT", options.trace_content))
        if options.trace_sampling is not None:
            stack.enter_context(_variable("LANGSMITH_TRACING_SAMPLING_RATE", str(options.trace_sampling)))
        if options.trace_otlp:
            stack.enter_context(_variable("ORCHESTRATOR_TRACE_OTLP", "true"))
        if options.trace_project or options.trace_tag:
            from langsmith.run_helpers import tracing_context

            stack.enter_context(tracing_context(project_name=options.trace_project, tags=options.trace_tag or None))
        stack.enter_context(traces_sent())
        yield


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
