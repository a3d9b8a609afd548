"""An account: a provider's spec with one user's key, limits and wishes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from urllib.parse import urlsplit

import msgspec

from receiver.config import PollingConfig, ProviderConfig
from receiver.providers.spec import Signature, Spec, Times
from receiver.units import RateLimit

INTERVAL = timedelta(seconds=5)
MAX_INTERVAL = timedelta(seconds=60)
DEADLINE = timedelta(hours=1)
CONCURRENCY = 50
OVERDUE = {"image": timedelta(seconds=60), "3d": timedelta(seconds=180), "": timedelta(seconds=120)}
DEFAULT_PORTS = {"http": 80, "https": 443}


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """One configured provider. What the user wrote beats what the spec recommends."""

    name: str
    spec: Spec
    api_key: str
    base_url: str
    confirm: bool
    submit_timeout: timedelta
    submit_attempts: int
    rate_limit: RateLimit | None
    callback_secrets: tuple[str, ...]
    polling: tuple[PollingConfig, ...]  # the narrower table first
    jwks_url: str | None = None  # where the provider publishes the keys that it signs with

    def __repr__(self) -> str:
        return f"Account(name={self.name!r}, spec={self.spec.name!r}, base_url={self.base_url!r})"

    @property
    def has_callback(self) -> bool:
        return self.spec.table.callback is not None

    @property
    def signature(self) -> Signature | None:
        """How callbacks are signed; None: the token in their URL is all there is."""
        return self.spec.signature

    @property
    def is_account_wide(self) -> bool:
        """Whether callbacks come to one URL for the whole account."""
        return self.spec.table.callback is not None and self.spec.table.callback.account_wide

    @property
    def confirms_callbacks(self) -> bool:
        """Whether a final status that came by callback waits for a poll to say the same: by the user's wish, because such a
        callback says no more than that the job ended, or because its body is not signed."""
        callback, signature = self.spec.table.callback, self.signature
        return self.confirm or (callback is not None and callback.thin) or (signature is not None and not signature.covers_body)

    @property
    def has_stream(self) -> bool:
        return self.spec.table.stream is not None

    @property
    def has_list(self) -> bool:
        return self.spec.table.list is not None

    def has_cancel(self, operation: str) -> bool:
        return self.spec.cancel_call(operation) is not None

    @property
    def concurrency(self) -> int:
        return next((table.concurrency for table in self.polling if table.concurrency is not None), CONCURRENCY)

    def interval_for(self, media: str | None, operation: str | None = None) -> timedelta:
        """Between two polls of a job, at first."""
        wish = next((table.interval for table in self.polling if table.interval is not None), None)
        return wish or self._recommended("interval", media, operation) or INTERVAL

    def max_interval_for(self, media: str | None, operation: str | None = None) -> timedelta:
        """What the interval grows to; never below the interval itself."""
        wish = next((table.max_interval for table in self.polling if table.max_interval is not None), None)
        longest = wish or self._recommended("max_interval", media, operation) or MAX_INTERVAL
        return max(longest, self.interval_for(media, operation))

    def deadline_for(self, media: str | None, operation: str | None = None) -> timedelta:
        for table in self.polling:
            if table.deadline is not None:
                wish = table.deadline.get(media or "") or table.deadline.get("")
                if wish is not None:
                    return wish
        return self._recommended("deadline", media, operation) or DEADLINE

    def overdue_for(self, media: str | None, operation: str | None = None) -> timedelta | None:
        """How long a callback may be silent; None: learn it, starting from `overdue_prior`."""
        wish = next((table.overdue_after for table in self.polling if table.overdue_after is not None), None)
        return wish if isinstance(wish, timedelta) else None

    def overdue_prior(self, media: str | None, operation: str | None = None) -> timedelta:
        return self._recommended("overdue", media, operation) or OVERDUE.get(media or "", OVERDUE[""])

    def may_have_key(self, url: str) -> bool:
        """Whether a call to this URL may carry our key: the base URL's own origin; the spec's hosts while the base URL is the spec's."""
        origin = _origin(url)
        if origin is None:
            return False
        if origin == _origin(self.base_url):
            return True
        return self._is_at_home and origin[0] == "https" and origin[2] == 443 and origin[1] in self.spec.table.auth.hosts

    @property
    def auth_headers(self) -> dict[str, str]:
        """What shows the provider that it is us; nothing without a key."""
        auth = self.spec.table.auth
        return {auth.header: f"{auth.prefix} {self.api_key}" if auth.prefix else self.api_key} if self.api_key else {}

    def output_may_have_key(self, url: str) -> bool:
        """Whether the download of an output may carry our key; where the base URL was changed, its origin stands for the spec's own."""
        origin = _origin(url)
        hosts = self.spec.table.auth.output_hosts
        if origin is None or not hosts:
            return False
        if origin == _origin(self.base_url):  # our calls go there with the key anyway
            return urlsplit(self.spec.base_url).hostname in hosts
        return self._is_at_home and origin[0] == "https" and origin[2] == 443 and origin[1] in hosts

    @property
    def _is_at_home(self) -> bool:
        return _origin(self.base_url) == _origin(self.spec.base_url)

    def _recommended(self, name: str, media: str | None, operation: str | None) -> timedelta | None:
        for times in self._times(operation):
            by_media: dict[str, timedelta] = getattr(times, name)
            found = by_media.get(media or "") or by_media.get("")
            if found is not None:
                return found
        return None

    def _times(self, operation: str | None) -> Iterator[Times]:
        if operation is not None:
            yield self.spec.operation(operation).times
        yield self.spec.table.times


def make_account(name: str, config: ProviderConfig, polling: PollingConfig, spec: Spec) -> Account:
    """The account of `[providers.NAME]`; `polling` is the `[polling]` table."""
    return Account(
        name=name,
        spec=spec,
        api_key=config.api_key,
        base_url=(config.base_url or spec.base_url).rstrip("/"),
        confirm=config.confirm,
        submit_timeout=config.submit_timeout,
        submit_attempts=config.submit_attempts,
        rate_limit=config.rate_limit or spec.table.limits.rate,
        callback_secrets=config.callback_secrets,
        polling=(config.polling, polling),
        jwks_url=config.jwks_url or (spec.signature.jwks if spec.signature is not None else None),
    )


def _origin(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; None for anything that two readers could read differently."""
    if "\\" in url or any(sign.isspace() or not sign.isprintable() for sign in url):
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname or "@" in parts.netloc:
        return None
    return parts.scheme, parts.hostname, port or DEFAULT_PORTS[parts.scheme]
