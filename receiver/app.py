"""Composition root: configuration in, running application out. The only module that knows them all."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

import structlog

from receiver.clock import Clock, SystemClock
from receiver.config import Config, ProviderConfig
from receiver.counters import Counters
from receiver.dispatcher import Dispatcher
from receiver.ending import end
from receiver.errors import ConfigError, Mistake
from receiver.guarded import guarded_client
from receiver.handling import Context, Handler, HandlerPlugin, load_handlers
from receiver.herald import Herald
from receiver.inbox import Inbox
from receiver.jwks import Jwks
from receiver.limiter import Limiter
from receiver.loop import Loop, Step
from receiver.masking import Masker
from receiver.net import Client, ProviderClient, plain_client
from receiver.outputs import Outputs
from receiver.poller import Poller
from receiver.probe import PROBE_AGAIN, Probe
from receiver.providers.account import Account, make_account
from receiver.providers.loader import load_specs
from receiver.providers.signatures import check_secrets
from receiver.providers.spec import Spec
from receiver.pulse import Pulse
from receiver.rush import Rush
from receiver.services import Services
from receiver.settler import Settler
from receiver.settling import Settling
from receiver.stores import open_store
from receiver.stores.base import Store
from receiver.streams import Streams
from receiver.submitter import Submitter
from receiver.sweeper import Sweeper
from receiver.tally import Tally
from receiver.telemetry import open_tracing
from receiver.tokens import Tokens
from receiver.tracing import OFF, Tracing
from receiver.watchdog import Watchdog

ROLES = ("web", "submit", "settle", "poll", "stream", "dispatch")
SOON = timedelta(milliseconds=250)  # how late a due time may be noticed; what is new is noticed by a wake
SECOND = timedelta(seconds=1)
TIMED = ("poll", "probe", "stream", "sweep")  # loops that only time brings work: what is due, what goes on
MOST_COUNTED = 10_000  # open jobs, for a warning at start
GRACE = timedelta(seconds=10)  # for running work to end when we stop
log = structlog.get_logger("receiver.app")


@dataclass(frozen=True)
class Plan:
    """A checked configuration: everything that can be known without opening anything."""

    config: Config
    specs: Mapping[str, Spec]
    accounts: Mapping[str, Account]
    plugins: Sequence[HandlerPlugin]


def check(config: Config) -> Plan:
    """Load what the configuration names; ConfigError with every mistake in it."""
    mistakes: list[Mistake] = []
    specs: Mapping[str, Spec] = {}
    accounts: dict[str, Account] = {}
    plugins: Sequence[HandlerPlugin] = ()
    try:
        specs = load_specs(config.server.provider_specs)
        accounts = make_accounts(config, specs)
    except ConfigError as error:
        mistakes += error.mistakes
    try:
        plugins = load_handlers(config.handlers, config.folder, config.file)
    except ConfigError as error:
        mistakes += error.mistakes
    if mistakes:
        raise ConfigError(mistakes)
    return Plan(config, specs, accounts, plugins)


def make_accounts(config: Config, specs: Mapping[str, Spec]) -> dict[str, Account]:
    accounts: dict[str, Account] = {}
    mistakes: list[Mistake] = []
    for name, provider in config.providers.items():
        spec = specs.get(provider.spec or name)
        if spec is None:
            known = ", ".join(sorted(specs))
            detail = (
                f"there is no spec {provider.spec or name!r}; there are {known}; or write one, in a folder that server.provider_specs names"
            )
            mistakes.append(Mistake(config.file, f"providers.{name}.spec" if provider.spec else f"providers.{name}", detail))
            continue
        account = accounts[name] = make_account(name, provider, config.polling, spec)
        mistakes += check_signing(account, provider, config.file)
    if mistakes:
        raise ConfigError(mistakes)
    return accounts


def check_signing(account: Account, provider: ProviderConfig, file: str) -> list[Mistake]:
    """What an account lacks to tell its provider's callbacks from others."""
    key, signature = f"providers.{account.name}", account.signature
    mistakes: list[Mistake] = []
    if provider.jwks_url is not None and (signature is None or signature.scheme != "ed25519"):
        mistakes.append(Mistake(file, f"{key}.jwks_url", "means nothing here: this provider publishes no keys; leave it out"))
    if signature is None and account.callback_secrets:
        detail = "means nothing here: this provider does not sign its callbacks; leave it out"
        mistakes.append(Mistake(file, f"{key}.callback_secrets", detail))
    if signature is not None:
        for position, detail in check_secrets(signature, account.callback_secrets, publishes=account.jwks_url is not None):
            place = "" if position is None else f"[{position}]"
            mistakes.append(Mistake(file, f"{key}.callback_secrets{place}", detail))
    return mistakes


