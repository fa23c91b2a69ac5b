"""Map-reduce: each of any number of items at once, then what came of them put together, in groups that fit the model's context."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import partial
from typing import Annotated, Any, Generic, TypeVar

from langgraph.errors import GraphBubbleUp
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Overwrite, Send
from pydantic import BaseModel
from typing_extensions import TypedDict

from orchestrator.context import RunContext, kinds_asked
from orchestrator.controls import Controls
from orchestrator.errors import GraphError, InputError, OrchestratorError, StorageError, said
from orchestrator.events import tell
from orchestrator.graphs.branches import RESEARCH_SHARE, each_branch, status_of
from orchestrator.graphs.fitting import LEAST, UNKNOWN, cut_to, grouped, most_pieces, pieces, prompt_room, room_within, tokens_in
from orchestrator.graphs.supervisor import extend, merge_branches, union
from orchestrator.joining import NotNeeded, RoundOver
from orchestrator.state import BranchResult, BranchStatus, Failure, Task
from orchestrator.text import counted, one_line

__all__ = ["MapReduceOutput", "Mapped", "Part", "Reduced", "create_map_reduce"]

R = TypeVar("R")
T = TypeVar("T", bound=BaseModel)

Given = Mapping[str, Any]
"""The run's input, by the fields of its schema."""

_Plain = dict[str, Any] | str
"""A value as plain data, or as JSON: see `_plain`."""

_Kept = tuple[_Plain, int]
"""A value, and of how many pieces it was made."""

_NODES = 32  # of branches: so many are kept each by itself, as one node maps several where there are more
_WRITING_SHARE = 0.95  # of a run's deadline
_AROUND, _NAME = 40, 80  # tokens around each text of a prompt: its tags, and its name as far as it counts
_OWN = frozenset(("given", "todo", "tasks", "round", "room", "values", "pieces", "branches", "failures", "asked"))


@dataclass(frozen=True, slots=True)
class Part:
    """A text that goes into a prompt: a piece of `item` to be mapped, `number` of `of`, or what came of a piece, an item or several."""

    item: str
    text: str
    number: int = 1
    of: int = 1


@dataclass(frozen=True, slots=True)
class Mapped(Generic[T]):
    """What became of one item. `pieces`: it was too long for fewer prompts. `kept` is its value as the run keeps it, of type `schema`."""

    item: str
    schema: type[T]
    kept: dict[str, Any] | str | None
    status: BranchStatus = "ok"
    error: str | None = None
    pieces: int = 1

    @property
    def value(self) -> T | None:
        """None exactly where `status` is not "ok". A new one each time, of the texts that the run keeps: of many, hold few at once."""
        return None if self.kept is None else _value_of(self.schema, self.kept)


@dataclass(frozen=True, slots=True)
class Reduced(Generic[T]):
    """What a run came to. `value` is None where no item has one, or where they could not be put together: `failures` says why.

    `items` are in the order of the input. `cut`: so many texts were too long to be put together, and lost their ends. `offline`: no
    language model was asked.
    """

    value: T | None
    items: list[Mapped[T]]
    failures: list[Failure]
    cut: int = 0
    offline: bool = False


class MapReduceOutput(TypedDict):
    """What a map-reduce without a `write` of its own gives: {item, value, error} of each item, and all of them put together."""

    result: dict[str, Any] | None
    items: list[dict[str, Any]]


