"""Speech: from sound to text and back, from recordings and a microphone, to files and a loudspeaker."""

from orchestrator.speech.audio import HEARING_RATE, Sound, parse_wav, read_wav
from orchestrator.speech.devices import (
    Microphone,
    Outlet,
    check_loudspeaker,
    check_microphone,
    check_wav_target,
    open_loudspeaker,
    open_microphone,
    open_wav,
)
from orchestrator.speech.hearing import Transcriber, resolve_transcriber
from orchestrator.speech.listening import Listener
from orchestrator.speech.remote import check_money
from orchestrator.speech.saying import Spoken, say_all
from orchestrator.speech.sentences import Sentences, spoken
from orchestrator.speech.speaking import Speaker, resolve_speaker
from orchestrator.speech.telling import Telling

__all__ = [
    "HEARING_RATE",
    "Listener",
    "Microphone",
    "Outlet",
    "Sentences",
    "Sound",
    "Speaker",
    "Spoken",
    "Telling",
    "Transcriber",
    "check_loudspeaker",
    "check_microphone",
    "check_money",
    "check_wav_target",
    "open_loudspeaker",
    "open_microphone",
    "open_wav",
    "parse_wav",
    "read_wav",
    "resolve_speaker",
    "resolve_transcriber",
    "say_all",
    "spoken",
]
