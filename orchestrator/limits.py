"""The controls of a run: options, variables of the environment and the workflow's module as one value, and where each came from."""

import argparse
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from orchestrator.errors import InputError
from orchestrator.text import in_words, nearest, one_line

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from orchestrator.controls import Controls

__all__ = ["Limit", "Origin", "add_controls", "controls_in_force", "environment_controls", "option_controls", "option_of"]

Origin = Literal["default", "module", "environment", "command line"]

_DEST = "control "  # no option of ours has a space in its name
_PREFIX = "ORCHESTRATOR_"
_OTHER_VARIABLES = (
    "ORCHESTRATOR_DB",
    "ORCHESTRATOR_EVENT_LOOP",
    "ORCHESTRATOR_HOME",
    "ORCHESTRATOR_MCP",
    "ORCHESTRATOR_MODEL",
    "ORCHESTRATOR_STORE_KEY",
    "ORCHESTRATOR_TRACE_CONTENT",
    "ORCHESTRATOR_TRACE_OTLP",
    "ORCHESTRATOR_WEB_SEARCH",
)
_BUDGETS = ("budget", "branch_budget", "role_budgets")
_SCOPED = re.compile(r"([A-Za-z_][\w-]*)=(.*)", re.DOTALL)
_USD = "budget_usd"  # what the limit `usd` of a budget is called where other limits stand beside it
_OF_BUDGETS = "N for the whole run, branch=N for each branch, ROLE=N for all calls of a role; repeatable"
_Found = dict[str, Any]  # a part of Controls, as its fields are nested


@dataclass(frozen=True, slots=True)
class Limit:
    """A control in force: its option, of which role or `branch` ("" for the run), its value as JSON holds it, where that came from."""

    name: str
    option: str
    of: str
    value: Any
    origin: Origin
    meaning: str


def option_of(name: str) -> str:
    """The option of a field or a control: `max_calls` is `--max-calls`."""
    return "--" + name.replace("_", "-")


def _fields() -> "dict[str, FieldInfo]":
    """Every control that is one value, by the name of its option."""
    from orchestrator.controls import Budget, Controls

    of_budgets = {_USD if name == "usd" else name: info for name, info in Budget.model_fields.items()}
    return {name: info for name, info in Controls.model_fields.items() if name not in _BUDGETS} | of_budgets


def _is_of_budget(name: str) -> bool:
    from orchestrator.controls import Budget

    return name == _USD or name in Budget.model_fields


def add_controls(parser: argparse.ArgumentParser) -> None:
    """An option for each control."""
    groups = [parser.add_argument_group("limits"), parser.add_argument_group("budgets", _OF_BUDGETS)]
    for name, info in _fields().items():
        of_budget = _is_of_budget(name)
        kind = "" if _kind(info)[0] == "a policy" else f": {_range(info)}"
        groups[of_budget].add_argument(
            option_of(name),
            dest=_DEST + name,
            default=argparse.SUPPRESS,
            action="append",
            metavar="[OF=]N" if of_budget else _metavar(info),
            help=f"{info.description}{kind} (default: {in_words(info.default)})".replace("%", "%%"),
        )


def option_controls(found: argparse.Namespace) -> _Found:
    """The controls that the command line gives, nested as in Controls; raises InputError that names the range."""
    given = {key.removeprefix(_DEST): words for key, words in vars(found).items() if key.startswith(_DEST)}
    return _read({name: (option_of(name), words) for name, words in given.items()})


def environment_controls(environ: Mapping[str, str]) -> tuple[_Found, list[str]]:
    """The controls that ORCHESTRATOR_... variables give, and a note for each other one; raises InputError, for a misspelt name too.

    A limit of a budget takes several words, as its option does: `200 researcher=20`.
    """
    named = {name: value for name, value in sorted(environ.items()) if name.startswith(_PREFIX) and name not in _OTHER_VARIABLES}
    if not named:
        return {}, []
    fields, words, notes = _fields(), dict[str, tuple[str, list[str]]](), list[str]()
    for variable, value in named.items():
        name = variable.removeprefix(_PREFIX).lower()
        if name in fields and variable.isupper():
            if value.strip():
                words[name] = (variable, value.split() if _is_of_budget(name) else [value.strip()])
        else:
            _refuse_misspelt(variable, [*_OTHER_VARIABLES, *(_PREFIX + known.upper() for known in fields)])
            notes.append(f"{one_line(variable, 80)} is no setting of this program: it is not looked at")
    return _read(words), notes


