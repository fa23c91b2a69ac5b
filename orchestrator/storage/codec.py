"""What is stored, as bytes: msgpack that is strict both ways, bulky parts taken out by hash, with a checksum or encrypted.

A value is plain data, the standard types of `storage/types.py`, LangChain's messages and documents, LangGraph's own types, those of
`orchestrator.state`, and the types that the graph's state schemas name. Anything else is an error where it is written, and again where
it is read: a row chooses among the types that are known, and never names code to run.
"""

import contextlib
import hashlib
import hmac
import os
import re
import sys
import threading
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import ormsgpack
import zstandard

from orchestrator.errors import StorageError, StorageTypeError
from orchestrator.storage.cipher import KEY_VARIABLE, Cipher
from orchestrator.storage.database import Database, Statement
from orchestrator.storage.types import BUILT, OBJECT, STANDARD, TEXT, TUPLE, TypeName, Types, flat_form
from orchestrator.text import one_line, secrets_of, without

__all__ = ["BULKY", "Codec", "Known", "Packed", "keep_texts", "open_codec", "read_from", "references_of", "unpack_all", "unpack_of_run"]

BULKY = 512
"""From how many characters on a string, and from how many bytes on a value of a class, is stored once under its hash."""

_MARK = "[key]"
_DAMAGED = "the store is damaged: restore it from a backup, or begin another with --db"
_CHECKSUM = 4  # bytes, after the first one of what is not encrypted

_OPTION = (
    ormsgpack.OPT_NON_STR_KEYS
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_UUID
    | ormsgpack.OPT_REPLACE_SURROGATES
)
# The first byte of what is stored: a value, one that refers to texts, or a string; and whether it is encrypted, and compressed.
_ALONE, _REFERRING, _STRING = 1, 2, 3
_SEALED, _DEFLATED, _ZSTANDARD = 16, 32, 64  # deflated were values of earlier versions
_WORTH_COMPRESSING = 1024  # bytes: under that a third is gained, for as much time as it takes to make the value plain
_WALKED = frozenset((str, dict, list, tuple, bytes, bytearray))
_SIMPLE = frozenset((str, int, float, bool, type(None)))  # what holds nothing else
_LONG = re.compile(rb"\xda[\x02-\xff]")  # in msgpack a string of 512 to 65,535 bytes begins so; what else may look like it is walked
_LONGER = b"\xdb"  # and one that is longer
_REMEMBERED = 4096  # values that a writer has packed
_ASKED_AT_ONCE = 500  # hashes in one query


class Packed(NamedTuple):
    """A value as it is stored, with the texts that it refers to: hash -> content. See `keep_texts`."""

    blob: bytes
    texts: dict[bytes, bytes]


_Once = tuple[Any, ormsgpack.Ext, bool, dict[bytes, bytes]]
"""A frozen value, which is packed once, what it is packed as, whether that refers to texts, and those texts."""


@dataclass
class Known:
    """What one writer need not store again. `stored`: hashes of texts that are durable.

    `packed`: by identity, frozen values that were packed before, with the texts that were not stored then.
    """

    stored: set[bytes] = field(default_factory=set)
    packed: "dict[int, _Once]" = field(default_factory=dict)


