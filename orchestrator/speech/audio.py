"""Sound as this package passes it on: 16-bit mono samples, read from WAV files that are checked, and written to such."""

import os
import stat
import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import InputError

__all__ = ["HEARING_RATE", "MAX_BYTES", "MAX_SECONDS", "Sound", "parse_wav", "read_wav", "wav_header"]

MAX_BYTES = 64 * 1024 * 1024
"""Of a WAV file that is read."""
MAX_SECONDS = 300.0
"""Of sound that is listened to at once."""
HEARING_RATE = 16_000
"""Samples a second that speech is recognised at."""

_RATES = range(4_000, 192_001)
_CHANNELS = 8
_FORMATS = {1: "", 3: "32-bit floats", 6: "A-law", 7: "µ-law", 0x55: "MP3", 0xFFFE: ""}
_REMEDY = "convert it: ffmpeg -i FILE -ac 1 -ar 16000 -c:a pcm_s16le question.wav"


@dataclass(frozen=True, slots=True)
class Sound:
    """Samples of 16 bits, little-endian, one channel, `rate` of them a second."""

    samples: bytes
    rate: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / 2 / self.rate

    def at(self, rate: int) -> "Sound":
        """The same sound at another rate. It takes about a third of a second for a minute: call it in a thread."""
        if rate == self.rate:
            return self
        return Sound(_bytes(_resampled(_array(self.samples), self.rate, rate)), rate)

    def wav(self) -> bytes:
        """The bytes of a WAV file."""
        return wav_header(self.rate, len(self.samples)) + self.samples


def wav_header(rate: int, size: int) -> bytes:
    """What stands before `size` bytes of samples in a WAV file."""
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, rate, rate * 2, 2, 16, b"data", size)


def read_wav(path: str) -> Sound:
    """The sound of a WAV file, as it is; raises InputError that says what is wrong with the file. Blocks: call it in a thread."""
    file = Path(path).expanduser()
    try:
        # Not to wait for the other end of a pipe: what is no regular file is refused.
        with open(os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError("the recording is no file", where=path, remedy="name a WAV file")
            if status.st_size > MAX_BYTES:
                what = f"the recording has {status.st_size >> 20:,} MiB, and at most {MAX_BYTES >> 20} are read"
                raise InputError(what, where=path, remedy=_REMEDY)
            content = opened.read(MAX_BYTES)
    except FileNotFoundError:
        raise InputError("there is no such recording", where=path, remedy="name a WAV file, or use --microphone") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "that is no file name"
        raise InputError(f"the recording cannot be read: {reason}", where=path, remedy="name a WAV file") from error
    return parse_wav(content, path)


def parse_wav(content: bytes, where: str) -> Sound:
    """The sound of the bytes of a WAV file: PCM of 8, 16, 24 or 32 bits, whose channels are mixed. Raises InputError.

    The length that the header tells is not believed: programs that write to a pipe do not know it.
    """
    if not content:
        raise InputError("the recording is empty", where=where, remedy="record it again")
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise InputError("the recording is no WAV file", where=where, remedy=_REMEDY)
    coding, channels, rate, width, samples = _chunks(content, where)
    if coding != 1 or width not in (1, 2, 3, 4):
        named = _FORMATS.get(coding) or (f"samples of {width * 8} bits" if coding == 1 else f"a coding of number {coding}")
        raise InputError(f"the recording holds {named}, and only PCM of 8 to 32 bits is read", where=where, remedy=_REMEDY)
    if rate not in _RATES or not 1 <= channels <= _CHANNELS:
        raise InputError(f"the recording says it has {channels} channels of {rate:,} samples a second", where=where, remedy=_REMEDY)
    seconds = len(samples) / (width * channels * rate)
    if seconds > MAX_SECONDS:
        what = f"the recording lasts {seconds:,.0f} s, and at most {MAX_SECONDS:g} are listened to"
        raise InputError(what, where=where, remedy="cut it")
    if not len(samples) // (width * channels):
        raise InputError("the recording holds no sound", where=where, remedy="record it again")
    return Sound(_bytes(_mono(samples, width, channels)), rate)


def _chunks(content: bytes, where: str) -> tuple[int, int, int, int, bytes]:
    """Coding, channels, rate, bytes of a sample, and the samples."""
    # Python's own reader takes no file with an extended format before 3.12, and none whose length is wrong at all.
    place, form = 12, b""
    while place + 8 <= len(content):
        name, size = content[place : place + 4], int.from_bytes(content[place + 4 : place + 8], "little")
        body = content[place + 8 : place + 8 + size]
        if name == b"fmt ":
            form = body
        elif name == b"data" and len(form) >= 16:
            coding, channels, rate, _, _, bits = struct.unpack("<HHIIHH", form[:16])
            if coding == 0xFFFE and len(form) >= 26:
                coding = int.from_bytes(form[24:26], "little")
            return coding, channels, rate, -(-bits // 8), body
        place += 8 + size + size % 2
    raise InputError("the recording is cut, or damaged: it holds no samples", where=where, remedy=_REMEDY)


def _mono(samples: bytes, width: int, channels: int) -> "array[int]":
    """Samples of any width as 16 bits, the channels mixed; what is left of a last one that was cut goes."""
    samples = samples[: len(samples) // (width * channels) * width * channels]
    if width == 1:
        wide = array("h", ((value - 128) << 8 for value in samples))
    elif width == 2:
        wide = _array(samples)
    else:  # the two high bytes of each
        high = bytearray(len(samples) // width * 2)
        high[0::2], high[1::2] = samples[width - 2 :: width], samples[width - 1 :: width]
        wide = _array(bytes(high))
    if channels == 1:
        return wide
    return array("h", (sum(group) // channels for group in zip(*(wide[at::channels] for at in range(channels)), strict=True)))


def _resampled(samples: "array[int]", rate: int, wanted: int) -> "array[int]":
    """Each new sample is the mean of what lies in its time, by the running sum: enough of a filter for speech (a box, of order zero)."""
    sums = [0]
    total = 0
    for value in samples:
        total += value
        sums.append(total)
    count, last = len(samples) * wanted // rate, len(samples)
    if wanted > rate:
        return array("h", _between(samples, count, rate / wanted))
    step = rate / wanted

    def upto(place: float) -> float:
        whole = min(int(place), last - 1)
        return sums[whole] + samples[whole] * (place - whole)

    bounds = [upto(number * step) for number in range(count + 1)]
    return array("h", (int((bounds[at + 1] - bounds[at]) / step) for at in range(count)))


def _between(samples: Sequence[int], count: int, step: float) -> list[int]:
    """`count` samples on the straight lines between those that there are."""
    last = len(samples) - 1
    found = []
    for number in range(count):
        place = number * step
        whole = min(int(place), last)
        following = samples[min(whole + 1, last)]
        found.append(int(samples[whole] + (following - samples[whole]) * (place - whole)))
    return found


def _array(samples: bytes) -> "array[int]":
    values = array("h", samples)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _bytes(values: "array[int]") -> bytes:
    if sys.byteorder == "big":
        values = array("h", values)
        values.byteswap()
    return values.tobytes()
