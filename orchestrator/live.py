"""The live view of a run on a terminal: the plan, what each branch is doing, and the figures so far."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.control import Control
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.events import Event
from orchestrator.progress import BranchView, RunView, plain_lines, spent, status_words, summary
from orchestrator.text import counted, one_line

__all__ = ["open_live", "render"]

_SYMBOLS = {"waiting": ("·", "-"), "active": ("●", "*"), "ok": ("✓", "+"), "spare": ("–", "=")}
_LOST = ("✗", "x")
_STYLES = {"waiting": "dim", "active": "cyan", "ok": "green", "spare": "dim"}
_PRINTED = {"run_started", "documents", "listening", "heard", "saying", "spoken", "interrupted"}  # above the view
_COMPACT = 12  # a finished run with no more branches than this leaves all of them on the screen
_REFRESHES = 8  # a second


class _Live(Live):
    """A live view that survives a narrower window: terminals wrap the rows already drawn, and rich counts them as before."""

    _drawn: tuple[int, list[int]] = (0, [])  # the console's width at the last refresh, and the cells of each row

    def refresh(self) -> None:
        drawn_at, rows = self._drawn
        width = self.console.width
        if width < drawn_at:
            wrapped = sum(max(0, -(-cells // width) - 1) for cells in rows)
            self.console.control(Control.move(0, -wrapped))
            self.console.file.write("\r\x1b[J")
        lines = self.console.render_lines(self.get_renderable(), pad=False)
        self._drawn = (width, [sum(segment.cell_length for segment in line) for line in lines])
        super().refresh()


@contextmanager
def open_live(stream: TextIO) -> Iterator[Callable[[Event], None]]:
    """A function that shows events in a live view on `stream`; the finished view stays on the screen."""
    console = Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=False)
    view = RunView()
    drawn = _Drawn(view, console)

    def show(event: Event) -> None:
        view.add(event)
        if event.kind == "asking":
            drawn.stop()
        elif event.kind not in ("answered", "result"):
            drawn.start()
        if event.kind in _PRINTED:
            _print_lines(console, plain_lines(event))
        elif event.kind == "plan" and event.fields.get("merged"):
            _print_lines(console, [line for line in plain_lines(event) if line.startswith("  merged")])

    drawn.start()
    try:
        yield show
    finally:
        drawn.stop()
    if view.result is not None:
        _print_lines(console, summary(view.result, failures=len(view.branches) > _COMPACT))


class _Drawn:
    """The view on the screen, or none: while a person is asked, the one so far stays, and a new one comes below the answers."""

    def __init__(self, view: RunView, console: Console) -> None:
        self._view = view
        self._console = console
        self._live: _Live | None = None

    def start(self) -> None:
        if self._live is not None:
            return
        # stdout is the output's alone; stderr goes through the console, so that log lines come above the view.
        self._live = _Live(
            get_renderable=lambda: render(self._view, self._console),
            console=self._console,
            refresh_per_second=_REFRESHES,
            redirect_stdout=False,
        )
        self._live.start()

    def stop(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()


def _print_lines(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(Text(line))


def render(view: RunView, console: Console) -> RenderableType:
    """The view as it fits the console now: active and lost branches first where not all have room."""
    ascii_only = console.options.ascii_only
    parts: list[RenderableType] = [_header(view, ascii_only)]
    shown = _chosen(view, console.height)
    if shown:
        parts.append(_table(view, shown, ascii_only, console.width))
    if view.result is None:
        figures = _figures(view)
        joined = (" - " if ascii_only else " · ").join(figures)
        parts += [_line(line, "dim") for line in ([joined] if len(joined) <= console.width else figures)]
        if view.slow:
            parts.append(_line(view.slow, "yellow"))
    return Group(*parts)


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis", end="\n")


def _header(view: RunView, ascii_only: bool) -> Text:
    dot = " - " if ascii_only else " · "
    words = [word for word in (view.workflow, view.model, view.phase, _clock(view.seconds)) if word]
    return _line(dot.join(words), "bold")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _counts(view: RunView) -> dict[str, int]:
    counts = {"ok": 0, "active": 0, "waiting": 0, "spare": 0, "lost": 0}
    for branch in list(view.branches.values()):
        counts[_look(branch)] += 1
    return counts


def _look(branch: BranchView) -> str:
    if branch.state in ("ok", "active", "waiting"):
        return branch.state
    return "lost" if branch.lost else "spare"


def _figures(view: RunView) -> list[str]:
    """What the branches are at, and what was called: one line, or one each where the terminal is narrow."""
    counts = _counts(view)
    words = []
    if view.branches:
        states = [f"{counts['ok']:,} of {len(view.branches):,} ok"]
        named = (("lost", "not ok"), ("spare", "not needed"), ("active", "active"), ("waiting", "waiting"))
        states += [f"{counts[state]:,} {word}" for state, word in named if counts[state]]
        words.append(", ".join(states))
    elif view.steps:
        words.append(f"{view.steps_done:,} of {view.steps:,} steps done")
    in_flight = max(0, view.calls - view.calls_done)
    calls = counted(view.calls_done, "call") + (f" + {in_flight:,} in flight" if in_flight else "")
    calls += f" + {view.shared:,} shared" if view.shared else ""
    calls += f" + {view.recalled:,} from the journal" if view.recalled else ""
    words.append(f"{calls}, {view.input_tokens:,} tokens in, {view.output_tokens:,} out")
    used, dropped = spent(view), f"{counted(view.dropped, 'event')} not shown" if view.dropped else ""
    return [*words, *([f"used {used}"] if used else []), *([dropped] if dropped else [])]


def _chosen(view: RunView, height: int) -> list[tuple[str, BranchView]]:
    """The branches that have room, in the order of the plan; where not all have, the active ones, then those that were lost."""
    branches = list(view.branches.items())
    if view.result is not None:
        return branches if len(branches) <= _COMPACT else []
    extra = sum((bool(spent(view)), bool(view.dropped), bool(view.slow)))
    room = max(1, height - 4 - extra)  # the head, two lines of figures, what else there is to say, and one line to spare
    if len(branches) <= room:
        return branches
    active = [place for place, (_, branch) in enumerate(branches) if branch.state == "active"][:room]
    lost = [place for place, (_, branch) in enumerate(branches) if branch.lost]
    recent = lost[-(room - len(active)) :] if len(active) < room else []
    return [branches[place] for place in sorted([*active, *recent])]


def _table(view: RunView, shown: list[tuple[str, BranchView]], ascii_only: bool, width: int) -> Table:
    table = Table.grid(padding=(0, 1), pad_edge=False)
    widest = max(len(_short(name, branch)) for name, branch in shown)
    room = max(10, width - widest - 13)
    question = max((len(branch.question) for _, branch in shown), default=0)
    question = min(question, room * 55 // 100)
    table.add_column(width=1)
    table.add_column(width=widest, no_wrap=True)
    table.add_column(width=question, no_wrap=True, overflow="ellipsis")
    table.add_column(width=room - question, no_wrap=True, overflow="ellipsis")
    table.add_column(width=7, justify="right", no_wrap=True)
    for name, branch in shown:
        table.add_row(*_row(view, name, branch, ascii_only))
    return table


def _short(name: str, branch: BranchView) -> str:
    """The id of a branch, without its question where that is a part of it: it has its own column."""
    return one_line(name.removesuffix(branch.question).rstrip() or name, 12)


def _row(view: RunView, name: str, branch: BranchView, ascii_only: bool) -> list[Text]:
    look = _look(branch)
    symbol = _SYMBOLS.get(look, _LOST)[1 if ascii_only else 0]
    style = _STYLES.get(look, "red")
    running = view.now() - branch.began if branch.began is not None and branch.state == "active" else None
    seconds = branch.seconds if branch.seconds is not None else running
    said = {"waiting": "waiting", "active": branch.doing or "starting", "ok": branch.note, "spare": branch.note}.get(look)
    return [
        Text(symbol, style=style),
        Text(_short(name, branch), style=style),
        Text(branch.question, style="dim" if branch.state == "waiting" else ""),
        Text(said if said is not None else f"{status_words(branch.state)}: {branch.note}", style=style),
        Text("" if seconds is None else f"{seconds:.1f} s", style="dim"),
    ]
