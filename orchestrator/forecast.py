"""The forecast: what a run may cost at most, told from its graph and its limits before anything is spent.

A node says what it costs in LangGraph's own node metadata, each a number, the name of a control, or a function of the run's input (by
field; what is not given is not in it) and its controls that gives one of the two:
`asks`: how many `RunContext.ask` a visit makes at most; they follow one another, those that a control counts go side by side; `chain`: how
many of them follow one another, where it is not all; `visits`: how often one run of its graph comes to the node at most; `runs`: how
often a visit runs the graphs inside it, for all of them or by their names; `input_tokens`: what one prompt holds at most; `noun`: what a
branch of it is called.
A node that says nothing, has no graph inside and whose source may reach a model may ask as often as the loop guard lets it.
"""

import builtins
import enum
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from orchestrator.checks import GraphView
from orchestrator.controls import Controls
from orchestrator.errors import InputError
from orchestrator.returns import function_of, names, roles_asked
from orchestrator.text import counted, one_line
from orchestrator.usage import price

if TYPE_CHECKING:
    from orchestrator.workflow import Workflow

__all__ = ["Forecast", "forecast"]

Models = Mapping[str, str | Sequence[str | None] | None]

_PROMPT_TOKENS = 16_000  # where a node does not say
_REQUESTS = 3  # of one question: the first and two repairs
_RETRY_SHARE, _RETRIES_AT_FIRST = 0.2, 5  # the run's retry budget, for each endpoint
_STEPS = 50  # that a graph may take beyond max_branches
_USUAL_BRANCHES = 5
# What a node may use and still be known to ask no model.
_LIBRARIES = {
    *("asyncio", "builtins", "collections", "dataclasses", "datetime", "decimal", "enum", "hashlib", "html", "itertools", "json"),
    *("math", "random", "re", "statistics", "string", "time", "uuid"),
}
_GRAPH_TYPES = ("langgraph.types", "langgraph.graph", "langgraph.constants", "langchain_core.messages")
_DATA = (str, bytes, int, float, complex, re.Pattern, enum.Enum)
_PLAIN_ATTRIBUTES = frozenset(name for kind in (str, bytes, int, float, list, tuple, dict, set, re.Pattern, re.Match) for name in dir(kind))
_REACHES_ANYTHING = (getattr, eval, exec, __import__, vars, globals, locals)


@dataclass(frozen=True)
class Forecast:
    """Upper bounds of one run: `calls` are requests to models, `seconds` those of the longest `chain` of calls.

    `by` and `seconds_by` say which limits make them what they are. `usual_calls` is one pass in which each node asks once, with
    `usual_branches` branches, each a `noun`; None where the graph does not tell. `cost_usd` is None where a model has no price
    (`unpriced`).
    """

    calls: int
    by: str
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
    unpriced: list[str]
    chain: int
    seconds: float
    seconds_by: str
    usual_calls: int | None
    usual_branches: int
    noun: str
    by_role: dict[str, int]
    assumptions: list[str]

    def to_json(self) -> dict[str, Any]:
        """The forecast as one JSON object."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The forecast for people: at most 12 lines of at most 80 columns."""
        return [one_line(line, 80) if line[0] != " " else f"  {one_line(line, 78)}" for line in self._lines()][:12]

    def _lines(self) -> Iterator[str]:
        yield f"at most {counted(self.calls, 'model call')}{': ' if self.by else ''}{self.by}"
        if not self.calls:
            return
        if self.usual_calls is not None:
            several = f", {_several(self.usual_branches, self.noun)}" if self.usual_branches else ""
            yield f"one pass in which each node asks once{several}: {counted(self.usual_calls, 'call')}"
        yield f"at most {self.input_tokens:,} tokens in, {self.output_tokens:,} out"
        if self.cost_usd is None:
            yield f"cost unknown: no price for {', '.join(self.unpriced)}"
        else:
            yield f"at most ${self.cost_usd:,.2f}" if self.cost_usd else "no cost"
        yield f"longest chain: {counted(self.chain, 'call')}, at most {self.seconds:,.0f} s by {self.seconds_by}"
        yield "taken for granted:"
        yield from (f"  {assumption}" for assumption in self.assumptions)


def forecast(workflow: "Workflow", controls: Controls, models: Models, given: Mapping[str, Any] | None = None) -> Forecast:
    """What a run of `workflow` costs at most; `models` are names by role, `""` every other's, and `given` is its input by field.

    A role with several models may ask each of them. Raises InputError for node metadata that cannot be read.
    """
    walk = _Walk(controls, models, {**(given or {})})  # its own: functions may keep what they found out of it
    chain = walk.graph(GraphView(workflow.graph), _Place())
    return _Sum(controls, models, walk).forecast(chain)


