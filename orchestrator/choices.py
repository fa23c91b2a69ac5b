"""The models and the controls of a run, chosen and checked against its workflow before anything starts."""

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.language_models import BaseChatModel
from langgraph.graph.state import CompiledStateGraph
from pydantic import ValidationError

from orchestrator.checks import views
from orchestrator.controls import Controls
from orchestrator.errors import InputError
from orchestrator.models import check_embeddings, choose_model, resolve_model, warnings_for
from orchestrator.models.call import model_name
from orchestrator.returns import roles_asked
from orchestrator.usage import check_budgets
from orchestrator.workflow import Workflow

__all__ = ["Choice", "ModelSpec", "check_controls", "check_roles", "choose_models", "inner_graphs", "merged_controls"]

OneModel = str | BaseChatModel
Models = OneModel | Sequence[OneModel]
ModelSpec = Models | Mapping[str, Models]

_ROLES = ("planner", "researcher", "verifier", "writer")


@dataclass(frozen=True)
class Choice:
    """The chat models of a run by role, in the order of preference; how the first line says it, and why.

    `specs`: how each was asked for, by role: None for one that was made in Python, which nothing but its maker can make again.
    """

    by_role: dict[str, BaseChatModel | Sequence[BaseChatModel]]
    said: str
    reason: str
    notes: tuple[str, ...]
    specs: dict[str, list[str | None]] = field(default_factory=dict)


def choose_models(model: ModelSpec | None, workflow: Workflow) -> Choice:
    """The models that were given, else the environment's choice for every role; raises InputError."""
    given: dict[str, Models | None] = {**model} if isinstance(model, Mapping) else {"": model}
    _check_roles([role for role in given if role], workflow, "that could use a model")
    chosen, said, reason = dict[str, BaseChatModel | Sequence[BaseChatModel]](), list[str](), "given"
    default = given.pop("", None)
    if default is None or isinstance(default, str):
        choice = choose_model(default, os.environ)
        default, reason = choice.specs, choice.reason
    specs, by_role = list[str](), dict[str, list[str | None]]()
    for role, models in {"": default, **given}.items():
        several = [models] if isinstance(models, str | BaseChatModel) else list(models or ())
        if not several:
            raise InputError(f"no model is given for role {role!r}" if role else "the list of models is empty", remedy="name one or more")
        resolved = [resolve_model(one) if isinstance(one, str) else one for one in several]
        chosen[role] = resolved if len(resolved) > 1 else resolved[0]
        named = ", then ".join(one if isinstance(one, str) else model_name(one) for one in several)
        said.append(f"{role}={named}" if role else named)
        specs += [one for one in several if isinstance(one, str)]
        by_role[role] = [one if isinstance(one, str) else None for one in several]
    notes = [note for spec in specs for note in warnings_for(spec, os.environ)]
    return Choice(chosen, ", ".join(said), reason, tuple(dict.fromkeys(notes)), by_role)


def _check_roles(roles: Iterable[str], workflow: Workflow, use: str) -> None:
    """A role is what a node asks by, or the name of an agent or a node somewhere: what is said of anything else would never hold."""
    roles = list(roles)
    if not roles:
        return
    known: set[str | None] = {*_ROLES}
    for _, view in views(workflow.graph):
        for node in view.nodes:
            function = view.functions.get(node)
            known |= (function and roles_asked(function)) or {node}  # a node that asks by another name is none itself
    names = sorted(role for role in known if role is not None)
    for role in roles:
        if role not in known and None not in known:  # a role that is computed may be any
            near = difflib.get_close_matches(role, names, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"its roles: {', '.join(names)}"
            raise InputError(f"workflow {workflow.name!r} has no role {role!r} {use}", remedy=remedy)


def inner_graphs(graph: CompiledStateGraph[Any, Any, Any, Any]) -> list[Any]:
    """The compiled graphs that are nodes of `graph`, and theirs."""
    return [inner for _, inner in graph.get_subgraphs(recurse=True)]


def merged_controls(workflow: Workflow, given: Mapping[str, Any] | Controls | None) -> Controls:
    """The workflow's controls with what was given over them; raises InputError."""
    if given is None or isinstance(given, Controls):
        return given or workflow.controls
    try:
        return workflow.controls.merged(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", remedy="see --help for the range") from None


def check_roles(controls: Controls, workflow: Workflow) -> None:
    """Raises InputError for a role that controls name and the workflow does not have."""
    for name in ("race", "hedge"):
        _check_roles((role for role in getattr(controls, name) if role != "*"), workflow, f"that could {name}")
    _check_roles(controls.role_budgets, workflow, "that could have a budget")


def check_controls(controls: Controls, models: Choice, workflow: Workflow) -> None:
    """Raises InputError: roles that controls name must exist, one that races needs a second model, and a price must be known."""
    check_roles(controls, workflow)
    if controls.embeddings is not None:
        check_embeddings(controls.embeddings)
    several = {role for role, asked in models.by_role.items() if not isinstance(asked, BaseChatModel)}
    for role in controls.race:
        if not (several if role == "*" else {role if role in models.by_role else ""} & several):
            what = "race needs two models or more" if role == "*" else f"role {role!r} is to race, and it has one model"
            raise InputError(what, remedy="name several, as in --model openai:NAME,openai:OTHER")
    every = (one for asked in models.by_role.values() for one in ([asked] if isinstance(asked, BaseChatModel) else asked))
    check_budgets(controls, map(model_name, every))
