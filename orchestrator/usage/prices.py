"""What tokens cost, from a table that comes with a package: nobody is asked."""

import asyncio
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from math import isclose, nan
from typing import Any

from orchestrator.controls import Controls
from orchestrator.errors import BudgetExceeded, InputError

__all__ = ["check_budgets", "counts_money", "known_price", "open_prices", "price", "prices"]

_REMEDY = "limit tokens instead: --max-tokens"


@cache
def _prices() -> Callable[..., Any]:
    from genai_prices import calc_price

    return calc_price


async def open_prices() -> None:
    """Read the table in a thread, once: it takes long."""
    if not _prices.cache_info().currsize:
        await asyncio.to_thread(_prices)


def price(model: str, input_tokens: int, output_tokens: int) -> float | None:
    """US dollars from the offline table of genai-prices; None for a model that it does not know."""
    told = prices(model, input_tokens, output_tokens)
    return None if told is None else sum(told)


def prices(model: str, input_tokens: int, output_tokens: int) -> tuple[float, float] | None:
    """The same, of the tokens that went in and of those that came out."""
    if model == "offline":
        return 0.0, 0.0
    rates = _rates(model)
    if rates is not None:
        return rates[0] * input_tokens, rates[1] * output_tokens
    return _looked_up(model, input_tokens, output_tokens) if _is_known(model) else None


@lru_cache(maxsize=1024)
def _is_known(model: str) -> bool:
    return _looked_up(model, 0, 0) is not None


def _looked_up(model: str, input_tokens: int, output_tokens: int) -> tuple[float, float] | None:
    from genai_prices import Usage as Tokens

    try:
        found = _prices()(Tokens(input_tokens=input_tokens, output_tokens=output_tokens), model_ref=model)
    except LookupError:
        return None
    return float(found.input_price), float(found.output_price)


def known_price(model: str, input_tokens: int, output_tokens: int) -> float:
    """US dollars; raises BudgetExceeded for a model without a known price, because nobody could tell when the budget is used up."""
    known = price(model, input_tokens, output_tokens)
    if known is None:
        raise BudgetExceeded(_unknown(model), remedy=_REMEDY)
    return known


@lru_cache(maxsize=1024)
def _rates(model: str) -> tuple[float, float] | None:
    """US dollars of an input and of an output token, where neither depends on how many there are: a look into the table takes 50 us."""
    few, many = 1_000, 10_000_000
    found = [_looked_up(model, *tokens) for tokens in ((few, 0), (0, few), (many, 0), (0, many), (many, many))]
    given, written, *larger = [nan if each is None else sum(each) for each in found]
    expected = (given * many / few, written * many / few, (given + written) * many / few)
    return (given / few, written / few) if all(map(isclose, larger, expected)) else None


def counts_money(controls: Controls) -> bool:
    """Whether any budget limits US dollars."""
    return any(budget.usd is not None for budget in (controls.budget, controls.branch_budget, *controls.role_budgets.values()))


def check_budgets(controls: Controls, models: Iterable[str]) -> None:
    """Raises InputError where a budget counts money and a model's price is not known. Reads the table of prices: call it in a thread."""
    for model in dict.fromkeys(models) if counts_money(controls) else ():
        if price(model, 0, 0) is None:
            raise InputError(_unknown(model), remedy=_REMEDY)


def _unknown(model: str) -> str:
    return f"a budget counts US dollars, and the price of the model {model!r} is not known"