@dataclass(frozen=True)
class _Place:
    """Where a walk is: the fan-outs around it with their sizes, how often a branch comes here, and the graphs around.

    `branch`: inside a branch of a supervisor, where the loop guard counts all calls of a role.
    """

    fans: tuple[tuple[str, int], ...] = ()
    times: int = 1
    name: str = ""
    within: tuple[int, ...] = ()
    branch: bool = False


@dataclass(frozen=True)
class _Ask:
    """What one node asks: `requests` at most in each of its branches."""

    role: str
    fans: tuple[tuple[str, int], ...]
    branches: int
    requests: int
    input_tokens: int
    noun: str

    @property
    def in_all(self) -> int:
        return self.branches * self.requests


@dataclass
class _Walk:
    """The asks of a graph and of the graphs inside it."""

    controls: Controls
    models: Models
    given: Mapping[str, Any]
    asks: list[_Ask] = field(default_factory=list)
    usual: int = 0
    untold: list[str] = field(default_factory=list)
    counted: set[str] = field(default_factory=set)  # fan-outs whose size the input tells

    def graph(self, view: GraphView, place: _Place) -> int:
        """The longest chain of requests in one run of a graph; its asks are collected."""
        shape = _Shape(view)
        chains = {node: self._node(view, shape, node, place) for node in view.nodes}
        return shape.longest(chains, self.controls.max_branches + _STEPS)

    def _node(self, view: GraphView, shape: "_Shape", node: str, place: _Place) -> tuple[int, int | None]:
        """The chain of one visit, and how many visits follow one another: None where only the steps of the graph bound them."""
        told = _Told(view, node, self.controls, place.name, self.given)
        name, visits, fanned = place.name or node, told.number("visits"), node in shape.fanned
        self.counted.update([node] if fanned and told.counts("visits") else [])
        laps = self.controls.max_branches + _STEPS if node in shape.circling else 1
        fans = (*place.fans, (node, self.controls.max_branches * laps if visits is None else visits)) if fanned else place.fans
        times = 1 if fanned else laps if visits is None else visits
        function = view.functions.get(node)
        roles = sorted(role for role in (roles_asked(function) if function and not place.name else ()) if role is not None)
        name = roles[0] if len(roles) == 1 else name
        branch = place.branch or (function is not None and names(function, {"in_branch"}))
        graphs = [graph for graph in view.subgraphs.get(node, ()) if id(graph.builder) not in place.within]
        asks = told.number("asks")
        if asks is not None and self.controls.ask != "never":
            asks += told.number("clarifies") or 0
        chain = 0
        if asks is None and not graphs and not _harmless(function):
            chain = self._untold(told, name, fans, place.times, times)
        elif asks:
            often = place.times * min(times, self.controls.max_agent_calls if visits is None else visits)
            chain = self._told(told, _Place(fans, often, name, branch=branch), asks)
        for role in roles if asks != 0 and not graphs and len(roles) > 1 else ():
            self._ask(told, role, fans, 0)  # counted under the node's name, and each of their models may be the dearest
        told.number("runs")  # also where there is no graph inside: what is said wrongly is named
        for graph in graphs:
            runs = 1 if (told_runs := told.number("runs", graph.name)) is None else told_runs
            if not runs:
                continue
            inner = _Place(fans, place.times * times * runs, graph.name or node, (*place.within, id(view.builder)), branch)
            chain += runs * self.graph(GraphView(graph), inner)
        return chain, visits if visits is not None and not fanned else None if fanned or node in shape.circling else 1

    def _told(self, told: "_Told", place: _Place, asks: int) -> int:
        """A node that tells what it asks; the chain of one visit. Asks that the loop guard counts it bounds with their repairs."""
        most, role = self.controls.max_agent_calls, place.name
        visit = asks * _REQUESTS * self._models(role)
        requests = (visit if told.follows else min(visit, most)) * place.times
        self._ask(told, role, place.fans, min(requests, most) if place.branch and not told.counts("asks") else requests)
        chain = told.number("chain")
        follow = (asks if chain is None else min(asks, chain)) if told.follows else 1
        self.usual += (follow if chain is None else 1) * self.usually(place.fans)
        return follow * _REQUESTS * (1 if {role, "*"} & {*self.controls.race} else self._models(role))

    def _untold(self, told: "_Told", role: str, fans: tuple[tuple[str, int], ...], outer: int, visits: int) -> int:
        """A node that says nothing. In a loop its earlier visits count for the guard, so that a later one has fewer calls left."""
        most = self.controls.max_agent_calls
        self._ask(told, role, fans, outer * sum(most - lap for lap in range(min(visits, most))))
        self.untold.append(told.node)
        return most

    def _ask(self, told: "_Told", role: str, fans: tuple[tuple[str, int], ...], requests: int) -> None:
        tokens = told.number("input_tokens") or _PROMPT_TOKENS
        self.asks.append(_Ask(role, fans, prod(size for _, size in fans), requests, tokens, told.noun))

    def usually(self, fans: Sequence[tuple[str, int]]) -> int:
        """How many branches there usually are: a few, or as many as the input says."""
        return prod(size if node in self.counted else min(_USUAL_BRANCHES, size) for node, size in fans)

    def _models(self, role: str) -> int:
        """How many requests one question makes of its role's models: every model may be asked, a slow request a second time."""
        return len(_models_of(self.models, role)) * (2 if {role, "*"} & {*self.controls.hedge} else 1)


