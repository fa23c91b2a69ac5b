"""A batch: a workflow on every line of a file, bounded, and resumable at any point."""

from orchestrator.batch.driving import RUNS, Batch, BatchView, Held, open_batch, run_batch

__all__ = ["RUNS", "Batch", "BatchView", "Held", "open_batch", "run_batch"]
