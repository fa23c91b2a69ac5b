"""Plots, drawn without a screen by matplotlib, which is an extra."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import InputError
from orchestrator.text import printable

__all__ = ["Panel", "check_plot", "plot_panels"]

_FORMATS = (".png", ".svg")
_DONE, _FAILED = "#2a78b5", "#c8372d"  # told apart without seeing red and green, too: the failed ones are hatched
_WIDTH, _PANEL, _HEAD = 9.0, 1.7, 0.9  # inches
_LONGEST_NAME = 160  # characters


@dataclass(frozen=True)
class Panel:
    """Bars on a common axis of time, one below the other: (begin, length, failed) of each, in seconds."""

    title: str
    bars: Sequence[tuple[float, float, bool]]


def check_plot(file: str) -> Path:
    """Where a plot can be written; raises InputError with the remedy, before anything is measured."""
    path = Path(file).expanduser()
    if "\0" in file or path.suffix.lower() not in _FORMATS:
        raise InputError(
            f"a plot is no {path.suffix or 'file without an ending'!r}",
            where=printable(file)[:_LONGEST_NAME],
            remedy="name FILE.png or FILE.svg",
        )
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"cannot be written: the folder {printable(str(path.parent))!r} does not exist"
        raise InputError(f"the plot {what}", where=printable(file)[:_LONGEST_NAME], remedy="name a file in a folder that is there")
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("a plot needs matplotlib, which is not installed", remedy='pip install "orchestrator[plot]"')
    return path


def plot_panels(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Draw the panels into a .png or .svg file; raises OSError. It takes a second or two of computing: call it in a thread."""
    from matplotlib.figure import Figure  # without pyplot there is no window, and no state that threads share

    figure = Figure(figsize=(_WIDTH, _HEAD + _PANEL * len(panels)), layout="constrained")
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        begins, lengths, failed = zip(*panel.bars, strict=True) if panel.bars else ((), (), ())
        drawn = axis.barh(range(len(begins)), lengths, left=begins, height=0.8, color=[_FAILED if lost else _DONE for lost in failed])
        for bar, lost in zip(drawn, failed, strict=True):
            bar.set_hatch("////" if lost else "")
        axis.set_title(panel.title, loc="left", fontsize=10)
        axis.set_ylim(max(len(begins), 1) - 0.4, -0.6)
        axis.set_yticks([])
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    axes[-1].set_xlabel("seconds")
    axes[-1].set_xlim(left=0)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
