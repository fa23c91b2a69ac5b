"""Encryption at rest: AES-256-GCM with the key of ORCHESTRATOR_STORE_KEY."""

import base64
import binascii
import hmac
import os
from collections.abc import Mapping

from orchestrator.errors import DatabaseOpenError, StorageError

__all__ = ["KEY_VARIABLE", "Cipher"]

KEY_VARIABLE = "ORCHESTRATOR_STORE_KEY"

_NONCE = 12  # bytes
_REMEDY = (
    f'set {KEY_VARIABLE} to 32 random bytes in base64: python -c "import base64, os; print(base64.b64encode(os.urandom(32)).decode())"'
)
_PROOF = b"orchestrator store"


class Cipher:
    """Encrypts with a fresh nonce each time; who changes a byte, or writes a row without the key, is found out on reading."""

    def __init__(self, key: bytes) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise DatabaseOpenError(
                f"{KEY_VARIABLE} is set, and the library that encrypts is not installed", remedy='pip install "orchestrator[encryption]"'
            ) from None
        self._aes = AESGCM(hmac.digest(key, b"encrypt", "sha256"))
        self.hash_key = hmac.digest(key, b"hash", "sha256")

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Cipher | None":
        """The cipher of the environment's key, None without one. Raises DatabaseOpenError where it is no key; its value is never shown."""
        text = environ.get(KEY_VARIABLE, "").strip()
        if not text:
            return None
        try:
            key = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise DatabaseOpenError(f"{KEY_VARIABLE} is not base64", remedy=_REMEDY) from None
        if len(key) != 32:
            raise DatabaseOpenError(f"{KEY_VARIABLE} holds {len(key)} bytes, not 32", remedy=_REMEDY)
        return cls(key)

    def encrypt(self, body: bytes, kind: int) -> bytes:
        """`body` encrypted; `kind` is bound to it."""
        nonce = os.urandom(_NONCE)
        return nonce + self._aes.encrypt(nonce, body, bytes((kind,)))

    def decrypt(self, sealed: bytes, kind: int) -> bytes:
        """What was encrypted; raises StorageError where it was changed, or written with another key."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._aes.decrypt(sealed[:_NONCE], sealed[_NONCE:], bytes((kind,)))
        except (InvalidTag, ValueError):
            raise StorageError("a stored value was changed, or was written with another key", remedy=f"check {KEY_VARIABLE}") from None

    def proof(self) -> str:
        """What a store keeps, to know its key again."""
        return "aes-256-gcm " + self.encrypt(_PROOF, 0).hex()

    @staticmethod
    def check(cipher: "Cipher | None", kept: str, url: str) -> None:
        """Raises DatabaseOpenError unless `cipher` is that of the store, whose proof is `kept`."""
        where = f"the store is {url}"
        encrypted = kept != "plain"
        if cipher is None and encrypted:
            raise DatabaseOpenError("the store is encrypted, and there is no key", where=where, remedy=f"set {KEY_VARIABLE} to its key")
        if cipher is not None and not encrypted:
            remedy = f"unset {KEY_VARIABLE}, or use another store with --db: a store is encrypted from its beginning or not at all"
            raise DatabaseOpenError(f"{KEY_VARIABLE} is set, and the store is not encrypted", where=where, remedy=remedy)
        if cipher is not None:
            try:
                cipher.decrypt(bytes.fromhex(kept.partition(" ")[2]), 0)
            except StorageError:
                raise DatabaseOpenError(
                    f"{KEY_VARIABLE} is not the key of this store", where=where, remedy="use the key that it began with"
                ) from None