def _refuse_misspelt(variable: str, known: Sequence[str]) -> None:
    import difflib

    parts = {name.removeprefix(_PREFIX): name for name in known}
    near = difflib.get_close_matches(variable.removeprefix(_PREFIX).upper(), parts, 3, 0.6)
    if near:
        remedy = f"did you mean {' or '.join(parts[part] for part in near)}?"
        raise InputError(f"unknown variable {one_line(variable, 80)} in the environment", remedy=remedy)


def controls_in_force(module: "Controls", environment: _Found, options: _Found) -> "tuple[Controls, list[Limit]]":
    """The controls of a run, where the command line goes before the environment and that before the module; and a row for each."""
    from orchestrator.controls import Controls

    layers: list[tuple[Origin, _Found]] = [("module", module.model_dump()), ("environment", environment), ("command line", options)]
    together: _Found = {}
    for _, layer in layers:
        together = _laid_over(together, layer)
    controls = Controls.model_validate(together)
    plain = _flat(Controls().model_dump())
    origins: dict[tuple[str, str], Origin] = {}
    for origin, layer in layers:
        origins |= {key: origin for key, value in _flat(layer).items() if origin != "module" or value != plain.get(key)}
    return controls, list(_rows(controls, origins))


def _laid_over(below: _Found, above: _Found) -> _Found:
    nested = {key: _laid_over(below.get(key) or {}, value) if isinstance(value, dict) else value for key, value in above.items()}
    return {**below, **nested}


def _flat(values: _Found) -> dict[tuple[str, str], Any]:
    """By the name of the option and whose it is."""
    flat = {(name, ""): value for name, value in values.items() if name not in _BUDGETS}
    budgets = {"": values.get("budget", {}), "branch": values.get("branch_budget", {}), **values.get("role_budgets", {})}
    return flat | {(_USD if name == "usd" else name, of): value for of, budget in budgets.items() for name, value in budget.items()}


def _rows(controls: "Controls", origins: Mapping[tuple[str, str], Origin]) -> list[Limit]:
    fields = _fields()
    flat = _flat(controls.model_dump(mode="json"))
    order = [*fields]
    return [
        Limit(name, option_of(name), of, value, origins.get((name, of), "default"), _meaning(fields[name], of))
        for (name, of), value in sorted(flat.items(), key=lambda item: order.index(item[0][0]))
        if not of or value is not None or (name, of) in origins
    ]


def _meaning(info: "FieldInfo", of: str) -> str:
    meaning = info.description or ""
    where = f" of the role {of}" if of not in ("", "branch") else " of one branch"
    return meaning.replace(" in all", where, 1) if of else meaning


def _read(given: Mapping[str, tuple[str, Sequence[str]]]) -> _Found:
    """Words as values: for each control what it is called where it was given, and its words, of which the last counts."""
    fields, values = _fields(), dict[str, Any]()
    for name, (said, words) in given.items():
        for word in words:
            scoped = _SCOPED.fullmatch(word) if _is_of_budget(name) else None
            of, text = (scoped[1], scoped[2]) if scoped else ("", word)
            value = _value(name, fields[name], text, f"{said} {of}=N" if of else said)
            if name in values and _kind(fields[name])[0] == "any of" and value:  # each one more, where an option is given again
                value = tuple(dict.fromkeys((*values[name], *value)))
            values = _laid_over(values, _nested(name, of, value))
    return values


