"""What we sign: the token in a callback URL, which names a submission, and the cookie of a session. Each is worth nothing elsewhere."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property, lru_cache

from itsdangerous import BadSignature, Signer
from itsdangerous.signer import SigningAlgorithm

from receiver.errors import Unproven

MAX_TOKEN = 200


class Tokens:
    """Makes and checks callback tokens. Secrets are newest first: the newest signs, all verify."""

    def __init__(self, secrets: Sequence[str]) -> None:
        if not secrets or not all(secrets):
            raise ValueError("at least one secret is needed to sign callback tokens")
        self._secrets = list(reversed(secrets))  # itsdangerous takes them oldest first
        self._signers = lru_cache(maxsize=256)(self._make_signers)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown anywhere."""
        return tuple(self._secrets)

    @cached_property
    def sessions(self) -> Sessions:
        """The cookies of people, signed with the same secrets under another salt."""
        return Sessions(self._secrets)

    def make(self, provider: str, submission_id: str) -> str:
        return self.every(provider, submission_id)[0]

    def every(self, provider: str, submission_id: str) -> tuple[str, ...]:
        """The submission's token under each secret, newest first: what is masked in stored bodies."""
        name = submission_id.removeprefix("sub_")
        return tuple(signer.sign(name).decode() for signer in self._signers(provider))

    def check(self, provider: str, token: str) -> str:
        """The submission's id, or Unproven for anything that was not made here for this provider."""
        name, dot, _ = token.rpartition(".")
        if not dot or len(token) > MAX_TOKEN or not token.isascii():
            raise Unproven
        given = token.encode()
        # Signed anew and compared whole: base64 has several spellings of the same bytes, and only the one that we write counts.
        if not any(hmac.compare_digest(signer.sign(name), given) for signer in self._signers(provider)):
            raise Unproven
        return f"sub_{name}"

    def _make_signers(self, provider: str) -> list[Signer]:
        return [make_signer(secret, f"receiver.callback.{provider}") for secret in reversed(self._secrets)]


def make_signer(secret: str, salt: str) -> Signer:
    """The key is derived once here and not at every call, as the signer would."""
    key = hmac.digest(secret.encode(), salt.encode(), "sha256")
    return Signer(key, key_derivation="none", algorithm=KeyedOnce(key))


class KeyedOnce(SigningAlgorithm):
    """HMAC-SHA256 that has taken in its key: anew with each callback, that and the making of the object take twice as long as the rest."""

    def __init__(self, key: bytes) -> None:
        self._keyed = hmac.new(key, digestmod=hashlib.sha256)

    def get_signature(self, key: bytes, value: bytes) -> bytes:
        mac = self._keyed.copy()
        mac.update(value)
        return mac.digest()


class Sessions:
    """Makes and checks the value of a session's cookie: whose key opened it, and until when. Secrets are oldest first."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._signer = Signer(list(secrets), salt="receiver.session", digest_method=hashlib.sha256)

    def make(self, key_id: str, ends_at: datetime) -> str:
        return self._signer.sign(f"{key_id}.{int(ends_at.timestamp())}.{secrets.token_urlsafe(12)}").decode()

    def check(self, value: str, now: datetime) -> str | None:
        """The name of the key that opened the session; None for one that has ended or was not made here."""
        if len(value) > MAX_TOKEN or not value.isascii():
            return None
        try:
            key_id, ends_at, _ = self._signer.unsign(value).decode().split(".")
        except BadSignature:
            return None
        return key_id if now.timestamp() < int(ends_at) else None
