"""What tests of the page do with a browser."""

from typing import Any

from playwright.async_api import Page

__all__ = ["frames", "names", "row", "row_count", "until"]


async def until(page: Page, holds: str) -> None:
    """Wait until this holds; Playwright's own way needs `eval`, which the page's policy forbids."""
    await page.evaluate(f"new Promise((done) => {{ const look = () => ({holds} ? done() : requestAnimationFrame(look)); look(); }})")


async def frames(page: Page) -> None:
    """Wait until everything that is due was drawn."""
    await page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


async def names(page: Page) -> list[str]:
    """The names of the rows, from the top, after everything was drawn."""
    await frames(page)
    rows: list[str] = await page.evaluate("""
        [...document.querySelectorAll('.row')].sort((one, other) => one.ariaRowIndex - other.ariaRowIndex)
            .map((row) => row.querySelector('.words').textContent)""")
    return rows


async def row_count(page: Page) -> int:
    return int(await page.locator("#rows").get_attribute("aria-rowcount") or 0)


def row(page: Page, span: dict[str, Any]) -> Any:
    return page.locator(f"#span-{span['id']}")