@dataclass(frozen=True)
class _Told:
    """What a node's metadata tells."""

    view: GraphView
    node: str
    controls: Controls
    where: str
    given: Mapping[str, Any]

    @property
    def follows(self) -> bool:
        """Whether its asks follow one another."""
        return isinstance(self._value("asks"), int)

    @property
    def noun(self) -> str:
        """What one of its branches is."""
        return str((self.view.builder.nodes[self.node].metadata or {}).get("noun") or "branch")

    def counts(self, key: str) -> bool:
        """Whether a number comes of the run's input."""
        return callable((self.view.builder.nodes[self.node].metadata or {}).get(key)) and isinstance(self._value(key), int)

    def _value(self, key: str, of: str = "") -> Any:
        value = (self.view.builder.nodes[self.node].metadata or {}).get(key)
        value = value.get(of) if isinstance(value, Mapping) else value
        return value(self.given, self.controls) if callable(value) else value

    def number(self, key: str, of: str = "") -> int | None:
        """A number of the metadata, by itself or as the name of a control; None where it says nothing. `of`: the graph inside."""
        value = self._value(key, of)
        found = getattr(self.controls, value, None) if isinstance(value, str) and value in Controls.model_fields else value
        if found is None or (isinstance(found, int) and not isinstance(found, bool) and found >= 0):
            return found
        raise InputError(
            f"node {self.node!r} says {key}={value!r}",
            where=f"in the graph of {self.where}" if self.where else "",
            remedy="use a whole number from 0 or the name of a control that is one, such as 'max_branches'",
        )


class _Shape:
    """Which nodes a graph may come to again, and which a Send starts many times."""

    def __init__(self, view: GraphView) -> None:
        self.view = view
        loose = [node for node in view.nodes if view.leads_anywhere(node)]
        self.next = {node: set(view.nodes) if node in loose else view.successors(node) & set(view.nodes) for node in view.nodes}
        self.reach = {node: self._reached(node) for node in view.nodes}
        self.circling = {node for node in view.nodes if node in self.reach[node]}
        self.fanned = set(view.nodes) if any(map(self._may_send, ["__start__", *loose])) else view.fanned

    def _reached(self, node: str) -> set[str]:
        found: set[str] = set()
        ahead = set(self.next[node])
        while ahead:
            found.add(other := ahead.pop())
            ahead |= self.next[other] - found
        return found

    def _may_send(self, node: str) -> bool:
        """Whether `node` or a router after it knows Send, and does not tell where to."""
        if not self.view.leads_anywhere(node):
            return False
        routers = [function_of(branch.path) for branch in self.view.builder.branches.get(node, {}).values()]
        return any(function is not None and names(function, {"Send"}) for function in (*routers, self.view.functions.get(node)))

    def longest(self, chains: Mapping[str, tuple[int, int | None]], steps: int) -> int:
        """The longest way through the graph: nodes that lead to one another count all, as often as they are visited."""
        groups = {node: frozenset({node} | {other for other in self.reach[node] if node in self.reach[other]}) for node in chains}
        weights = {group: self._weight(group, chains, steps) for group in set(groups.values())}
        known: dict[frozenset[str], int] = {}

        def way(group: frozenset[str]) -> int:
            if group not in known:
                ahead = {groups[other] for node in group for other in self.next[node]} - {group}
                known[group] = weights[group] + max(map(way, ahead), default=0)
            return known[group]

        return max(map(way, weights), default=0)

    def _weight(self, group: frozenset[str], chains: Mapping[str, tuple[int, int | None]], steps: int) -> int:
        circles = any(node in self.circling for node in group)
        told = [visits for node in group if (visits := chains[node][1]) is not None]
        laps = (max(told) if told else steps) if circles else 1
        return sum(chain * (laps if visits is None else visits) for chain, visits in (chains[node] for node in group))


