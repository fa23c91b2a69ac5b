"""The page of a trace, looked at in a browser."""

import asyncio
import copy
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect
from trace_browser import frames, names, row, row_count, until
from trace_made import HOSTILE, hostile, in_rows, made_trace, one, with_ancestors

from orchestrator.tracing.page import page_html

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
expect.set_options(timeout=20_000)  # a machine may be busy
Trace = dict[str, Any]
Opened = Callable[..., Awaitable[Page]]

pytestmark = pytest.mark.skipif(
    not Path(CHROMIUM).exists() and not os.environ.get("CI"), reason="there is no Chromium here; with CI set this is a failure"
)


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--disable-sync", "--disable-quic"])
        yield browser
        await browser.close()


@pytest.fixture
def blamed() -> list[str]:
    """What stands on the console of the pages as an error."""
    return []


@pytest.fixture
async def opened(browser: Browser, tmp_path: Path, blamed: list[str]) -> AsyncIterator[Opened]:
    """Opens the page of a trace; at the end nothing was asked of anybody else, and no error stands on the console."""
    contexts, requests, files = list[BrowserContext](), list[str](), list[str]()

    async def opened(shown: Trace | str, *, width: int = 1000, height: int = 800) -> Page:
        context = await browser.new_context(viewport={"width": width, "height": height}, color_scheme="light")
        contexts.append(context)
        context.on("request", lambda request: requests.append(request.url))
        context.on("weberror", lambda error: blamed.append(str(error.error)))
        context.on("console", lambda message: blamed.append(message.text) if message.type in ("error", "warning") else None)
        file = tmp_path / f"trace-{len(files)}.html"
        html = shown if isinstance(shown, str) else await asyncio.to_thread(page_html, shown)
        file.write_bytes(html.encode())
        files.append(file.as_uri())
        page = await context.new_page()
        page.set_default_timeout(15_000)
        await page.goto(files[-1])
        await until(page, "performance.getEntriesByName('drawn').length > 0")
        return page

    yield opened
    for context in contexts:
        await context.close()
    assert (requests, blamed) == (files, [])


@pytest.fixture(scope="module")
def small() -> Trace:
    return made_trace(3)


@pytest.fixture(scope="module")
def small_html(small: Trace) -> str:
    return page_html(small)


async def test_the_head_and_every_span_are_shown(opened: Opened, small: Trace, small_html: str) -> None:
    page = await opened(small_html, width=1600, height=1400)
    assert await row_count(page) == len(small["spans"])
    assert await names(page) == [span["name"] for span in in_rows(small)]
    head = page.locator("#head")
    await expect(head.locator("#status")).to_have_text("complete")
    await expect(head.locator("h1")).to_have_text(small["input"]["question"])
    usage = small["usage"]
    tokens = f"{usage['input_tokens']:,} in, {usage['output_tokens']:,} out"
    for text in (small["run_id"], "research", "gpt-5, gpt-5-mini", f"{usage['model_calls']}", tokens, f"${usage['cost_usd']:.4f}"):
        await expect(head).to_contain_text(text)


async def test_the_page_holds_the_whole_document(opened: Opened, small: Trace) -> None:
    """What is packed comes out again, word for word, also where a quote is kept as a part of what was read."""
    trace = copy.deepcopy(small) | {"report": f"A report.\n\nWith {HOSTILE}"}
    trace["findings"].append({"branch": None, "claim": "none", "label": "", "reason": "", "citations": []})
    trace["findings"][0]["citations"].append(
        {"source": "else", "quote": f"A quote that stands nowhere, {HOSTILE}", "before": "", "after": ""}
    )
    page = await opened(trace)
    bodies, findings, report, notes = await page.evaluate("""loadBodies().then(() =>
        [Object.fromEntries(Object.entries(bodies.bodies).map(([at, body]) => [at, unpacked(body)])), unpacked(bodies.findings),
         unpacked(bodies.report), Object.fromEntries(Object.entries(bodies.notes).map(([at, told]) => [at, unpacked(told)]))])""")
    assert bodies == trace["bodies"]
    assert findings == trace["findings"]
    assert report == trace["report"]
    assert notes == {str(span["id"]): span["notes"] for span in trace["spans"] if span["notes"]}
    told = await page.evaluate("spans.map((span) => ({...span, id: span.at, parent: span.parent?.at ?? null}))")
    known = set(trace["spans"][0]) - {"notes"}
    assert [{name: span[name] for name in known} for span in told] == [{name: span[name] for name in known} for span in trace["spans"]]


