"""Controls: the limits of a run, as one frozen value."""

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Controls"]


class Controls(BaseModel):
    """Limits of one run. Times are seconds; every field is an option of the command line under the same name."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_concurrency: int = Field(default=64, ge=1, le=10_000, description="model calls in flight at once, over the whole run")
    max_branches: int = Field(default=200, ge=1, le=100_000, description="branches a run may start, over all rounds")
    call_timeout: float = Field(default=120.0, gt=0, le=86_400, description="seconds one model call may take")
    deadline: float | None = Field(default=None, gt=0, le=2_592_000, description="seconds the whole run may take")