class Codec:
    """Values to blobs and back; `types` are those that it knows beside the built-in ones, `secrets` the strings that it never stores."""

    def __init__(self, *, cipher: Cipher | None = None, secrets: Collection[str] = (), types: Types | None = None) -> None:
        self.cipher = cipher
        self.types = types or Types()
        self._secrets = tuple(sorted(set(secrets), key=len, reverse=True))
        self._secret_bytes = tuple(secret.encode("utf-8", "surrogatepass") for secret in self._secrets)
        self._hash_key = cipher.hash_key if cipher else b""

    def allowing(self, names: Iterable[TypeName]) -> "Codec":
        """The same codec, which also knows the types `names`: (module, class name)."""
        types = self.types.with_names(names)
        return self if types is self.types else Codec(cipher=self.cipher, secrets=self._secrets, types=types)

    def pack_plain(self, value: Any, known: "Known | None" = None, *, whole: bool = False) -> Packed:
        """`pack` for lists and dicts of strings and numbers alone: what has no bulky parts, or keeps them, need not be walked through."""
        try:
            body = ormsgpack.packb(value, option=_OPTION)
        except TypeError:  # which says what is wrong
            return self._walked(value, known, whole=whole)
        if (whole or not _may_hold_long(body)) and not self.holds_secret(body):
            return Packed(self._seal(_ALONE, body), {})
        return self._walked(value, known, whole=whole)

    def pack(self, value: Any, known: "Known | None" = None, *, whole: bool = False) -> Packed:
        """`value` as it is stored, without the texts that are `known`; `whole`: with its bulky parts in it, so that it has no texts.

        Raises StorageTypeError for what could not be read back.
        """
        plain = type(value) in _SIMPLE or (type(value) is list and all(type(item) in _SIMPLE for item in value))
        return (self.pack_plain if plain else self._walked)(value, known, whole=whole)

    def _walked(self, value: Any, known: "Known | None", *, whole: bool) -> Packed:
        known = known or Known()
        if len(known.packed) > _REMEMBERED:
            known.packed.clear()
        if len(known.stored) > _REMEMBERED:  # what is forgotten is written once more, and the store has it already
            known.stored.clear()
        bulky = sys.maxsize if whole else BULKY
        packing = _Packing(self, known, bulky)
        body = packing.run(value)
        if self.holds_secret(body, *packing.texts.values()):
            packing = _Packing(self, Known(), bulky, self._secrets)
            body = packing.run(value)
            if self.holds_secret(body, *packing.texts.values()):
                remedy = "keep secrets out of the state"
                raise StorageError("the value of a secret environment variable stands in binary data", remedy=remedy)
        sealed = {digest: self._seal(text[0], text[1:]) for digest, text in packing.texts.items() if digest not in known.stored}
        for number, (once, packed, referring, texts) in packing.values.items():
            known.packed[number] = once, packed, referring, {digest: sealed[digest] for digest in texts if digest in sealed}
        sealed.update((digest, text) for digest, text in packing.sealed.items() if digest not in known.stored)
        return Packed(self._seal(_REFERRING if packing.referring else _ALONE, body), sealed)

    def references(self, *blobs: bytes | None) -> set[bytes]:
        """The hashes of the texts that are needed to unpack `blobs`; those of texts come to light when the texts are there."""
        found: set[bytes] = set()
        for blob in blobs:
            if blob:
                flag, body = self._open(blob)
                if flag == _REFERRING:
                    _References(found).run(body)
        return found

    def unpack(self, blob: bytes | None, texts: Mapping[bytes, bytes] | None = None) -> Any:
        """The value of a blob; None of None. Raises StorageTypeError where it is of an unknown type, StorageError where it is damaged."""
        return None if blob is None else _Unpacking(self, texts or {}).value(self._open(blob)[1])

    def holds_secret(self, *bodies: bytes) -> bool:
        """Whether a secret stands in one of them."""
        for secret in self._secret_bytes:
            for body in bodies:
                if secret in body:
                    return True
        return False

    def digest(self, content: bytes) -> bytes:
        """16 bytes that name `content`; keyed under encryption, so that a hash tells nothing of a text that can be guessed."""
        if self._hash_key:
            return hmac.digest(self._hash_key, content, "sha256")[:16]
        return hashlib.sha256(content).digest()[:16]

    def _seal(self, flag: int, body: bytes) -> bytes:
        if len(body) >= _WORTH_COMPRESSING and len(small := _compressor().compress(body)) < len(body):
            flag, body = flag | _ZSTANDARD, small
        if self.cipher is None:
            return bytes((flag,)) + _checksum(flag, body) + body
        return bytes((flag | _SEALED,)) + self.cipher.encrypt(body, flag)

    def _open(self, blob: bytes) -> tuple[int, bytes]:
        """What a blob is, and its body in clear."""
        blob = bytes(blob)
        kind = blob[0] & ~(_SEALED | _DEFLATED | _ZSTANDARD) if blob else 0
        if kind not in (_ALONE, _REFERRING, _STRING):
            raise StorageError(
                "a stored value is in no format of this store", remedy="the store was written by something else, or is damaged"
            )
        flag, body = self._unsealed(blob)
        try:
            if flag & _ZSTANDARD:
                return kind, zstandard.decompress(body)
            return kind, zlib.decompress(body, -zlib.MAX_WBITS) if flag & _DEFLATED else body
        except (zlib.error, zstandard.ZstdError):
            raise StorageError("a stored value cannot be read", remedy=_DAMAGED) from None

    def _unsealed(self, blob: bytes) -> tuple[int, bytes]:
        flag, sealed = blob[0] & ~_SEALED, blob[0] & _SEALED
        if self.cipher is None:
            if sealed:
                raise StorageError("a stored value is encrypted", remedy=f"set {KEY_VARIABLE} to the key that it was written with")
            body = blob[1 + _CHECKSUM :]
            if blob[1 : 1 + _CHECKSUM] != _checksum(flag, body):
                raise StorageError("a stored value is damaged: its checksum is another one", remedy=_DAMAGED)
            return flag, body
        if not sealed:
            raise StorageError("a stored value is not encrypted, and this store is", remedy="somebody else wrote it: do not trust it")
        return flag, self.cipher.decrypt(blob[1:], flag)


