"""What a user's own nodes run that is LangChain's or LangSmith's: chains, retrievers and `@traceable` functions, in the tree of the run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from langchain_core.tracers.langchain import LangChainTracer
from langgraph.graph.state import CompiledStateGraph
from langsmith.run_trees import RunTree

from orchestrator.errors import said
from orchestrator.spans import Span, SpanKind, Tracer, told_of
from orchestrator.tracing.langsmith import LangSmithTrace

__all__ = ["ForeignTracer", "has_foreign_nodes"]


def has_foreign_nodes(graphs: Iterable[CompiledStateGraph[Any, Any, Any, Any]]) -> bool:
    """Whether any node of the graphs is not one of ours, which say how they are shown."""
    nodes = ((name, node.metadata or {}) for graph in graphs for name, node in graph.builder.nodes.items())
    return any(name not in told_of(metadata) for name, metadata in nodes)


class ForeignTracer(LangChainTracer):
    """LangChain's callbacks as spans of the run.

    LangGraph's own steps are spans already, and calls of models and tools are told at the door; routers, and graphs inside, are no steps
    of their own. `@traceable` functions find their parent in `run_map`, which is LangChain's way to hand it on.
    """

    run_inline = True
    told_by_spans = True  # model calls need not come by here

    def __init__(self, tracer: Tracer, remote: LangSmithTrace, graphs: Iterable[str]) -> None:
        super().__init__(client=remote.client)
        self._graphs = frozenset(graphs)  # names of graphs inside, which are the steps that they are of
        self._tracer = tracer
        self._remote = remote
        self._own: dict[UUID, Span] = {}  # spans that were begun here

    def copy_with_metadata_defaults(self, **defaults: Any) -> "ForeignTracer":
        """LangChain makes a copy for each call that has metadata of its own; what is known of a span is said by the span."""
        return self

    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: Any,
        *,
        run_id: UUID,
        tags: list[str] | None = None,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        run_type: str | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """A runnable begins."""
        self._began(run_id, parent_run_id, name or "chain", inputs, tags or (), metadata or {}, "chain")

    def on_retriever_start(
        self,
        serialized: dict[str, Any] | None,
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """A retriever begins."""
        self._began(run_id, parent_run_id, name or "retriever", {"query": query}, tags or (), metadata or {}, "retriever")

    def _began(
        self, run: UUID, parent: UUID | None, name: str, given: Any, tags: Sequence[str], known: Mapping[str, Any], kind: SpanKind
    ) -> None:
        node = known.get("langgraph_node")
        if self._tracer.is_inside() and parent not in self._own:  # in an agent, whose steps LangGraph does not tell
            around: Span | None = self._tracer.here()
        else:
            around = self._tracer.foreign.get(parent) if parent is not None else None
        path = str(known.get("langgraph_checkpoint_ns") or "").split("|")
        is_step = name == node and any(tag.startswith("graph:step:") for tag in tags)
        is_part = parent not in self._own and any(tag.startswith("seq:step:") for tag in tags)  # of a step
        is_plumbing = is_part and (name in self._graphs or "seq:step:1" not in tags)
        if node is None or is_step or is_plumbing or node in told_of(known):
            span = around if is_plumbing and around is not None else self._tracer.at(path, known)
        else:
            span = self._tracer.begin(kind, name, parent=around or self._tracer.at(path, known), given=given)
            self._own[run] = span
        self._tracer.foreign[run] = span
        self.run_map[str(run)] = self._tree(span)

    def _tree(self, span: Span) -> Any:
        """A span as LangSmith's own functions take it for the parent of theirs."""
        return RunTree(name=span.name, inputs={}, ls_client=self._remote.client, **self._remote.place(span))

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> Any:
        """A runnable has ended."""
        self._ended(run_id, came=outputs)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> Any:
        """A runnable has failed, or was cancelled."""
        self._ended(run_id, error)

    def on_retriever_end(self, documents: Sequence[Any], *, run_id: UUID, **kwargs: Any) -> Any:
        """A retriever has found something."""
        self._ended(run_id, came={"documents": list(documents)})

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> Any:
        """A retriever has failed."""
        self._ended(run_id, error)

    def _ended(self, run: UUID, error: BaseException | None = None, came: Any = None) -> None:
        self._tracer.foreign.pop(run, None)
        self.run_map.pop(str(run), None)
        span = self._own.pop(run, None)
        if span is None:
            return
        if error is None:
            self._tracer.end(span, came=came)
        elif isinstance(error, Exception):
            self._tracer.end(span, "failed", said(error))
        else:
            self._tracer.end(span, "cancelled")

    def _told_at_the_door(self, *args: Any, **kwargs: Any) -> Any:
        """Calls of models and tools have their spans already."""

    on_chat_model_start = on_llm_start = on_llm_new_token = on_llm_end = on_llm_error = _told_at_the_door
    on_tool_start = on_tool_end = on_tool_error = on_retry = _told_at_the_door
