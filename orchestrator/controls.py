"""Controls: the limits of a run, as one frozen value."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

__all__ = ["Budget", "Controls", "JoinPolicy"]

_JOIN = re.compile(r"(collect|fail-fast|(?:at-least|first):[1-9]\d{0,5})(?:@(\d+(?:\.\d+)?))?")


class Budget(BaseModel):
    """What may be spent on model calls. None is no limit; each is an option of the command line under its name (`usd`: --budget-usd)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_calls: int | None = Field(default=None, ge=1, le=1_000_000_000, description="model calls in all, retries too")
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000_000_000, description="tokens in all, input and output")
    max_input_tokens: int | None = Field(default=None, ge=1, le=1_000_000_000_000, description="input tokens in all")
    max_output_tokens: int | None = Field(default=None, ge=1, le=1_000_000_000_000, description="output tokens in all")
    usd: float | None = Field(default=None, gt=0, le=1_000_000_000, description="US dollars in all, by the offline table of prices")

    def __bool__(self) -> bool:
        """Whether anything is limited."""
        return any(value is not None for value in self.__dict__.values())


class JoinPolicy(BaseModel):
    """When a round of branches is over: `kind` with its `count` K; after `deadline` seconds it is over in any case.

    Written `collect`, `fail-fast`, `at-least:K` or `first:K`, and `@SECONDS` behind it for a deadline: `first:3@30`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["collect", "fail-fast", "at-least", "first"] = "collect"
    count: int = Field(default=0, ge=0, le=1_000_000)
    deadline: float | None = Field(default=None, gt=0, le=2_592_000)

    @classmethod
    def parse(cls, text: str) -> "JoinPolicy":
        """The policy that `text` writes; raises ValueError."""
        match = _JOIN.fullmatch(text.strip())
        if match is None:
            raise ValueError("write collect, fail-fast, at-least:K or first:K, and @SECONDS behind it for a deadline")
        kind, _, count = match[1].partition(":")
        return cls.model_validate({"kind": kind, "count": int(count or 0), "deadline": match[2]})

    def __str__(self) -> str:
        counted = f"{self.kind}:{self.count}" if self.count else self.kind
        return counted if self.deadline is None else f"{counted}@{self.deadline:g}"


def _read_join(value: Any) -> Any:
    return JoinPolicy.parse(value) if isinstance(value, str) else value


Join = Annotated[JoinPolicy, BeforeValidator(_read_join), PlainSerializer(str, return_type=str)]


class Controls(BaseModel):
    """Limits of one run. Times are seconds; every field but the last two is an option of the command line under its name.

    Limits on an endpoint (`max_concurrency`, the two rates) hold over all runs of the process that use it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_concurrency: int = Field(default=64, ge=1, le=10_000, description="model calls in flight at once, over all runs of the process")
    requests_per_minute: int | None = Field(default=None, ge=1, le=10_000_000, description="requests to one endpoint a minute")
    tokens_per_minute: int | None = Field(default=None, ge=1, le=10_000_000_000, description="tokens of one endpoint a minute")
    max_queue: int = Field(default=10_000, ge=1, le=1_000_000, description="model calls that may wait for their turn at one endpoint")
    max_attempts: int = Field(default=3, ge=1, le=20, description="requests that one model call may take where failures may pass")
    connect_timeout: float = Field(default=10.0, gt=0, le=86_400, description="seconds a connection may take")
    first_token_timeout: float | None = Field(default=None, gt=0, le=86_400, description="seconds to the first token; answers are streamed")
    idle_timeout: float | None = Field(default=None, gt=0, le=86_400, description="seconds between two tokens; answers are streamed")
    call_timeout: float = Field(default=120.0, gt=0, le=86_400, description="seconds one model or tool call may take")
    branch_timeout: float | None = Field(default=None, gt=0, le=2_592_000, description="seconds one branch may take, waits left out")
    deadline: float | None = Field(default=None, gt=0, le=2_592_000, description="seconds the whole run may take")
    max_branches: int = Field(default=200, ge=1, le=100_000, description="branches a run may start, over all rounds")
    max_agent_calls: int = Field(default=50, ge=1, le=100_000, description="model calls of one agent in one branch")
    max_identical_tool_calls: int = Field(default=3, ge=1, le=1_000, description="times an agent may call a tool with the same arguments")
    max_answer_tokens: int = Field(default=8_192, ge=16, le=10_000_000, description="output tokens of one answer, where a budget counts")
    join: Join = Field(default=JoinPolicy(), description="when a round is over: collect, fail-fast, at-least:K or first:K, and @SECONDS")
    race: tuple[str, ...] = Field(default=(), description="roles whose models are asked at once; the first valid answer wins")
    hedge: tuple[str, ...] = Field(default=(), description="roles of which a slow request is made a second time")
    finish_reason: Literal["required", "optional"] = Field(default="required", description="whether an answer without one counts as cut")
    ask: Literal["never", "auto", "always"] = Field(default="never", description="whether the planner may ask you what a question means")
    embeddings: str | None = Field(default=None, min_length=1, max_length=200, description="model of vectors that searches use, too")
    approve: tuple[Literal["plan", "tools"], ...] = Field(default=(), description="what waits for your yes: the plan, calls of tools")
    budget: Budget = Field(default=Budget(), description="of the whole run")
    branch_budget: Budget = Field(default=Budget(), description="of each branch")
    role_budgets: dict[str, Budget] = Field(default={}, description="of all calls of a role")

    def merged(self, changes: Mapping[str, Any]) -> "Controls":
        """These controls with `changes` over them; a budget's limits may stand at the top, by their own names. Raises ValidationError."""
        values: dict[str, Any] = dict(self)
        budget = dict(self.budget)
        for name, value in changes.items():
            if name in Budget.model_fields:
                budget[name] = value
            elif name == "budget":
                budget.update(value if isinstance(value, Mapping) else dict(value))
            else:
                values[name] = value
        return Controls.model_validate({**values, "budget": budget})
