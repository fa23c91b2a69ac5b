"""A process that is there for runs alone, as the command line's is."""

import gc

__all__ = ["collect_rarely"]

_THRESHOLDS = (20_000, 20, 50)  # Python's own are 700, 10 and 10


def collect_rarely() -> None:
    """Have the garbage collector look rarely, and at nothing that was there before: a quarter of the CPU of a run of 1,000 branches was
    spent on looks that found little. For a process of one's own; call it once, when everything is imported.
    """
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    gc.enable()
