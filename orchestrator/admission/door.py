"""The door itself: gates by endpoint, for the whole process."""

import random
from collections.abc import Callable

from orchestrator.admission.adapting import Adaptive
from orchestrator.admission.gates import Gate, Party, Ticket
from orchestrator.admission.serial import Serial
from orchestrator.clocks import waiting

__all__ = ["ADMISSION", "Admission"]

_FEW = 64  # gates that are not worth a look


class Admission:
    """Limits on calls in flight, requests and tokens a minute, and what the endpoints' own refusals teach; one gate for each endpoint.

    Calls in flight at a gate: at most the largest `max_concurrency` of the parties there; those of a party, over all gates: its own. Safe
    over event loops in several threads. `draw` gives random numbers from 0 to 1, for the length of pauses.
    """

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self._draw = draw
        self._serial = Serial()
        self._gates: dict[str, Gate] = {}
        self._enough = _FEW

    async def enter(
        self, endpoint: str, party: Party, *, tokens: int = 0, until: float | None = None, again: Ticket | None = None
    ) -> Ticket:
        """Waits for its turn: round robin over parties, in order within one. The clocks around stand still meanwhile.

        `tokens`: the estimate, input and output; a call larger than a minute's limit is let in alone, when the minute before was empty.
        `until`: the loop's time after which waiting has no use. `again`: the ticket of the call that was refused, whose place it keeps.
        Raises QueueFull, and ThrottledError where the endpoint refuses everything, or asks for a pause that ends after `until`.
        """
        ticket = Ticket(self._serial, tokens, until, again)
        self._serial.do(self._arrive, endpoint, party, ticket, again is not None)
        if ticket._state == "waiting":
            with waiting():
                try:
                    await ticket._woken
                except BaseException:
                    ticket.fail()
                    raise
        if ticket._error is not None:
            raise ticket._error
        return ticket

    def dismiss(self, party: Party) -> None:
        """Refuse the calls of a party that wait for their turn, with StopRequested."""
        self._serial.do(self._dismiss, party)

    def _dismiss(self, party: Party) -> None:
        for gate in self._gates.values():
            gate.dismiss(party)

    def _arrive(self, endpoint: str, party: Party, ticket: Ticket, returns: bool) -> None:
        gate = self._gates.get(endpoint)
        if gate is None:
            if len(self._gates) >= self._enough:
                self._gates = {name: gate for name, gate in self._gates.items() if not gate.blank(ticket._since)}
                self._enough = max(_FEW, 2 * len(self._gates))
            gate = self._gates[endpoint] = Gate(endpoint, self._serial, Adaptive(self._draw))
        gate.arrive(ticket, party, returns)


ADMISSION = Admission()