async def test_a_policy_forbids_everything_else(opened: Opened, blamed: list[str], small_html: str) -> None:
    page = await opened(small_html)
    policy = await page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content") or ""
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert not re.search(r"unsafe|\*|https?:|data:|blob:", policy)
    assert await page.evaluate("document.querySelectorAll('[onclick], [onerror], [onload], link, iframe, img').length") == 0
    assert blamed == []
    done = await page.evaluate("""async () => {
        const script = document.createElement('script');
        try { script.textContent = 'window.hacked = 1'; document.body.append(script); } catch { }
        try { document.body.innerHTML = '<b>x</b>'; } catch { }
        try { await fetch('http://127.0.0.1:9/'); } catch { }
        return [window.hacked ?? null, document.body.children.length > 3];
    }""")
    assert done == [None, True]
    blamed.clear()  # Chromium tells what it refused


async def test_hostile_texts_are_only_texts(opened: Opened, small: Trace) -> None:
    trace = hostile(copy.deepcopy(small))
    trace["spans"][3] |= {"kind": HOSTILE, "state": HOSTILE, "error": HOSTILE}
    trace |= {"error": HOSTILE, "thread": HOSTILE, "status": HOSTILE}
    page = await opened(trace, height=1800)
    await page.fill("#filter", "javascript:")
    await expect(page.locator("#matches")).to_contain_text(" of ")  # what is drawn anew while it is clicked gets no click
    await page.press("#filter", "Enter")
    call = one(trace, kind="model", branch=f"t3 {HOSTILE}", state="ok")
    await row(page, call).click()
    await expect(page.locator("#detail")).to_contain_text(HOSTILE)
    tool = one(trace, kind="tool")
    await row(page, tool).click()
    await expect(page.locator("#detail h2")).to_contain_text(tool["name"])
    await page.click(".close")
    await expect(page.locator("#rows")).to_be_focused()
    await page.set_viewport_size({"width": 400, "height": 1800})
    for tab, texts in {"findings": 6, "cost": 4, "report": 1}.items():
        await page.click(f"#tab-{tab}")
        await expect(page.locator(f"#{tab}")).to_contain_text(HOSTILE)
        assert (await page.locator(f"#{tab}").inner_text()).count("</script><img") >= texts
        assert await page.evaluate("document.documentElement.scrollWidth - innerWidth") == 0
    await expect(page.locator("#head")).to_contain_text(HOSTILE)
    assert await page.evaluate("document.querySelectorAll('body img, body a, body iframe, body [onerror]').length") == 0
    assert await page.evaluate("[...document.querySelectorAll('b')].every((bold) => bold.textContent !== 'bold')")
    assert await page.evaluate("[window.hacked ?? null, document.scripts.length]") == [None, 3]
    turned = await page.evaluate(
        "[...document.querySelectorAll('#head .odd')].map((box) => [box.dataset.code, getComputedStyle(box).unicodeBidi])"
    )
    assert ["U+202E", "isolate"] in turned


async def test_the_filter_shows_the_matches_and_what_is_around_them(opened: Opened, small: Trace, small_html: str) -> None:
    page, every = await opened(small_html), len(small["spans"])
    await page.fill("#filter", "VERIFIER MODEL")
    await expect(page.locator("#matches")).to_have_text(
        f"{sum(span['name'] == 'verifier model' for span in small['spans'])} of {every} spans"
    )
    assert await names(page) == with_ancestors(small, lambda span: span["name"] == "verifier model")
    await page.fill("#filter", "429")
    await expect(page.locator("#matches")).to_have_text(f"1 of {len(small['spans'])} spans")
    assert await names(page) == with_ancestors(small, lambda span: "429" in (span["error"] or ""))
    await page.fill("#filter", "no span has this")
    await expect(page.locator("#nothing")).to_be_visible()
    await page.fill("#filter", "")
    await expect(page.locator("#matches")).to_have_text("")
    assert await row_count(page) == every


