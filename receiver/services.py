"""What the web routes and the passes are handed: everything that lives as long as the application."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from receiver.clock import Clock
from receiver.config import Config, HandlerConfig
from receiver.counters import Counters
from receiver.inbox import Inbox
from receiver.loop import LoopHealth
from receiver.outputs import Outputs
from receiver.probing import Fault
from receiver.providers.account import Account
from receiver.providers.spec import Spec
from receiver.pulse import Pulse
from receiver.settling import Settling
from receiver.stores.base import Store
from receiver.tally import Tally
from receiver.tokens import Tokens


@dataclass
class HandlerHealth:
    """How a handler does in this process."""

    running: int = 0
    last_error: str | None = None
    last_error_at: datetime | None = None
    last_done_at: datetime | None = None


@dataclass(frozen=True)
class Services:
    """One running application."""

    config: Config
    clock: Clock
    store: Store
    tokens: Tokens
    specs: Mapping[str, Spec]
    accounts: Mapping[str, Account]  # by name, as configured
    handlers: Mapping[str, HandlerConfig]
    handler_health: Mapping[str, HandlerHealth]
    inbox: Inbox
    settling: Settling
    outputs: Outputs
    counters: Counters
    tally: Tally
    pulse: Pulse  # beats when the store changed; the loops listen to it
    health: Callable[[], tuple[LoopHealth, ...]]
    is_reachable: Callable[[], bool]  # False: no callback comes home; the public URL did not lead here when it was last tried
    public_fault: Callable[[], Fault | None]  # what was found then, also where callbacks arrive all the same