@dataclass(frozen=True)
class _Sum:
    """The asks of a walk under the limits of a run."""

    controls: Controls
    models: Models
    walk: _Walk

    def forecast(self, longest: int) -> Forecast:
        controls, asks = self.controls, self.walk.asks
        by_role = self._by_role()
        first = min(sum(by_role.values()), self._by_branch())
        retries = self._retries(first)
        wanted = first + retries
        calls = min(wanted, controls.budget.max_calls or wanted)
        chain = min(longest + min(retries, longest * (controls.max_attempts - 1)), calls)
        budget = controls.budget
        input_tokens = _least(self._input_tokens(calls), budget.max_input_tokens, budget.max_tokens)
        output_tokens = _least(calls * controls.max_answer_tokens, budget.max_output_tokens, budget.max_tokens)
        seconds = chain * controls.call_timeout
        deadline = controls.deadline if controls.deadline is not None and controls.deadline < seconds else None
        fans = {name: size for ask in asks for name, size in ask.fans}
        cost, unpriced = self._cost(calls, input_tokens, output_tokens)
        return Forecast(
            calls=calls,
            by=self._by(calls, wanted),
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cost_usd=cost,
            unpriced=unpriced,
            chain=chain,
            seconds=deadline or seconds,
            seconds_by="--deadline" if deadline else "--call-timeout",
            usual_calls=None if self.walk.untold else self.walk.usual,
            usual_branches=min(self.walk.usually([fan]) for fan in fans.items()) if fans else 0,
            noun=next((ask.noun for ask in asks if ask.fans), "branch"),
            by_role=by_role,
            assumptions=list(self._assumptions(retries, bool(fans))),
        )

    def _by_role(self) -> dict[str, int]:
        """Requests by role, within the budgets of roles and branches."""
        roles: dict[str, int] = defaultdict(int)
        limit = self.controls.branch_budget.max_calls
        for ask in self.walk.asks:
            roles[ask.role] += ask.branches * _least(ask.requests, limit if ask.fans else None)
        budgets = self.controls.role_budgets
        return {role: _least(count, budgets[role].max_calls if role in budgets else None) for role, count in sorted(roles.items())}

    def _by_branch(self) -> int:
        """Requests in all, within the budget of each branch."""
        inside: dict[tuple[tuple[str, int], ...], list[_Ask]] = defaultdict(list)
        for ask in self.walk.asks:
            inside[ask.fans].append(ask)
        limit = self.controls.branch_budget.max_calls
        return sum(asks[0].branches * _least(sum(ask.requests for ask in asks), limit if fans else None) for fans, asks in inside.items())

    def _retries(self, first: int) -> int:
        """What may be asked again: a fifth of the first requests, and five at each endpoint."""
        online = {model for ask in self.walk.asks for model in _models_of(self.models, ask.role)} - {"offline"}
        if not online or self.controls.max_attempts == 1:
            return 0
        return min(int(first * _RETRY_SHARE) + _RETRIES_AT_FIRST * len(online), first * (self.controls.max_attempts - 1))

    def _input_tokens(self, calls: int) -> int:
        """Those of the first requests, and the most that any prompt holds for each retry."""
        sizes = [ask.input_tokens for ask in self.walk.asks]
        first = sum(ask.in_all * ask.input_tokens for ask in self.walk.asks)
        more = max(0, calls - sum(ask.in_all for ask in self.walk.asks))
        return min(first + more * max(sizes), calls * max(sizes)) if sizes else 0

    def _cost(self, calls: int, input_tokens: int, output_tokens: int) -> tuple[float | None, list[str]]:
        """US dollars, as if every call were the dearest; and the models without a price."""
        dearest, tokens, unpriced = 0.0, 0.0, dict[str, None]()
        for ask in self.walk.asks if calls else ():
            for model in _models_of(self.models, ask.role):
                cost = _price(model, ask.input_tokens, self.controls.max_answer_tokens)
                if model is None or cost is None:
                    unpriced[model or "the default model"] = None
                    continue
                dearest = max(dearest, cost)
                tokens = max(tokens, (_price(model, input_tokens, 0) or 0.0) + (_price(model, 0, output_tokens) or 0.0))
        if unpriced:
            return None, list(unpriced)
        return min(dearest * calls, tokens, self.controls.budget.usd or tokens), []

    def _by(self, calls: int, wanted: int) -> str:
        if calls < wanted:
            return "by --max-calls"
        costly = max(self.walk.asks, key=lambda ask: ask.in_all, default=None)
        if costly is None:
            return "no node asks a model"
        if costly.branches == 1:
            return "--max-agent-calls lowers it" if costly.requests >= self.controls.max_agent_calls else "--max-calls lowers it"
        inside = _least(sum(a.requests for a in self.walk.asks if a.fans == costly.fans), self.controls.branch_budget.max_calls)
        lowers = "" if {name for name, _ in costly.fans} <= self.walk.counted else "; --max-branches lowers it"
        return f"{_several(costly.branches, costly.noun)} x {inside:,}{lowers}"

    def _assumptions(self, retries: int, fans: bool) -> Iterator[str]:
        prompts = {ask.input_tokens for ask in self.walk.asks}
        yield f"a prompt holds at most {max(prompts):,} tokens" if prompts else ""
        yield f"an answer has at most {self.controls.max_answer_tokens:,} tokens (--max-answer-tokens)"
        yield f"an answer that does not fit is repaired at most {_REQUESTS - 1} times"
        if retries:
            yield f"{counted(retries, 'retry', 'retries')} at most; what an endpoint rejects (400, 429) is not counted"
        else:
            yield "nothing is asked again after a failure"
        if self.controls.embeddings:
            yield "vectors are not counted: a call a search, and one for 32 new passages"
        if self.walk.untold:
            untold = ", ".join(dict.fromkeys(self.walk.untold))
            yield f"{self.controls.max_agent_calls:,} calls a visit where a node does not say (--max-agent-calls): {untold}"
        if fans and not {name for ask in self.walk.asks for name, _ in ask.fans} <= self.walk.counted:
            yield f"a fan-out starts at most {counted(self.controls.max_branches, 'branch', 'branches')} (--max-branches)"