async def test_the_filter_looks_into_prompts_and_answers(opened: Opened, small: Trace, small_html: str) -> None:
    page = await opened(small_html)
    word = next(finding["claim"] for finding in small["findings"]).split(",")[0]
    await page.fill("#filter", word)
    await expect(page.locator("#matches")).to_have_text(f"0 of {len(small['spans'])} spans")
    await page.press("#filter", "Enter")
    told = [number for number, body in small["bodies"].items() if word.lower() in json.dumps(body, ensure_ascii=False).lower()]
    assert told
    await expect(page.locator("#matches")).to_have_text(f"{len(told)} of {len(small['spans'])} spans")
    assert await names(page) == with_ancestors(small, lambda span: str(span["id"]) in told)


async def test_chips_narrow_what_is_shown(opened: Opened, small: Trace, small_html: str) -> None:
    page = await opened(small_html, width=1600, height=1400)
    narrowed: dict[tuple[str, ...], Callable[[Trace], bool]] = {
        ("model",): lambda span: span["kind"] == "model",
        ("model", "verifier"): lambda span: span["kind"] == "model" and span["role"] == "verifier",
        ("failed", "tried again"): lambda span: span["state"] == "failed" or span["attempt"] > 1,
        ("critical path",): lambda span: any(piece[0] == span["id"] for piece in small["critical"]),
    }
    for chips, matches in narrowed.items():
        for chip in chips:
            await page.click(f".chip[data-value='{chip}']")
        assert await names(page) == with_ancestors(small, matches)
        for chip in chips:
            await page.click(f".chip[data-value='{chip}']")
        assert await row_count(page) == len(small["spans"])


async def box_of(page: Page, selector: str) -> dict[str, float]:
    box: dict[str, float] = await page.locator(selector).evaluate("(node) => node.getBoundingClientRect().toJSON()")
    return box


async def looked_at(page: Page) -> tuple[float, float]:
    return tuple(await page.evaluate("[view.from, view.to]"))


async def test_zoom_changes_the_part_of_time_and_reset_restores_it(opened: Opened, small: Trace, small_html: str) -> None:
    page = await opened(small_html)
    whole, shown = (0, small["seconds"]), page.locator("#range")
    all_of_it = await shown.inner_text()
    await page.click("#in")
    assert await looked_at(page) == pytest.approx((whole[1] / 4, whole[1] * 3 / 4))
    await expect(shown).not_to_have_text(all_of_it)
    await page.click("#out")
    await expect(page.locator("#out")).to_be_disabled()
    box = await box_of(page, "#overview")
    await page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 20)
    await page.mouse.down()
    await page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 20, steps=4)
    await page.mouse.up()
    assert await looked_at(page) == pytest.approx((whole[1] * 0.2, whole[1] * 0.6), rel=0.02)
    axis = await box_of(page, "#axis")
    await page.mouse.move(axis["x"] + axis["width"] / 2, axis["y"] + 100)
    pans, zooms = f"view.from > {whole[1] * 0.22}", f"view.to - view.from < {whole[1] * 0.36}"
    for key, turned, holds in (("Shift", 100, pans), ("Control", -120, zooms)):
        await page.keyboard.down(key)
        await page.mouse.wheel(0, turned)
        await page.keyboard.up(key)
        await until(page, holds)
    await page.click("#reset")
    assert await looked_at(page) == pytest.approx(whole)
    await expect(shown).to_have_text(all_of_it)


