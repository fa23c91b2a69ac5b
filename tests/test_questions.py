"""Questions that ask the same, and questions that only look it."""

import pytest

from orchestrator.graphs.questions import new_tasks, same_question
from orchestrator.state import BranchResult, BranchStatus, Task

SAME = [
    ("When was Acme founded?", "when was acme founded"),
    ("What is the capital of France?", "What is France's capital?"),
    ("In 2019, what was the revenue of Acme?", "What was the revenue of Acme in 2019?"),
    ("In what year was Acme founded?", "What year was Acme founded in?"),
    ("Which city hosts the archive?", "What city hosts an archive?"),
    ("What limits the depth of a resume?", "What limits a resume's depth?"),
    ("What's the limit?", "What is the limit"),
    ("Who didn't sign?", "Who did not sign?"),
    ("How large is the U.S. market?", "How large is the US market?"),
    ("How many of 1,000 runs fail?", "How many of 1000 run fail?"),
    ("What are open-source licences?", "What are open source licences?"),
    ("Who was Ada Lovelace's mother?", "Who was the mother of Ada Lovelace?"),
    ("What is “durability”?", 'What is "durability"?'),
    ("Where\u2019s the journal kept?", "Where is the journal kept?"),
    ("Please, when does the lease end?", "When does the lease end?"),
    ("At Acme, who approves budgets?", "Who approves budgets at Acme?"),
    ("Why can't a run resume?", "Why cannot a run resume?"),
    ("How does the cache work?", "How do caches work?"),
    ("  What   is\ta lease ?", "What is a lease?"),
]
APART = [
    ("Did Acme buy Beta?", "Did Beta buy Acme?"),
    ("When was Ada born?", "When did Ada die?"),
    ("What was the revenue in 2019?", "What was the revenue in 2020?"),
    ("Who was the director?", "Who is the director?"),
    ("How long are flights from Paris to London?", "How long are flights to Paris from London?"),
    ("Who is the wife of the father of John?", "Who is the father of the wife of John?"),
    ("Who is John's father's wife?", "Who is John's wife's father?"),
    ("Does smoking cause stress?", "Does stress cause smoking?"),
    ("Is C++ fast?", "Is C fast?"),
    ("Which runs fail?", "Which runs do not fail?"),
    ("Who can resume a run?", "Who can't resume a run?"),
    ("What happened before 1990?", "What happened after 1990?"),
    ("How does trade affect us?", "How does trade affect US?"),
    ("What were the costs of Acme in 2019, of Beta in 2020?", "What were the costs of Acme in 2020, of Beta in 2019?"),
    ("Which books are by Orwell?", "Which books are about Orwell?"),
    ("When did it stop?", "Why did it stop?"),
    ("Is -5 valid?", "Is 5 valid?"),
    ("What is version 3.5?", "What is version 35?"),
    ("Is Paris larger than Rome?", "Is Rome larger than Paris?"),
    ("What costs $5?", "What costs 5%?"),
    ("What does vitamin A do?", "What does vitamin do?"),
    ("What is the largest city?", "What is the smallest city?"),
    ("Is a general purpose served?", "Is a generated purpose served?"),
    ("Which runs have a limit?", "Which runs are without a limit?"),
    ("a", "the"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_questions_that_ask_the_same(one: str, other: str) -> None:
    assert same_question(one) == same_question(other)


@pytest.mark.parametrize(("one", "other"), APART)
def test_questions_that_only_look_it(one: str, other: str) -> None:
    assert same_question(one) != same_question(other)


def done(number: int, question: str, status: BranchStatus = "ok") -> BranchResult:
    return BranchResult(task=Task(id=f"t{number}", question=question), status=status, error=None if status == "ok" else "broken")


def told(tasks: list[Task]) -> list[tuple[str, str]]:
    return [(task.id, task.question) for task in tasks]


def test_a_plan_that_asks_the_same_twice_is_merged_and_it_is_said() -> None:
    tasks, skipped, merged = new_tasks(
        ["What is the capital of France?", "Who rules?", "What is France's capital?", "Who rules?"], [], 0, 10
    )
    assert told(tasks) == [("t1", "What is the capital of France?"), ("t2", "Who rules?")]
    assert (skipped, merged) == ([], [{"question": "What is France's capital?", "into": "What is the capital of France?"}])


def test_a_later_round_is_merged_with_the_earlier_ones() -> None:
    branches = [done(1, "What is the capital of France?"), done(2, "Who rules?", "failed")]
    tasks, skipped, merged = new_tasks(["What's France's capital?", "Who rules", "Why?"], branches, 2, 10)
    assert told(tasks) == [("t2", "Who rules?"), ("t3", "Why?")]
    assert skipped == []
    assert [pair["into"] for pair in merged] == ["What is the capital of France?", "Who rules?"]


def test_beyond_the_limit_new_tasks_are_skipped_and_old_ones_stay_as_they_were() -> None:
    branches = [done(1, "Who rules?", "failed"), done(2, "Why?", "failed")]
    tasks, skipped, _ = new_tasks(["Who rules?", "Why?", "Where?"], branches, 2, 3)
    assert told(tasks) == [("t1", "Who rules?")]
    assert [(result.task.id, result.status, result.error) for result in skipped] == [("t3", "skipped", "not started: max_branches is 3")]