def _nested(name: str, of: str, value: Any) -> _Found:
    if not _is_of_budget(name):
        return {name: value}
    limit = {"usd" if name == _USD else name: value}
    if of in ("", "branch"):
        return {"branch_budget" if of else "budget": limit}
    return {"role_budgets": {of: limit}}


def _value(name: str, info: "FieldInfo", word: str, said: str) -> Any:
    from pydantic import ValidationError

    from orchestrator.controls import Budget, Controls

    model, field = (Budget, "usd" if name == _USD else name) if _is_of_budget(name) else (Controls, name)
    try:
        return getattr(model.model_validate({field: _plain(info, word)}), field)
    except ValidationError:
        what = f"{said} is {_range(info)}, not {one_line(word, 80)!r}"
        near = nearest(word, _choices(info))
        otherwise = "leave the option out" if said.startswith("-") else "unset it"
        remedy = f"did you mean {near}?" if near else f"give {_kind(info)[1]}, or {otherwise}"
        raise InputError(what, remedy=remedy) from None


def _plain(info: "FieldInfo", word: str) -> Any:
    if get_origin(info.annotation) is tuple:
        return () if word.strip() == "none" else _roles(word)
    return None if word.strip() == "none" and _takes_none(info) else word


def _roles(word: str) -> Any:
    """Names between commas; what holds anything else stays a text, and is refused as one."""
    names = [name.strip() for name in word.split(",")]
    return tuple(names) if all(re.fullmatch(r"\*|[A-Za-z_][\w-]*", name) for name in names) else word


def _takes_none(info: "FieldInfo") -> bool:
    return types.NoneType in get_args(info.annotation)


def _choices(info: "FieldInfo") -> tuple[str, ...]:
    if get_origin(info.annotation) is Literal:
        return get_args(info.annotation)
    if _kind(info)[0] == "any of":
        return get_args(get_args(info.annotation)[0])
    return ("collect", "fail-fast") if _kind(info)[0] == "a policy" else ()


def _kind(info: "FieldInfo") -> tuple[str, str]:
    """What a value is, and what to give instead of a wrong one."""
    if get_origin(info.annotation) is tuple and get_origin(get_args(info.annotation)[0]) is Literal:
        return "any of", "one or more of these, with commas between them"
    if get_origin(info.annotation) is tuple:
        return "names of roles", "names with commas between them, such as planner,writer"
    if get_origin(info.annotation) is Literal:
        return "one of", "one of these"
    kinds = {item for item in get_args(info.annotation) or (info.annotation,) if item is not types.NoneType}
    if kinds <= {int, float}:
        return ("a whole number" if kinds == {int} else "a number"), "a number in this range"
    return ("a model", "a model") if kinds == {str} else ("a policy", "one of these, such as first:3@30")


def _range(info: "FieldInfo") -> str:
    """`a whole number from 1 to 10,000`, `a number above 0 and up to 86,400, or none`, `required or optional`."""
    kind = _kind(info)[0]
    if kind == "names of roles":
        return "names of roles with commas between them, * for all, or none"
    if kind == "one of":
        return " or ".join(get_args(info.annotation))
    if kind == "any of":
        return f"any of {', '.join(_choices(info))} with commas between them, or none"
    if kind == "a model":
        return "openai:NAME, such as openai:text-embedding-3-small, or none"
    if kind == "a policy":
        return "collect, fail-fast, at-least:K or first:K, with @SECONDS behind it for a deadline"
    limits = {name: getattr(item, name) for item in info.metadata for name in ("ge", "gt", "le") if hasattr(item, name)}
    low = f"from {limits['ge']:,} to" if "ge" in limits else f"above {limits.get('gt', 0):,} and up to"
    return f"{kind} {low} {limits['le']:,}{', or none' if _takes_none(info) else ''}"


def _metavar(info: "FieldInfo") -> str:
    return {
        "names of roles": "ROLE[,ROLE]",
        "one of": "|".join(_choices(info)),
        "any of": "|".join(_choices(info)),
        "a model": "SPEC",
        "a policy": "POLICY",
    }.get(_kind(info)[0], "N")