async def test_rows_are_closed_and_opened(opened: Opened, small: Trace, small_html: str) -> None:
    page = await opened(small_html)
    branch = one(small, branch="t1", kind="branch")
    inside = [span for span in small["spans"] if span["branch"] == "t1" and span["kind"] != "branch"]
    await row(page, branch).locator(".twisty").click()
    assert await row_count(page) == len(small["spans"]) - len(inside)
    await expect(row(page, branch)).to_have_attribute("aria-expanded", "false")
    await expect(row(page, branch).locator(".count")).to_have_text(str(len(inside)))
    await page.click("#expand")
    assert await row_count(page) == len(small["spans"])
    await page.click("#collapse")
    kept = sum(span["branch"] is None or span["kind"] == "branch" for span in small["spans"])
    assert await row_count(page) == kept
    await page.click(".chip[data-value=failed]")
    assert await row_count(page) == len(with_ancestors(small, lambda span: span["state"] == "failed"))
    await page.click(".chip[data-value=failed]")
    assert await row_count(page) == kept


async def test_keys_do_all_of_it(opened: Opened, small: Trace, small_html: str) -> None:
    page = await opened(small_html)
    spans = in_rows(small)

    async def chosen() -> str | None:
        await frames(page)
        return await page.locator("#rows").get_attribute("aria-activedescendant")

    await page.locator("#rows").focus()
    await page.keyboard.press("Home")
    await page.keyboard.press("ArrowDown")
    assert await chosen() == f"span-{spans[1]['id']}"
    await page.keyboard.press("ArrowLeft")
    assert await row_count(page) < len(spans)
    await page.keyboard.press("ArrowRight")
    assert await row_count(page) == len(spans)
    await page.keyboard.press("ArrowRight")
    assert await chosen() == f"span-{spans[2]['id']}"
    await page.keyboard.press("ArrowLeft")
    await page.keyboard.press("ArrowLeft")
    assert await chosen() == f"span-{spans[1]['id']}"
    await page.keyboard.press("ArrowRight")
    await page.keyboard.press("End")
    assert await chosen() == f"span-{spans[-1]['id']}"
    await expect(row(page, spans[-1])).to_be_in_viewport()
    await page.keyboard.press("Enter")
    await expect(page.locator("#detail h2")).to_have_text(spans[-1]["name"])
    await page.keyboard.press("ArrowUp")
    await expect(page.locator("#detail h2")).to_have_text(spans[-2]["name"])
    await page.keyboard.press("Escape")
    await expect(page.locator("#detail")).to_be_hidden()
    await page.keyboard.press("/")
    await page.keyboard.type("tool")
    await expect(page.locator("#filter")).to_have_value("tool")


async def test_details_hold_the_prompt_and_the_answer_word_for_word(opened: Opened, small: Trace, small_html: str) -> None:
    page = await opened(small_html)
    call = one(small, kind="model", branch="t1", role="researcher")
    body = small["bodies"][str(call["id"])]
    await row(page, call).click()
    detail = page.locator("#detail")
    system, human = detail.locator(".message.system .pre"), detail.locator(".message.human")
    assert await system.text_content() == body["messages"][0]["text"]
    passages = re.findall(
        r'<passage-\w+ id="(.*?)" source="(.*?)" title="(.*?)">\n(.*?)\n</passage', body["messages"][1]["text"], re.DOTALL
    )
    shown = human.locator(".passage", has=page.locator("h4 b"))
    assert await shown.count() == len(passages) == 5
    for place, (number, source, title, text) in enumerate(passages):
        heading, words = shown.nth(place).locator("h4"), shown.nth(place).locator(".pre")
        assert await words.text_content() == text
        assert [await part.text_content() for part in await heading.locator("> *").all()] == ["passage", source, title, number]
    assert json.loads(await detail.locator(".message.answer .pre").text_content() or "") == json.loads(body["answer"]["text"])
    for text in (
        f"{call['input_tokens']:,} in, {call['output_tokens']:,} out",
        "gpt-5-mini",
        "researcher",
        "t1",
        f"${call['cost_usd']:.4f}",
    ):
        await expect(detail.locator(".facts")).to_contain_text(text)
    await expect(human.locator(".text")).to_have_class(re.compile("folded"))
    await human.get_by_role("button", name="Show all").click()
    await expect(human.locator(".text")).not_to_have_class(re.compile("folded"))
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await human.get_by_role("button", name="Copy the text").click()
    await expect(human.locator("header .copy")).to_have_text("Copied")
    assert await page.evaluate("navigator.clipboard.readText()") == body["messages"][1]["text"]


