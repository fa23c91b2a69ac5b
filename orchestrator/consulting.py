"""A run that asks a person while it goes on: the questions are told and asked, and the next attempt has the answers."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from langgraph.types import Command, StateSnapshot

from orchestrator.asking import Person, Question, given_to, names, read_named
from orchestrator.delivery import Delivery
from orchestrator.driving import Attempt
from orchestrator.events import Event
from orchestrator.outcome import Result, questions_of
from orchestrator.storage.runs import RunsTable

__all__ = ["answered", "continue_from", "tell_questions"]


def tell_questions(questions: Sequence[Question], delivery: Delivery) -> None:
    """An event for each question of a run that waits."""
    for asked, name in zip(questions, names(questions).values(), strict=True):
        told = asked.model_dump(mode="json", include={"text", "detail", "choices"})
        delivery.put(Event("question", {"name": name, "asks": asked.kind, **told, "takes": asked.takes}, branch=asked.branch))


async def answered(attempt: Attempt, result: Result, runs: RunsTable, delivery: Delivery) -> Attempt | None:
    """The attempt that goes on with the answers of the run's person; None where nobody is there, or everything is left for later.

    The answers are stored before anything is done with them. Time that the person took is no time of the run. Raises InputError.
    """
    if attempt.person is None or not result.questions or (attempt.stop is not None and attempt.stop.is_set()):
        return None
    named = names(result.questions)
    began = time.monotonic()
    kept = read_named(result.questions, await _said(attempt, attempt.person, result.questions, delivery))
    over = time.monotonic()
    delivery.put(Event("answered", {"questions": [named[asked.id] for asked in result.questions if given_to(asked, kept) is not None]}))
    if not kept:
        return None
    await runs.answer(attempt.run_id, kept)
    following = replace(attempt, answers={**attempt.answers, **kept}, spoilt=frozenset(), goes_on=True, began=attempt.began + over - began)
    continue_from(following, await attempt.graph.aget_state({"configurable": {"thread_id": attempt.thread}}))
    return following


async def _said(attempt: Attempt, person: Person, questions: Sequence[Question], delivery: Delivery) -> Mapping[str, Any]:
    """What the person answers; nothing where the run is asked to stop before."""
    said = asyncio.ensure_future(person(questions))
    stopped = asyncio.ensure_future((attempt.stop or asyncio.Event()).wait())
    await asyncio.sleep(0)  # who is to ask is ready when it is told to
    delivery.put(Event("asking", {"questions": list(names(questions).values())}))
    try:
        await asyncio.wait({said, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return said.result() if said.done() else {}
    finally:
        said.cancel()
        stopped.cancel()
        await asyncio.gather(said, stopped, return_exceptions=True)


def continue_from(attempt: Attempt, snapshot: StateSnapshot) -> None:
    """Go on with the tasks that the thread still has; answers to LangGraph's own interrupts go in with a Command."""
    asked = questions_of(interrupt for task in snapshot.tasks for interrupt in task.interrupts)
    native = {one.id: attempt.answers[one.id] for one in asked if one.native and one.id in attempt.answers}
    attempt.given = Command(resume=native) if native else None
    attempt.restore(snapshot)