def merge_values(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Values by task; one that is run again counts."""
    return {**earlier, **later}


class MapReduceState(TypedDict, total=False):
    """The graph's own state. `values` holds each task's value as plain data, so that an output which lists them has the same texts and no
    copies, and `pieces` of how many it was made where it was more than one; `todo` is the items themselves, also those without a task.
    """

    given: dict[str, Any]
    todo: list[str]
    tasks: list[Task]
    round: int
    room: int
    values: Annotated[dict[str, dict[str, Any] | str], merge_values]
    pieces: Annotated[dict[str, int], merge_values]
    branches: Annotated[list[BranchResult], merge_branches]
    failures: Annotated[list[Failure], extend]
    asked: Annotated[list[str], union]


class MapInput(TypedDict):
    """What a node is sent that maps several items."""

    tasks: list[Task]
    todo: list[str]
    given: dict[str, Any]
    room: int


@dataclass(frozen=True, kw_only=True)
class _Work(Generic[T]):
    """What a user's functions do to one another's results."""

    schema: type[T]
    items: Callable[[Given, RunContext], Awaitable[Sequence[str]]] | str
    map: Callable[[Part, Given, RunContext], Awaitable[T]]
    reduce: Callable[[Sequence[Part], Given, RunContext], Awaitable[T]]
    read: Callable[[str, Given, RunContext], Awaitable[str]] | None
    told: Callable[[T], str]
    room: Callable[[Given, RunContext], Awaitable[int]]
    noun: str

    async def check(self, given: Given, context: RunContext) -> tuple[list[str], int]:
        """The items, and the room of a prompt in tokens; raises InputError."""
        todo = list(given.get(self.items) or ()) if isinstance(self.items, str) else list(await self.items(given, context))
        if not todo:
            where = f"field {self.items!r}" if isinstance(self.items, str) else ""
            raise InputError("there is nothing to map", where=where, remedy=f"give one {self.noun} or more")
        if (room := await self.room(given, context)) < LEAST:
            raise InputError(f"a prompt has room for {room:,} tokens of text", remedy=f"give room for {LEAST} or more")
        return todo, room

    async def plan(self, given: dict[str, Any], context: RunContext) -> dict[str, Any]:
        """A task for each item, as many as the run may start; the others are told to be left out."""
        (todo, room), most = await self.check(given, context), context.controls.max_branches
        if isinstance(self.items, str):
            del given[self.items]  # they are in `todo`
        names = ((item, one_line(item, 200)) for item in todo)  # most are the same, and need not be there twice
        planned = [Task(id=f"t{number}", question=item if item == name else name) for number, (item, name) in enumerate(names, start=1)]
        tasks, error = planned[:most], f"not started: max_branches is {most}"
        skipped = [BranchResult(task=task, status="skipped", error=error, attempts=0) for task in planned[most:]]
        tell("plan", tasks=[task.model_dump() for task in tasks], round=1, merged=[], noun=self.noun)
        context.join.begin([task.id for task in tasks])
        afresh = {
            "values": Overwrite({}),
            "pieces": Overwrite({}),
            "branches": Overwrite(skipped),
            "failures": Overwrite([]),
            "asked": Overwrite([]),
        }
        return {"given": given, "todo": todo, "tasks": tasks, "round": 1, "room": room, **afresh}

    def name(self, task: Task, item: str) -> str:
        """What an item is called: itself where it names a text, the beginning of it where it is one."""
        return task.question if self.read is None else item

    async def branch(self, task: Task, item: str, sent: MapInput, context: RunContext) -> tuple[BranchResult, _Kept | None]:
        """Map an item to its value; whatever is raised on the way becomes data, but what ends the run."""
        began = time.monotonic()
        status: BranchStatus = "ok"
        error, gap, value = None, None, None
        try:
            async with context.join.branch(task.id, context.controls.branch_timeout), context.within(RESEARCH_SHARE):
                context.terms.check()
                tell("branch_started", question=task.question)
                value = await self._value(self.name(task, item), item, sent, context)
        except (GraphBubbleUp, InputError, StorageError):
            raise
        except NotNeeded as over:
            status, gap = "skipped", str(over)
        except Exception as failed:  # noqa: BLE001 - here the failure of an item becomes data, whosever code it was
            status, error = status_of(failed), str(failed) if isinstance(failed, RoundOver) else said(failed)
        seconds, usage = round(time.monotonic() - began, 3), await context.ledger.usage(task.id)
        result = BranchResult(task=task, status=status, error=error, gap=gap, seconds=seconds, usage=usage)
        context.ledger.forget(task.id)
        context.join.left(result)
        note = task.question + (f", in {value[1]:,} pieces" if value and value[1] > 1 else "")
        tell("branch_finished", status=status, error=error, gap=gap, attempts=1, seconds=seconds, note=note)
        return result, value

    async def _value(self, name: str, item: str, sent: MapInput, context: RunContext) -> _Kept:
        """An item's value: of its text, or of the pieces of one that is too long for a prompt, put together."""
        if self.read is not None:
            tell("branch_step", step="read")
        text = item if self.read is None else await self.read(item, sent["given"], context)
        if not text.strip():
            raise OrchestratorError("there is no text in it")
        texts = [*pieces(text, sent["room"])]
        del text
        parts = [Part(name, piece, number, len(texts)) for number, piece in enumerate(texts, start=1)]
        tell("branch_step", step="map", detail=counted(len(parts), "piece") if len(parts) > 1 else "")
        window = asyncio.Semaphore(context.controls.max_concurrency)  # the run's own has a place for the item already
        values = await _each([partial(self.map, part, sent["given"], context) for part in parts], window)
        named = [Part(part.item, self.told(value), part.number, part.of) for part, value in zip(parts, values, strict=True)]
        found = list(zip(named, values, strict=True))
        value, _ = await self.put_together(len(found), found.__getitem__, sent["given"], sent["room"], context, window)
        return _plain(value), len(parts)

    def part(self, one: Mapped[T]) -> tuple[Part, T]:
        """An item that has a value, as a part, and the value."""
        value = _value_of(self.schema, one.kept or {})
        return Part(one.item, self.told(value)), value

    async def put_together(
        self, count: int, part: Callable[[int], tuple[Part, T]], given: Given, room: int, context: RunContext, window: asyncio.Semaphore
    ) -> tuple[T, int]:
        """One value of `count`, each told as a `part`, and how many of those were cut: groups that fit a prompt, until one is left.

        A part is asked for to be measured, and again when its group's turn comes: ten thousand at once would take several times what
        they are made of.
        """
        cut = 0
        while count > 1:
            # At least two fit into a group, whatever a model has written, so that each time there are at most half as many.
            wholes = (part(place)[0] for place in range(count))
            sizes = list[int]()
            for whole in wholes:
                short, size = _fitted(whole, room)
                cut += short.text != whole.text
                sizes.append(size)
            groups = grouped(sizes, room)
            tell("log", level="info", message=f"{counted(count, 'result')} are put together in {counted(len(groups), 'group')}")
            asking = [partial(self._put_together, group, part, given, room, context) for group in groups]
            found = await _each(asking, window)
            count, part = len(found), found.__getitem__
        if cut:
            context.terms.warn("results were too long to be put together as they are, and lost their ends")
        return part(0)[1], cut

    async def _put_together(
        self, group: range, part: Callable[[int], tuple[Part, T]], given: Given, room: int, context: RunContext
    ) -> tuple[Part, T]:
        """A group as one part of the next level; one of a single part is that part."""
        if len(group) == 1:
            whole, value = part(group[0])
            return _fitted(whole, room)[0], value
        short = [_fitted(part(place)[0], room)[0] for place in group]
        value = await self.reduce(short, given, context)
        begin, end = short[0].item.partition(" … ")[0], short[-1].item.rpartition(" … ")[2]
        return Part(begin if begin == end else f"{begin} … {end}", self.told(value)), value


def _plain(value: BaseModel) -> _Plain:
    """A value as the run keeps it: as plain data, or as JSON where its type takes only that back, as one with strict fields does."""
    plain = value.model_dump(mode="json")
    try:
        same = type(value).model_validate(plain) == value
    except ValueError:
        same = False
    return plain if same else value.model_dump_json()


def _value_of(schema: type[T], kept: _Plain) -> T:
    return schema.model_validate_json(kept) if isinstance(kept, str) else schema.model_validate(kept)


def _fitted(part: Part, room: int) -> tuple[Part, int]:
    """A part of which two go into `room`, and how much of that it takes."""
    around = min(tokens_in(part.item), _NAME) + _AROUND
    short = replace(part, text=cut_to(part.text, room // 2 - around))
    return short, tokens_in(short.text) + around


async def _each(works: Iterable[Callable[[], Awaitable[R]]], window: asyncio.Semaphore) -> list[R]:
    """What they give, in order; as many are under way as the window has places. The first failure is raised, and ends the others."""
    results = dict[int, R]()  # and no tasks, which would hold more than what came of them

    async def made(place: int, work: Callable[[], Awaitable[R]]) -> None:
        results[place] = await work()

    try:
        async with asyncio.TaskGroup() as group:
            for place, work in enumerate(works):
                await window.acquire()
                group.create_task(made(place, work)).add_done_callback(lambda _: window.release())
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [results[place] for place in sorted(results)]


async def _mapped(work: _Work[T], sent: MapInput, context: RunContext) -> dict[str, Any]:
    """A branch for each item that a node was sent."""
    items = {task.id: item for task, item in zip(sent["tasks"], sent["todo"], strict=True)}
    done, kinds = await each_branch(sent["tasks"], lambda task: work.branch(task, items[task.id], sent, context), context)
    kept = {result.task.id: value for result, value in done if value is not None}
    values, several = {task: value for task, (value, _) in kept.items()}, {task: number for task, (_, number) in kept.items() if number > 1}
    return {"branches": [result for result, _ in done], "values": values, "pieces": several, "asked": sorted(kinds)}


async def _reduced(work: _Work[T], state: MapReduceState, context: RunContext) -> Reduced[T]:
    """What came of the items, put together; where that fails what there is of each is kept."""
    values, items = state["values"], list[Mapped[T]]()
    for result in state["branches"]:
        name = work.name(result.task, state["todo"][int(result.task.id[1:]) - 1])
        error, made = result.error or result.gap, state["pieces"].get(result.task.id, 1)
        items.append(Mapped(name, work.schema, values.get(result.task.id), result.status, error, made))
    found = [one for one in items if one.kept is not None]
    failures, whole, cut = list[Failure](), None, 0
    why = None if context.stopping else context.join.failure(state["branches"])
    kinds: set[str] = set()
    if why is not None:
        failures.append(Failure(role="join", status="failed", error=why))
    elif found and not context.stopping:
        try:
            with kinds_asked() as kinds:
                async with context.within(_WRITING_SHARE):
                    whole, cut = await work.put_together(
                        len(found), lambda place: work.part(found[place]), state["given"], state["room"], context, context.window
                    )
        except (GraphBubbleUp, InputError, StorageError):
            raise
        except Exception as error:  # noqa: BLE001 - what was mapped is paid for: it is reported without this
            failures.append(Failure(role="reducer", status=status_of(error), error=said(error)))
    return Reduced(whole, items, failures, cut, kinds.union(state["asked"]) == {"offline"})


async def _listed(reduced: Reduced[T], given: Given, context: RunContext) -> dict[str, Any]:
    """The output of a graph whose user does not write it."""
    items = [{"item": one.item, "value": _listed_value(one), "error": one.error} for one in reduced.items]
    return {"result": reduced.value and reduced.value.model_dump(mode="json"), "items": items}


def _listed_value(one: Mapped[Any]) -> Any:
    """As JSON holds it: as it is kept, where that is so."""
    return json.loads(one.kept) if isinstance(one.kept, str) else one.kept


async def _usual_room(given: Given, context: RunContext) -> int:
    return await prompt_room(context, "mapper", "reducer")


def create_map_reduce(
    given: type[Any],
    schema: type[T],
    *,
    items: str | Callable[[Given, RunContext], Awaitable[Sequence[str]]],
    map: Callable[[Part, Given, RunContext], Awaitable[T]],
    reduce: Callable[[Sequence[Part], Given, RunContext], Awaitable[T]],
    read: Callable[[str, Given, RunContext], Awaitable[str]] | None = None,
    told: Callable[[T], str] | None = None,
    room: Callable[[Given, RunContext], Awaitable[int]] | None = None,
    noun: str = "item",
    output: type[Any] = MapReduceOutput,
    write: Callable[[Reduced[T], Given, RunContext], Awaitable[dict[str, Any]]] | None = None,
    sizes: Callable[[Given], tuple[Sequence[int | None], int]] | None = None,
) -> StateGraph[Any, Any, Any, Any]:
    """A graph `given` -> `output`, ready to compile: each item is mapped to a `schema`, and these are put together to one of them.

    `items`: the field of the input that holds them, or what names them. `read`: an item's text, asked for when its turn comes; without
    it an item is a text. A text longer than `room` (tokens; by default what `prompt_room` says of the roles `mapper` and `reducer`) is
    mapped in pieces. `told`: a value as it is put into a prompt, by default its JSON. `noun`: what the progress calls an item.
    `write`: what the graph gives. `sizes`: for `--dry-run`, the most tokens of each item, None where nobody knows, and the room of a
    prompt; by default those of items that are texts, in a context of 8,000 tokens. An item that fails is data.
    Raises GraphError where the schemas have fields of the graph's own.
    """
    _check_fields(given, output)
    writing = write or _listed
    work = _Work(
        schema=schema,
        items=items,
        map=map,
        reduce=reduce,
        read=read,
        told=told or (lambda value: value.model_dump_json()),
        room=room or _usual_room,
        noun=noun,
    )

    async def plan(state: Any, runtime: Runtime[RunContext]) -> dict[str, Any]:
        return await work.plan(_fields_of(state), RunContext.of(runtime))

    async def branch(state: MapInput, runtime: Runtime[RunContext]) -> dict[str, Any]:
        return await _mapped(work, state, RunContext.of(runtime))

    async def put_together(state: MapReduceState, runtime: Runtime[RunContext]) -> dict[str, Any]:
        context = RunContext.of(runtime)
        reduced = await _reduced(work, state, context)
        return {**await writing(reduced, state["given"], context), "failures": reduced.failures}

    graph = StateGraph(MapReduceState, input_schema=given, output_schema=output, context_schema=RunContext)
    graph.add_node("plan", plan, input_schema=given, metadata={"asks": 0, "check": work.check})
    costs = _Costs(sizes or (partial(_texts, items, room_within(UNKNOWN)) if isinstance(items, str) and read is None else None))
    many = {"asks": costs.of_one, "chain": costs.in_turn, "visits": costs.items, "noun": noun, "trace": {"map": "branch round"}}
    graph.add_node("map", branch, input_schema=MapInput, metadata=many)
    together = {"asks": costs.together, "chain": costs.levels, "trace": {"reduce": "agent reducer"}}
    graph.add_node("reduce", put_together, input_schema=MapReduceState, metadata=together)
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", fan_out, ["map"])
    graph.add_edge("map", "reduce")
    graph.add_edge("reduce", END)
    return graph


def _check_fields(*schemas: type[Any]) -> None:
    fields = {name for schema in schemas for name in getattr(schema, "__annotations__", ())}
    if clash := sorted(fields & _OWN):
        problems = [f"{name!r} is a key of the graph's own" for name in clash]
        raise GraphError("the map-reduce cannot be built", problems, remedy="give these fields of the input or output other names")


@dataclass
class _Costs:
    """What the nodes may ask, for the forecast of a run: known as far as the sizes of the items are.

    Whatever models write, at least two results go together: of n there are at most n - 1 calls to put them together, and log2(n) levels.
    """

    sizes: Callable[[Given], tuple[Sequence[int | None], int]] | None
    _of: Given = field(init=False, default_factory=dict)  # the input that was looked at last, and what came of it: files may be read
    _known: tuple[Sequence[int | None], int] = field(init=False, default=((), 0))

    def _pieces(self, given: Given, controls: Controls) -> list[int | None] | None:
        """Of each item that may be started; None for one whose length nobody knows, and in place of all where they are not known."""
        if self.sizes is None or not given:
            return None
        if self._of is not given:
            self._of, self._known = given, self.sizes(given)
        sizes, room = self._known
        return [None if size is None else most_pieces(size, room) for size in sizes[: controls.max_branches]]

    def items(self, given: Given, controls: Controls) -> int | str:
        known = self._pieces(given, controls)
        return "max_branches" if known is None else len(known)

    def of_one(self, given: Given, controls: Controls) -> int:
        known = self._pieces(given, controls)
        if known is None or None in known:  # the loop guard counts the calls that map and those that put together, with their repairs
            return -(-2 * controls.max_agent_calls // 3)
        return -(-sum(2 * number - 1 for number in known if number) // max(1, len(known)))  # of all of them, shared out

    def in_turn(self, given: Given, controls: Controls) -> int | None:
        known = self._pieces(given, controls) or [None]
        return None if None in known else 1 + max(_levels(number or 1) for number in known)

    def together(self, given: Given, controls: Controls) -> int | str:
        known = self._pieces(given, controls)
        return "max_branches" if known is None else max(0, len(known) - 1)

    def levels(self, given: Given, controls: Controls) -> int | None:
        known = self._pieces(given, controls)
        return None if known is None else _levels(len(known))


def _levels(number: int) -> int:
    """Levels of results that are put together two by two."""
    return max(0, number - 1).bit_length()


def _texts(items: str, room: int, given: Given) -> tuple[Sequence[int | None], int]:
    """The sizes of items that are texts in the input."""
    return [tokens_in(text) for text in given.get(items) or ()], room


async def fan_out(state: MapReduceState) -> list[Send]:
    """The tasks to a few nodes, each so many-th to the same one: all of them begin with the first items."""
    most = len(state["tasks"])
    nodes = min(most, _NODES)
    sent = {"given": state["given"], "room": state["room"]}
    return [Send("map", {"tasks": state["tasks"][at::nodes], "todo": state["todo"][at:most:nodes], **sent}) for at in range(nodes)]


def _fields_of(state: Any) -> dict[str, Any]:
    """The input by field, whatever its schema is."""
    if isinstance(state, BaseModel):
        return state.model_dump()
    return asdict(state) if is_dataclass(state) and not isinstance(state, type) else dict(state)