async def test_details_hold_tool_calls_errors_and_notes(opened: Opened, small: Trace, small_html: str) -> None:
    page = await opened(small_html)
    detail = page.locator("#detail")
    tool, failed = one(small, kind="tool"), one(small, state="failed")
    asked = next(span for span in small["spans"] if span["kind"] == "model" and span["branch"] == "t3")
    await row(page, asked).click()
    await expect(detail.locator(".message.answer .tool header b")).to_have_text("search_documents")
    body = small["bodies"][str(tool["id"])]
    assert json.loads(await detail.locator(".message.answer .tool .json").text_content() or "") == body["input"]
    await row(page, tool).click()
    await expect(detail.locator("h3").last).to_have_text("Output")
    assert json.loads(await detail.locator(".json").text_content() or "") == body["input"]
    assert await detail.locator(".passage").count() == 2
    await row(page, failed).click()
    await expect(detail.locator(".error")).to_have_text(failed["error"])
    await expect(detail.locator(".notes")).to_contain_text(failed["notes"][0][1])
    await expect(detail).to_contain_text("There is no answer.")


async def test_findings_show_each_quote_where_it_stands(opened: Opened, small: Trace, small_html: str) -> None:
    page = await opened(small_html)
    await page.click("#tab-findings")
    cards = page.locator(".card")
    await expect(cards).to_have_count(len(small["findings"]))
    for place, finding in enumerate(small["findings"]):
        card, [cited] = cards.nth(place), finding["citations"]
        assert await card.locator(".claim").text_content() == finding["claim"]
        assert await card.locator("blockquote").text_content() == cited["before"] + cited["quote"] + cited["after"]
        assert await card.locator("mark").text_content() == cited["quote"]
        texts = [await card.locator(part).text_content() for part in (".pill", ".reason", "figcaption")]
        assert texts == [finding["label"], finding["reason"], cited["source"]]
    await cards.first.locator("header button").click()
    branch = one(small, kind="branch", branch=small["findings"][0]["branch"])
    await expect(page.locator("#detail h2")).to_have_text(branch["name"])
    await page.click("#tab-cost")
    assert await page.locator("#cost tbody th").all_text_contents() == [role["role"] for role in small["roles"]]
    await page.click("#tab-report")
    await expect(page.locator("#report h3")).to_have_text("What was found")


async def test_the_critical_path_is_marked(opened: Opened, small: Trace, small_html: str) -> None:
    page = await opened(small_html, height=1400)
    await page.click("#critical")
    assert len(await names(page)) == len(small["spans"])
    on = {
        int(number.removeprefix("span-"))
        for number in await page.evaluate("[...document.querySelectorAll('.row.on')].map((row) => row.id)")
    }
    assert on == {piece[0] for piece in small["critical"]}
    told = await page.locator("#path th").all_text_contents()
    assert set(told) == {piece[3] for piece in small["critical"]}


