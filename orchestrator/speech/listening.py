"""Speech found in what a microphone hears: when somebody begins to speak, and what was said when it is over."""

import time
from collections.abc import AsyncIterator

from orchestrator.errors import OrchestratorError
from orchestrator.speech.audio import HEARING_RATE, Sound
from orchestrator.speech.devices import FRAME_BYTES, FRAME_SECONDS

__all__ = ["Listener"]

_WINDOW = 0.4  # seconds that are looked at together, of which so much must be speech, or none
_RATIO = 0.8
_STRICTNESS = 2  # of 0 to 3, as WebRTC's voice activity detection counts
_PAUSE = 0.7  # seconds of silence that end what somebody says
_LONGEST = 60.0  # seconds


class Listener:
    """Finds utterances in `frames` with the voice activity detection of WebRTC, which pocketsphinx brings along."""

    def __init__(self, frames: AsyncIterator[bytes]) -> None:
        from pocketsphinx import Endpointer  # type: ignore[import-untyped]

        self._frames = frames
        self._ends = Endpointer(_WINDOW, _RATIO, _STRICTNESS, HEARING_RATE, FRAME_SECONDS)
        self._speech = bytearray()

    async def ready(self) -> None:
        """Wait for the first sound of the microphone, silence as well: a device may take seconds to begin after it was opened."""
        async for frame in self._frames:
            self._take(frame)
            return

    async def began(self, patience: float | None = None) -> bool:
        """Wait until somebody speaks; False after `patience` seconds of silence, or at the end of all sound."""
        until = None if patience is None else time.monotonic() + patience
        async for frame in self._frames:
            if self._take(frame):
                return True
            if until is not None and time.monotonic() > until:
                return False
        return False

    async def finished(self) -> Sound:
        """What is said, once it is over: after a pause, or after a minute."""
        silent = 0.0
        async for frame in self._frames:
            silent = 0.0 if self._take(frame) else silent + FRAME_SECONDS
            if silent >= _PAUSE or len(self._speech) / 2 / HEARING_RATE >= _LONGEST:
                break
        sound, self._speech = Sound(bytes(self._speech), HEARING_RATE), bytearray()
        return sound

    def _take(self, frame: bytes) -> bool:
        if len(frame) != FRAME_BYTES:
            raise OrchestratorError(f"the microphone gave {len(frame)} bytes at once, not {FRAME_BYTES}")
        speech = self._ends.process(frame)
        if speech:
            self._speech += speech
        return bool(self._ends.in_speech)
