"""How the simulated providers sign: secrets that everybody may know, and the headers that prove them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import uuid
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def make_secret(name: str) -> str:
    """The `whsec_` secret of a simulated provider, the same each time."""
    return "whsec_" + base64.b64encode(_seed(name)).decode()


def make_key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(_seed(name))


def make_jwks(key: Ed25519PrivateKey) -> dict[str, object]:
    """The public half as a JWK Set (RFC 8037)."""
    x = base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).decode().rstrip("=")
    return {"keys": [{"kty": "OKP", "crv": "Ed25519", "use": "sig", "x": x}]}


def sign_standard(secret: str, body: bytes, at: datetime) -> dict[str, str]:
    """The headers of Standard Webhooks."""
    event, timestamp = f"msg_{uuid.uuid4().hex}", str(int(at.timestamp()))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{event}.{timestamp}.".encode() + body, "sha256")
    return {"webhook-id": event, "webhook-timestamp": timestamp, "webhook-signature": f"v1,{base64.b64encode(digest).decode()}"}


def _seed(name: str) -> bytes:
    return hashlib.sha256(f"the simulated secret of {name}".encode()).digest()