def _harmless(function: FunctionType | None, seen: frozenset[CodeType] = frozenset()) -> bool:
    """Whether a node's source reaches nothing but plain data and harmless libraries: then it asks no model."""
    if function is None:
        return False
    codes, known = [function.__code__], {**vars(builtins), **function.__globals__}
    for code in codes:
        codes += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
    seen |= {function.__code__}
    found = {name for code in codes for name in code.co_names}
    try:
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:  # a name that is not bound yet
        return False
    values = [
        *cells,
        *(function.__defaults__ or ()),
        *(function.__kwdefaults__ or {}).values(),
        *(known[name] for name in found & {*known}),
    ]
    attributes = _PLAIN_ATTRIBUTES.union(*(dir(value) for value in values if isinstance(value, ModuleType | type)))
    return found - {*known} <= attributes and all(_is_harmless(value, seen) for value in values)


def _is_harmless(value: Any, seen: frozenset[CodeType]) -> bool:
    if isinstance(value, ModuleType):
        return _is_library(value.__name__)
    if isinstance(value, FunctionType) and not _is_library(value.__module__):
        return value.__code__ in seen or _harmless(value, seen)
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return value not in _REACHES_ANYTHING and _is_library(value.__module__)
    if isinstance(value, Mapping):
        return all(_is_harmless(item, seen) for item in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return all(_is_harmless(item, seen) for item in value)
    return value is None or isinstance(value, _DATA)


def _is_library(module: str | None) -> bool:
    return (module or "").partition(".")[0].lstrip("_") in _LIBRARIES or (module or "").startswith(_GRAPH_TYPES)


def _several(number: int, noun: str) -> str:
    return counted(number, noun, "branches" if noun == "branch" else None)


def _price(model: str | None, input_tokens: int, output_tokens: int) -> float | None:
    """The price of one call; a spec such as `openai:gpt-5-mini` will do."""
    if model is None:
        return None
    cost = price(model, input_tokens, output_tokens)
    return price(model.partition(":")[2], input_tokens, output_tokens) if cost is None and ":" in model else cost


def _models_of(models: Models, role: str) -> list[str | None]:
    found = models.get(role, models.get(""))
    return [found] if found is None or isinstance(found, str) else list(found)


def _least(value: int, *limits: int | None) -> int:
    return min([value, *(limit for limit in limits if limit is not None)])