@asynccontextmanager
async def run(plan: Plan, roles: Sequence[str] = ROLES, clock: Clock | None = None) -> AsyncIterator[Services]:
    """Open everything, start the loops of these roles, yield; then claim no more, let running work end, and close."""
    clock = clock or SystemClock()
    config = plan.config
    async with AsyncExitStack() as stack:
        tracing = await stack.enter_async_context(open_tracing(os.environ))
        store = await stack.enter_async_context(open_store(config.store.url, listen_url=config.store.listen_url, clock=clock))
        provider = ProviderClient()
        stack.push_async_callback(provider.close)
        guarded = await stack.enter_async_context(guarded_client(config.network.allow_private))
        direct = await stack.enter_async_context(plain_client())
        tokens = Tokens(config.server.secrets or (keep_secret(config),))
        house = House(plan, store, tokens, clock, Clients(provider, guarded, direct), tracing)
        await house.start(roles, stack)
        yield house.services


class House:
    """The passes and what they share, wired."""

    def __init__(self, plan: Plan, store: Store, tokens: Tokens, clock: Clock, clients: Clients, tracing: Tracing = OFF) -> None:
        config, accounts = plan.config, plan.accounts
        counters, masker = Counters(store), Masker((*config.all_secrets(), *tokens.secrets))
        self._plan, self._store, self._tokens, self._clock, self._clients = plan, store, tokens, clock, clients
        self._loops: dict[str, Loop] = {}
        outputs = Outputs(store, accounts, clients.provider, clients.guarded, clock)
        herald = Herald(store, config.handlers)
        self._limiter = Limiter(store, herald)
        self._probe = Probe(config.server, tokens, clients.provider, store, accounts, herald, clock)
        self._dispatcher = Dispatcher(store, config.handlers, clock, counters, masker, outputs, self._waker("dispatch"), tracing)
        settling = Settling(store, accounts, config.handlers, counters, tokens, masker, self._pushes, self._dispatcher, tracing)
        rush = Rush(clock)
        self._settler = Settler(settling, clock, self._waker("settle"), rush)
        self._submitter = Submitter(settling, clients.provider, self._limiter, clock, self._callback_url, self._waker("submit"))
        self._poller = Poller(settling, clients.provider, self._limiter, clock, self._waker("poll"))
        self._streams = Streams(settling, clients.provider, clock)
        self._sweeper = Sweeper(settling, self._limiter, config.store)
        self.services = Services(
            config=config,
            clock=clock,
            store=store,
            tokens=tokens,
            specs=plan.specs,
            accounts=accounts,
            handlers={handler.name: handler for handler in config.handlers},
            handler_health=self._dispatcher.health,
            inbox=Inbox(
                store,
                tokens,
                clock,
                counters,
                masker,
                Jwks(clients.guarded),
                accounts,
                plan.specs,
                config.server.max_body_bytes,
                self._settler,
                rush,
            ),
            settling=settling,
            outputs=outputs,
            counters=counters,
            tally=Tally(store),
            pulse=Pulse(),
            health=lambda: tuple(loop.health for loop in self._loops.values()),
            is_reachable=lambda: self._probe.is_reachable,
            public_fault=lambda: self._probe.fault,
        )

    # What the passes ask

    def _pushes(self, account: Account) -> bool:
        """Whether news of the account's jobs comes by itself at present."""
        if account.has_callback:
            return self._plan.config.server.public_url is not None and self._probe.is_reachable
        return account.has_stream and account.name in self._streams.up

    def _callback_url(self, account: Account, submission_id: str) -> str | None:
        public_url = self._plan.config.server.public_url
        if public_url is None or not account.has_callback:
            return None
        return f"{public_url}/callbacks/{account.name}/{self._tokens.make(account.name, submission_id)}"

    def _waker(self, role: str) -> Callable[[], None]:
        def wake() -> None:
            loop = self._loops.get(role)
            if loop is not None:
                loop.wake()

        return wake

    # Start and stop

    async def start(self, roles: Sequence[str], stack: AsyncExitStack) -> None:
        """Start handlers and loops; what is pushed on the stack ends them in the opposite order."""
        if "dispatch" in roles:
            self._dispatcher.use(await self._start_handlers(stack))
        await self._warn()
        await self.services.settling.refresh_learned()
        await self._limiter.refresh()
        await self._store.bury_dead_nodes()
        stack.push_async_callback(self.services.counters.flush)
        pulse = asyncio.create_task(self.services.pulse.run(self._store), name="pulse")
        stack.push_async_callback(end, pulse)
        tasks: list[asyncio.Task[None]] = []
        for name, step, interval in self._steps(roles):
            loop = self._loops[name] = Loop(name, step, interval, self._clock)
            if name not in TIMED:
                self.services.pulse.listen(loop.wake)
            tasks.append(asyncio.create_task(loop.run(), name=f"loop {name}"))
        stack.push_async_callback(self._stop, tasks)
        watchdog = Watchdog()
        watchdog.start()
        stack.callback(watchdog.stop)

    def _steps(self, roles: Sequence[str]) -> list[tuple[str, Step, timedelta]]:
        steps: dict[str, tuple[Step, timedelta]] = {
            "submit": (self._submitter.run_pass, SOON),
            "settle": (self._settler.run_pass, SOON),
            "poll": (self._poller.run_pass, SOON),
            "stream": (self._streams.run_pass, SECOND),
            "dispatch": (self._dispatcher.run_pass, SOON),
        }
        chosen = [(name, *steps[name]) for name in roles if name in steps]
        if self._probe.is_needed:  # whoever settles or polls has to know, too
            chosen.append(("probe", self._probe.run_pass, PROBE_AGAIN))
        return [*chosen, ("sweep", self._sweeper.run_pass, SECOND)]

    async def _start_handlers(self, stack: AsyncExitStack) -> dict[str, Handler]:
        handlers: dict[str, Handler] = {}
        for plugin in self._plan.plugins:
            context = Context(
                name=plugin.name,
                log=structlog.get_logger(f"handler.{plugin.name}").bind(handler=plugin.name),
                http=self._clients.guarded,
                direct_http=self._clients.direct,
                folder=self._plan.config.folder,
                emit=self._dispatcher.emit,
                open_output=self._dispatcher.open_output,
                record_stored=self._dispatcher.record_stored,
                clock=self._clock,
            )
            handler = plugin.build(context)
            try:
                await handler.start()
            except Exception as error:  # a stranger's code
                detail = f"its start() failed: {type(error).__name__}: {error}"
                raise ConfigError([Mistake(self._plan.config.file, f"handlers.{plugin.name}", detail)]) from error
            stack.push_async_callback(handler.close)
            handlers[plugin.name] = handler
        return handlers

    async def _warn(self) -> None:
        """What works, but surely not as meant."""
        for account in self._plan.accounts.values():
            if not account.api_key:
                log.warning("provider.no_key", provider=account.name, hint=f"set providers.{account.name}.api_key")
        for provider in await self._store.open_accounts():
            if provider not in self._plan.accounts:
                count = await self._store.count_open(provider, MOST_COUNTED)
                hint = "its callbacks are kept, nothing is polled; put it back into the configuration to bring them home"
                log.warning("provider.left", provider=provider, open_jobs=count, hint=hint)

    async def _stop(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Claim no more; give running work its grace time; cancel; what a pass holds is written or released by then."""
        for loop in self._loops.values():
            loop.stop()
        await self._streams.close()
        await asyncio.gather(*(work.finish(GRACE) for work in (self._submitter.crew, self._poller.crew, self._dispatcher)))
        await asyncio.wait(tasks, timeout=1)
        await end(*tasks)
        await self._settler.finish()


@dataclass(frozen=True)
class Clients:
    """The HTTP clients: for providers, for addresses that strangers name, for addresses that the operator names."""

    provider: ProviderClient
    guarded: Client
    direct: Client


def keep_secret(config: Config) -> str:
    """The secret that signs callback tokens where none is configured: made once, kept beside the database. Back it up with it."""
    path = Path(unquote(urlsplit(config.store.url).path)).with_suffix(".secret")
    try:
        if not path.exists():
            make_secret(path)
        secret = path.read_text().strip()
    except OSError as error:
        raise ConfigError(
            [Mistake(config.file, "server.secrets", f"no secret is set, and none can be kept at {path}: {error.strerror}")]
        ) from error
    if not secret:
        raise ConfigError([Mistake(config.file, "server.secrets", f"the file {path} is empty; delete it to have a new secret made")])
    return secret


def make_secret(path: Path) -> None:
    """Whole and on disk before it has its name, and whoever is first gives it that: several processes may start together."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # for its owner alone
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(32))
            file.flush()
            os.fsync(handle)
        with suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.unlink(name)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