async def test_every_state_looks_its_own_way(opened: Opened, small: Trace) -> None:
    trace = copy.deepcopy(small) | {"status": "crashed", "error": "the process died"}
    calls = [span for span in trace["spans"] if span["kind"] == "model"][:6]
    looks = [("failed", 9.0), ("cancelled", 9.0), ("recalled", 9.0), ("running", None), ("lost", None), ("ok", 9.0)]
    for call, (state, end) in zip(calls, looks, strict=True):
        call |= {"state": state, "start": 1.0, "sent": 3.0, "first": 5.0, "end": end}
    page = await opened(trace)
    seen = {}
    for call in calls:
        bar = row(page, call).locator(".bar.call")
        style = await bar.evaluate(
            "(bar) => { const style = getComputedStyle(bar); return [style.backgroundImage, style.backgroundColor, style.boxShadow] }"
        )
        seen[call["state"]] = tuple(style)
        left, wait, total = [
            await row(page, call).locator(part).evaluate("(part) => part.getBoundingClientRect()") for part in (".call", ".wait", ".track")
        ]
        assert wait["right"] == pytest.approx(left["left"], abs=1)
        assert wait["width"] / total["width"] == pytest.approx(2 / small["seconds"], rel=0.05)
        assert await row(page, call).locator(".bar.first").count() == 1
    assert len(set(seen.values())) == len(looks)
    assert (await row(page, calls[4]).locator(".took").text_content(), await row(page, calls[0]).locator(".took").text_content()) == (
        "…",
        "8.00 s",
    )


async def test_a_run_that_did_nothing_has_a_page(opened: Opened, small: Trace) -> None:
    nothing: Trace = {name: [] for name in ("spans", "findings", "roles", "critical")} | {"bodies": {}, "input": {}}
    nothing |= {"report": None, "seconds": 0.0, "status": "failed"}
    page = await opened(small | nothing)
    await expect(page.locator("#nothing")).to_be_visible()
    for tab in ("findings", "cost", "waterfall"):
        await page.click(f"#tab-{tab}")
        await expect(page.locator(f"#{tab}")).to_be_visible()


async def test_a_thousand_branches(opened: Opened) -> None:
    large = await asyncio.to_thread(made_trace, 1000)
    html = await asyncio.to_thread(page_html, large)
    assert len(html.encode()) <= 5_000_000
    page = await opened(html)
    closed = [span for span in large["spans"] if span["branch"] is None or span["kind"] == "branch"]
    assert await row_count(page) == len(closed)
    await page.click("#expand")
    assert await row_count(page) == len(large["spans"])
    most = 0
    for part in (0.25, 0.5, 0.75, 1):
        await page.evaluate(f"document.querySelector('#rows').scrollTop = {part} * document.querySelector('#rows').scrollHeight")
        most = max(most, len(await names(page)))
    assert 20 < most < 80
    last = max(large["spans"], key=lambda span: span["id"] if span["role"] == "writer" else -1)
    await expect(row(page, last)).to_be_in_viewport()
    await page.fill("#filter", "t777:")
    await expect(page.locator("#matches")).to_have_text(f"1 of {len(large['spans']):,} spans")


async def test_nothing_is_wider_than_the_screen(opened: Opened, small: Trace, small_html: str) -> None:
    page = await opened(small_html)
    call = one(small, kind="model", branch="t1", role="researcher")

    async def too_wide() -> int:
        return int(await page.evaluate("document.documentElement.scrollWidth - innerWidth"))

    for width in (400, 1000, 1600):
        await page.set_viewport_size({"width": width, "height": 800})
        await page.click("#tab-waterfall")
        await row(page, call).click()
        await expect(page.locator(".message").first).to_be_visible()
        assert ((await box_of(page, "#detail"))["x"] == 0) == (width < 860)
        widths = [await too_wide()]
        await page.click(".close")
        for tab in ("waterfall", "findings", "cost", "report"):
            await page.click(f"#tab-{tab}")
            await expect(page.locator(f"#{tab} > :not(.muted)").first).to_be_visible()
            widths.append(await too_wide())
        assert widths == [0] * 5


async def test_the_page_keeps_to_the_scheme_of_the_reader(opened: Opened, small_html: str) -> None:
    page = await opened(small_html)
    paper = "getComputedStyle(document.body).backgroundColor"
    assert await page.evaluate(paper) == "rgb(255, 255, 255)"
    drawn = await page.evaluate("document.querySelector('#map').toDataURL()")
    await page.emulate_media(color_scheme="dark")
    await frames(page)
    assert max(map(int, re.findall(r"\d+", await page.evaluate(paper)))) < 64
    assert await page.evaluate("document.querySelector('#map').toDataURL()") != drawn