def _checksum(flag: int, body: bytes) -> bytes:
    """Of both: another `flag` is another value to begin with."""
    return zlib.crc32(body, flag).to_bytes(_CHECKSUM)


def _may_hold_long(body: bytes) -> bool:
    """Whether a string of BULKY characters or more may be in plain data that were packed: where not, it need not be looked for."""
    return len(body) >= BULKY and (_LONGER in body or _LONG.search(body) is not None)


_of_thread = threading.local()


def _compressor() -> zstandard.ZstdCompressor:
    """One a thread: setting it up takes ten times as long as a kilobyte, and two threads may not share one."""
    found: zstandard.ZstdCompressor | None = getattr(_of_thread, "compressor", None)
    if found is None:
        found = _of_thread.compressor = zstandard.ZstdCompressor(level=-1, write_checksum=False)
    return found


class _Packing:
    """One value on its way to bytes: collects the texts that are taken out of it."""

    def __init__(self, codec: Codec, known: Known, bulky: int, secrets: tuple[str, ...] = ()) -> None:
        self._codec = codec
        self._known = known
        self._bulky = bulky
        self._secrets = secrets
        self.sealed: dict[bytes, bytes] = {}  # texts of values that were packed before
        self.values: dict[int, _Once] = {}  # frozen values by identity
        self._short = 0 if secrets else bulky  # characters under which a string is left as it is
        self.texts: dict[bytes, bytes] = {}
        self.referring = False
        self._error: Exception | None = None

    def run(self, value: Any) -> bytes:
        try:
            return self._packed(value)
        except RecursionError:
            raise StorageTypeError("a value holds itself, or is nested too deep", remedy="store flat data") from None
        except TypeError as error:
            raise self._error or StorageTypeError(f"a value cannot be stored: {error}", remedy="store plain data") from error

    def _packed(self, value: Any) -> bytes:
        return ormsgpack.packb(self._lean(value), default=self._default, option=_OPTION)

    def _lean(self, value: Any) -> Any:
        """`value` with references in the place of its long strings, and without secrets where there are any."""
        kind, short = type(value), self._short
        told = value  # which stays as it is where nothing in it changes: thousands of rows are not copied
        if kind is dict:
            if self._secrets:
                told = {self._named(key): item for key, item in value.items()}
            for key, item in told.items():
                each = type(item)
                if (len(item) >= short if each is str else each in _WALKED) and (lean := self._lean(item)) is not item:
                    told = dict(value) if told is value else told
                    told[key] = lean
            return told
        if kind is list or kind is tuple:
            for place, item in enumerate(value):
                each = type(item)
                if (len(item) >= short if each is str else each in _WALKED) and (lean := self._lean(item)) is not item:
                    told = list(value) if told is value else told
                    told[place] = lean
            return told if kind is list else ormsgpack.Ext(TUPLE, ormsgpack.packb(told, default=self._default, option=_OPTION))
        if kind is str:
            text = without(self._secrets, value, _MARK) if self._secrets else value
            return text if len(text) < self._bulky else self._taken(bytes((_STRING,)) + text.encode("utf-8", "replace"))
        if kind is bytes:
            for secret in self._secrets:
                value = value.replace(secret.encode("utf-8", "surrogatepass"), _MARK.encode())
        if kind is bytearray:  # msgpack would take it for bytes
            return ormsgpack.Ext(STANDARD[bytearray].code, self._packed(bytes(value)))
        return value

    def _named(self, key: Any) -> Any:
        return without(self._secrets, key, _MARK) if isinstance(key, str) else key

    def _taken(self, content: bytes) -> ormsgpack.Ext:
        digest = self._codec.digest(content)
        self.texts[digest] = content
        self.referring = True
        return ormsgpack.Ext(TEXT, digest)

    def _default(self, value: Any) -> Any:
        """What msgpack does not know. An error in here would reach the caller without its text, so it is kept aside."""
        kind = type(value)
        try:
            if (now := self.values.get(id(value))) is not None:
                self.texts.update(now[3])
                self.referring |= now[2]
                return now[1]
            before = self._known.packed.get(id(value))
            if before is not None and before[0] is value:
                self.sealed.update(before[3])
                self.referring |= before[2]
                return before[1]
            standard = STANDARD.get(kind)
            if standard is not None:
                return ormsgpack.Ext(standard.code, self._packed(standard.plain(value)))
            if isinstance(value, BaseException):
                return self._lean(repr(value))
            return self._object(value, kind)
        except Exception as error:
            self._error = self._error or error
            raise

    def _object(self, value: Any, kind: type) -> ormsgpack.Ext:
        types = self._codec.types
        around, outside = self.texts, self.referring
        self.texts, self.referring = {}, False
        plain = None if self._secrets else flat_form(kind)
        body = b"" if plain is None else ormsgpack.packb([kind.__module__, kind.__name__, plain(value)], option=_OPTION)
        if plain is None or _may_hold_long(body):
            body = self._packed([kind.__module__, kind.__name__, types.plain(value)])
        if len(body) >= self._bulky:
            packed = self._taken(bytes((_REFERRING if self.referring else _ALONE,)) + body)
        else:
            packed = ormsgpack.Ext(OBJECT, body)
        if not self._secrets and types.is_frozen(kind):
            self.values[id(value)] = value, packed, self.referring, self.texts
        around.update(self.texts)
        self.texts, self.referring = around, self.referring or outside
        return packed


