"""The one admission controller of the process: every model call, and every tool that declares a limit, asks here for its turn."""

from orchestrator.admission.door import ADMISSION, Admission
from orchestrator.admission.gates import Party, Ticket

__all__ = ["ADMISSION", "Admission", "Party", "Ticket"]
