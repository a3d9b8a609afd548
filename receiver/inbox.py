"""Keeps a notice that was pushed to us: proof of origin first, then on disk, then the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Protocol

import structlog
from msgspec.structs import replace

from receiver.clock import Clock
from receiver.counters import Counters
from receiver.errors import TooMany, UnknownProvider, Unproven, WrongSignature
from receiver.ids import make_id
from receiver.inflow import Inflow
from receiver.jwks import Jwks
from receiver.masking import Masker
from receiver.model import Channel, Notice
from receiver.providers.account import Account
from receiver.providers.signatures import Keys, Presented, make_keys, prove
from receiver.providers.spec import Spec
from receiver.rush import Rush
from receiver.stores.base import Store
from receiver.stores.terms import NOT_KEPT, Kept, NoticeBound
from receiver.tokens import Tokens
from receiver.unpacking import WINDOWS, unpack

KEPT_HEADERS = ("content-type", "content-encoding", "user-agent", "x-hoox-webhook")
BOUND = NoticeBound()
TELL_EVERY = timedelta(minutes=1)  # in the log, why signatures of a provider are refused
log = structlog.get_logger("receiver.inbox")


class Taker(Protocol):
    """Settles in this process, perhaps."""

    def reserve(self, size: int) -> bool:
        """Whether a callback with so many bytes may be claimed with the write that keeps it; then `take` has to follow."""
        ...

    def take(self, notice: Notice, *, is_claimed: bool) -> None:
        """Settle it, or give its place back."""
        ...

    def leave(self) -> None:
        """One was kept that is not claimed."""
        ...


class Inbox:
    """The door for callbacks. What is no account here may be a spec, or the name of an account that is configured no more."""

    def __init__(
        self,
        store: Store,
        tokens: Tokens,
        clock: Clock,
        counters: Counters,
        masker: Masker,
        jwks: Jwks,
        accounts: Mapping[str, Account],
        specs: Mapping[str, Spec],
        max_body_bytes: int,
        settler: Taker,
        rush: Rush,
    ) -> None:
        self._store, self._tokens, self._clock, self._counters, self._masker = store, tokens, clock, counters, masker
        self._jwks, self._accounts, self._specs = jwks, accounts, specs
        self.max_body_bytes, self._settler, self._rush = max_body_bytes, settler, rush
        self._keys = {
            name: make_keys(account.signature, account.callback_secrets)
            for name, account in accounts.items()
            if account.signature is not None
        }
        self._told_at: dict[str, datetime] = {}
        self._inflow = Inflow()

    def find_spec(self, provider: str) -> Spec | None:
        account = self._accounts.get(provider)
        return self._specs.get(provider) if account is None else account.spec

    def prove(self, provider: str, token: str | None) -> str | None:
        """The submission that the token names; None where a callback is for the whole account, and only its signature can prove it.
        UnknownProvider, or Unproven; both before a byte of the body is read."""
        spec, account = self.find_spec(provider), self._accounts.get(provider)
        if spec is not None and spec.table.callback is None:
            raise UnknownProvider
        if token is None and account is not None and account.is_account_wide:
            return None
        try:
            if token is None:
                raise Unproven
            return self._tokens.check(provider, token)
        except Unproven:
            if spec is None:  # a token for a provider that left the configuration still counts
                raise UnknownProvider from None
            self._refuse(provider, "callbacks_wrong_token")
            raise

    def wants_signature(self, provider: str) -> bool:
        spec = self.find_spec(provider)
        return spec is not None and spec.signature is not None

    async def prove_signature(self, provider: str, submission_id: str | None, presented: Presented) -> None:
        """Where `wants_signature`: Unproven, and behind a good token the jobs are polled at once. Unavailable: its keys cannot be had."""
        try:
            await self._check_signature(provider, presented, self._clock.now())
        except Unproven as error:
            self._refuse(provider, "callbacks_wrong_signature")
            self._tell(provider, str(error))
            if submission_id is not None:
                await self._store.poll_now(self._clock.now(), submission_id=submission_id)
            raise Unproven from None

    async def _check_signature(self, provider: str, presented: Presented, now: datetime) -> None:
        account = self._accounts.get(provider)
        if account is None or account.signature is None:
            raise Unproven("the provider is not in the configuration, so its secret is not known")
        signature, url = account.signature, account.jwks_url
        if url is None:
            prove(signature, self._keys[provider], presented, now)
            return
        try:
            prove(signature, Keys(public=await self._jwks.read(url, now)), presented, now)
        except WrongSignature:
            fresh = await self._jwks.refresh(url, now)  # the provider may have changed its keys
            if fresh is None:
                raise
            prove(signature, Keys(public=fresh), presented, now)

    def _refuse(self, provider: str, reason: str) -> None:
        for name in ("callbacks_refused", reason):
            self._counters.add(f"provider:{provider}", name)

    def _tell(self, provider: str, reason: str) -> None:
        """Strangers must not fill the log."""
        now, told_at = self._clock.now(), self._told_at.get(provider)
        if told_at is None or abs(now - told_at) >= TELL_EVERY:
            self._told_at[provider] = now
            log.warning("callback.unproven", provider=provider, reason=reason)

    async def keep(self, provider: str, token: str | None, submission_id: str | None, headers: Mapping[str, str], body: bytes) -> Notice:
        """Keep a proven callback; returns once it is on disk. TooMany over the bound of one submission; StoreUnavailable."""
        now = self._clock.now()
        masker = self._masker if token is None else self._masker.with_token(token)
        notice = Notice(
            id=make_id("ntc", now),
            channel=Channel.CALLBACK,
            provider=provider,
            at=now,
            submission_id=submission_id,
            headers={name: masker.mask_text(headers[name]) for name in self._kept_headers(provider) if name in headers},
            body=masker.mask(decode(body, headers.get("content-encoding", ""), self.max_body_bytes)),
        )
        if submission_id is None:
            self._take_in(provider, len(notice.body), now)
        with self._rush:
            is_kept = await self._write(notice)
        if not is_kept:
            self._counters.add(f"provider:{provider}", "callbacks_over_bound")
            raise TooMany("This submission has left too many callbacks.", retry_after=3600)
        self._counters.add(f"provider:{provider}", "callbacks_accepted")
        return notice

    async def _write(self, notice: Notice) -> bool:
        if not self._settler.reserve(len(notice.body)):
            kept = Kept(await self._store.keep_notice(notice, BOUND))
        else:
            kept = NOT_KEPT
            claiming = replace(notice, tries=1)
            try:
                kept = await self._store.keep_and_claim(claiming, BOUND)
            finally:
                self._settler.take(claiming, is_claimed=kept.is_claimed)
        if kept.is_kept and not kept.is_claimed:
            self._settler.leave()
        return kept.is_kept

    def _take_in(self, provider: str, size: int, now: datetime) -> None:
        wait = self._inflow.take(provider, size, now)
        if wait is not None:
            self._counters.add(f"provider:{provider}", "callbacks_over_bound")
            raise TooMany("Too many callbacks came for this account.", retry_after=math.ceil(wait.total_seconds()))

    def _kept_headers(self, provider: str) -> tuple[str, ...]:
        spec = self.find_spec(provider)
        callback = None if spec is None else spec.table.callback
        if callback is None or not callback.kept_headers:
            return KEPT_HEADERS
        return (*KEPT_HEADERS, *(name.lower() for name in callback.kept_headers))

    async def poll_instead(self, provider: str, submission_id: str | None) -> None:
        """Behind a good token came a body that we do not take: ask the provider at once."""
        self._counters.add(f"provider:{provider}", "callbacks_over_limit")
        if submission_id is not None:
            await self._store.poll_now(self._clock.now(), submission_id=submission_id)


def decode(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its Content-Encoding, up to `limit` bytes. What cannot be decoded is kept as it came: it shows as unreadable."""
    coding = encoding.strip().lower()
    plain = unpack(body, coding, limit) if coding in WINDOWS else None
    return body if plain is None else plain