class _Unpacking:
    """One value on its way back."""

    def __init__(self, codec: Codec, texts: Mapping[bytes, bytes]) -> None:
        self._codec = codec
        self._texts = texts
        self._error: StorageError | None = None

    def value(self, body: bytes) -> Any:
        try:
            return self._unpacked(body)
        except (ValueError, TypeError, RecursionError) as error:
            raise self._error or StorageError("a stored value cannot be read", remedy=_DAMAGED) from error

    def _unpacked(self, body: bytes) -> Any:
        return ormsgpack.unpackb(body, ext_hook=self._hook, option=ormsgpack.OPT_NON_STR_KEYS)

    def _hook(self, code: int, data: bytes) -> Any:
        try:
            return self._restored(code, data)
        except StorageError as error:
            self._error = self._error or error
            raise
        except Exception as error:
            self._error = self._error or StorageError(f"a stored value cannot be read: {error}", remedy=_DAMAGED)
            raise

    def _restored(self, code: int, data: bytes) -> Any:
        if code == TEXT:
            return self._text(data)
        if code == OBJECT:
            return self._object(data)
        if code not in BUILT:
            raise StorageTypeError(
                f"a stored value is of a type without a name (code {code})", remedy="the store was written by something else"
            )
        return BUILT[code](self._unpacked(data))

    def _object(self, body: bytes) -> Any:
        module, name, plain = self._unpacked(body)
        return self._codec.types.build((module, name), plain)

    def _text(self, digest: bytes) -> Any:
        stored = self._texts.get(digest)
        if stored is None:
            raise StorageError("a stored text is missing", remedy=_DAMAGED)
        flag, content = self._codec._open(stored)
        if self._codec.digest(bytes((flag,)) + content) != digest:
            raise StorageError("a stored text is not what its hash says", remedy=_DAMAGED)
        return content.decode() if flag == _STRING else self._object(content)


class _References:
    """The hashes that a body refers to."""

    def __init__(self, found: set[bytes]) -> None:
        self._found = found

    def run(self, body: bytes) -> None:
        try:
            ormsgpack.unpackb(body, ext_hook=self._hook, option=ormsgpack.OPT_NON_STR_KEYS)
        except (ValueError, TypeError) as error:
            raise StorageError("a stored value cannot be read", remedy=_DAMAGED) from error

    def _hook(self, code: int, data: bytes) -> Any:
        if code == TEXT:
            self._found.add(data)
        elif code == OBJECT or code in BUILT:
            self.run(data)
        return 0


def keep_texts(texts: Mapping[bytes, bytes], number: int) -> list[Statement]:
    """The statements that store the texts of a value for the run `number`; those that the store has are left as they are."""
    statements = []
    items = list(texts.items())
    for start in range(0, len(items), _ASKED_AT_ONCE):
        part = items[start : start + _ASKED_AT_ONCE]
        marks = ", ".join(["(?, ?)"] * len(part))
        values = tuple(chain.from_iterable(part))
        uses = tuple(chain.from_iterable([(number, digest) for digest, _ in part]))
        statements.append(Statement(f"INSERT INTO texts(hash, content) VALUES {marks} ON CONFLICT(hash) DO NOTHING", values))  # noqa: S608 - question marks
        statements.append(Statement(f"INSERT INTO uses(run, hash) VALUES {marks} ON CONFLICT(run, hash) DO NOTHING", uses))  # noqa: S608 - question marks
    return statements


async def unpack_all(database: Database, codec: Codec, blobs: Sequence[bytes | None], where: str) -> list[Any]:
    """The values of `blobs`, their texts read with them; None of None. Raises StorageError, which says `where` they are stored."""
    with read_from(where):
        texts = await _all_texts(database, codec, blobs)
        return [codec.unpack(blob, texts) for blob in blobs]


async def unpack_of_run(database: Database, codec: Codec, blobs: Sequence[bytes], table: str, run: int) -> list[Any]:
    """`unpack_all` for values of a run, by its number, whose id the error says."""
    try:
        return await unpack_all(database, codec, blobs, f"in the table {table}")
    except StorageError as error:
        [named] = await database.run(Statement("SELECT run_id FROM runs WHERE number = ?", (run,)))
        error.where += f", run {named[0][0]}" if named else ""
        raise


async def references_of(database: Database, codec: Codec, blobs: Sequence[bytes | None], where: str) -> set[bytes]:
    """The hashes of all texts that `blobs` refer to, and that those texts do; raises StorageError as `unpack_all`."""
    with read_from(where):
        return set(await _all_texts(database, codec, blobs))


@contextlib.contextmanager
def read_from(where: str) -> Iterator[None]:
    """A StorageError that is raised inside says `where` what is read is stored."""
    try:
        yield
    except StorageError as error:
        error.where = error.where or one_line(where, 300)
        raise


async def _all_texts(database: Database, codec: Codec, blobs: Sequence[bytes | None]) -> dict[bytes, bytes]:
    texts: dict[bytes, bytes] = {}
    wanted = codec.references(*blobs)
    while wanted:
        found = await _texts(database, sorted(wanted))
        texts |= found
        wanted = codec.references(*found.values()) - texts.keys()
    return texts


async def _texts(database: Database, hashes: Sequence[bytes]) -> dict[bytes, bytes]:
    parts = [hashes[start : start + _ASKED_AT_ONCE] for start in range(0, len(hashes), _ASKED_AT_ONCE)]
    asked = [Statement(f"SELECT hash, content FROM texts WHERE hash IN ({', '.join('?' * len(part))})", tuple(part)) for part in parts]  # noqa: S608 - only question marks
    return {bytes(digest): bytes(content) for rows in await database.run(*asked) for digest, content in rows}


async def open_codec(database: Database, environ: Mapping[str, str] | None = None) -> Codec:
    """The codec of a store, with the key of ORCHESTRATOR_STORE_KEY; raises DatabaseOpenError where the key is not the store's."""
    environ = os.environ if environ is None else environ
    cipher = Cipher.from_environ(environ)
    proof = cipher.proof() if cipher else "plain"
    select = Statement("SELECT value FROM meta WHERE key = 'encryption'")
    [found] = await database.run(select)
    if not found:  # else nothing is written: who only looks at a store waits for no writer
        insert = Statement("INSERT INTO meta(key, value) VALUES('encryption', ?) ON CONFLICT(key) DO NOTHING", (proof,))
        _, found = await database.run(insert, select)
    Cipher.check(cipher, found[0][0], database.url)
    return Codec(cipher=cipher, secrets=secrets_of(environ).values())
