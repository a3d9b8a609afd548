"""TOML and environment → Config, or every mistake at once."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from receiver import config_values as values
from receiver.config_handlers import HandlerConfig as HandlerConfig
from receiver.config_handlers import read_handler as read_handler
from receiver.config_handlers import read_handlers, secret_options
from receiver.config_tables import Reading, Settings, Table, hide_passwords
from receiver.errors import ConfigError, Mistake
from receiver.masking import SHORTEST
from receiver.model import MEDIA
from receiver.units import RateLimit as RateLimit

DEFAULT_FILE = "receiver.toml"
FILE_VARIABLE = "RECEIVER_CONFIG"


class ServerConfig(Settings, frozen=True, kw_only=True):
    hidden = ("secrets", "api_keys")

    host: str = "127.0.0.1"
    port: int = 8080  # 0: any free one
    public_url: str | None = None  # without a slash at its end
    probe_public_url: bool = True
    secrets: tuple[str, ...] = ()  # newest first
    api_keys: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    max_body_bytes: int = 1024 * 1024
    provider_specs: tuple[Path, ...] = ()


class StoreConfig(Settings, frozen=True, kw_only=True):
    url: str = "sqlite:///receiver.db"
    listen_url: str = ""
    retention: timedelta = timedelta(days=30)
    raw_retention: timedelta = timedelta(days=7)

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(field, hide_passwords(value) if isinstance(value, str) else value) for field, value in super().__rich_repr__()]


class PollingConfig(Settings, frozen=True, kw_only=True):
    """None is what the user did not write: then the wider table, the spec or the built-in default counts."""

    overdue_after: timedelta | Literal["auto"] | None = None
    interval: timedelta | None = None
    max_interval: timedelta | None = None
    deadline: dict[str, timedelta] | None = None  # by media; "" is every other
    concurrency: int | None = None


class ProviderConfig(Settings, frozen=True, kw_only=True):
    hidden = ("api_key", "callback_secrets")

    spec: str | None = None  # None: the table's name
    api_key: str = ""
    base_url: str | None = None
    confirm: bool = False
    submit_timeout: timedelta = timedelta(seconds=30)
    submit_attempts: int = 5
    rate_limit: RateLimit | None = None
    max_open: int | None = None  # jobs
    max_cost_per_day: float | None = None  # in the provider's unit
    callback_secrets: tuple[str, ...] = ()
    jwks_url: str | None = None
    polling: PollingConfig = PollingConfig()


class NetworkConfig(Settings, frozen=True, kw_only=True):
    allow_private: tuple[str, ...] = ()


class Config(Settings, frozen=True, kw_only=True):
    hidden = ("filled",)

    server: ServerConfig = ServerConfig()
    store: StoreConfig = StoreConfig()
    polling: PollingConfig = PollingConfig()
    providers: dict[str, ProviderConfig] = msgspec.field(default_factory=dict)
    handlers: tuple[HandlerConfig, ...] = ()
    network: NetworkConfig = NetworkConfig()
    folder: Path = Path()  # relative paths are relative to it
    file: str = DEFAULT_FILE
    filled: tuple[str, ...] = ()  # what came from variables and files into secret values

    def all_secrets(self) -> tuple[str, ...]:
        """Everything that is to be masked, longest first."""
        found = [*self.server.secrets, *self.server.api_keys, *self.filled]
        for provider in self.providers.values():
            found += (provider.api_key, *provider.callback_secrets)
        for handler in self.handlers:
            found += secret_options(handler.options)
        found += (*values.passwords_of(self.store.url), *values.passwords_of(self.store.listen_url))
        return tuple(sorted({secret for secret in found if len(secret) >= SHORTEST}, key=lambda secret: (-len(secret), secret)))


def find_and_load(path: str | None, environ: Mapping[str, str]) -> Config:
    """The configuration at `path`, else at $RECEIVER_CONFIG, else in ./receiver.toml, else the built-in defaults."""
    named = path or environ.get(FILE_VARIABLE)
    file = Path(named or DEFAULT_FILE)
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        if named:
            source = "" if path else f" (${FILE_VARIABLE} names it)"
            raise ConfigError([Mistake(str(file), "", f"there is no such file{source}")]) from None
        text = ""
    except UnicodeDecodeError:
        raise ConfigError([Mistake(str(file), "", "must be UTF-8")]) from None
    except (OSError, ValueError) as error:
        raise ConfigError([Mistake(str(file), "", f"cannot be read: {getattr(error, 'strerror', None) or error}")]) from None
    return load(text, environ, file=str(file), folder=file.absolute().parent)


def load(text: str, environ: Mapping[str, str], *, file: str = DEFAULT_FILE, folder: Path = Path()) -> Config:
    """The configuration that the text says, or a ConfigError with every mistake in it."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError([Mistake(file, "", f"is not TOML: {error}{_explain(str(error))}")]) from None
    reading = Reading(file, environ, folder.absolute())
    config = _read(Table(reading, document), reading)
    if reading.is_clean("server.host", "server.public_url", "server.api_keys"):
        reading.mistakes += check_exposure(config)
    if reading.mistakes:
        raise ConfigError(reading.mistakes, config)
    return config


def _explain(fault: str) -> str:
    """What to do about a fault that whoever adds a table to the end of the file meets first."""
    return "; each table stands in it once: put the keys where it is" if fault.startswith("Cannot declare") else ""


def check_exposure(config: Config) -> list[Mistake]:
    """Without keys strangers could spend the user's money: then nobody but this machine may reach the server."""
    if config.server.api_keys:
        return []
    line = 'without keys anyone who reaches it could spend your money; add to [server]: api_keys = ["${RECEIVER_API_KEY}"]'
    host, public_url = config.server.host, config.server.public_url
    mistakes = []
    if not values.is_loopback(host):
        mistakes.append(Mistake(config.file, "server.host", f"{host} is reachable from other machines, and {line}"))
    if public_url is not None and not values.is_loopback(urlsplit(public_url).hostname or ""):
        mistakes.append(Mistake(config.file, "server.public_url", f"{public_url} is reachable from other machines, and {line}"))
    return mistakes


def _read(root: Table, reading: Reading) -> Config:
    server = _read_server(root.table("server"))
    store = _read_store(root.table("store"))
    if values.is_postgres(store.url) and not server.secrets and reading.is_clean("server.secrets"):
        reading.add("server.secrets", 'is required with PostgreSQL, the same on every node: secrets = ["${RECEIVER_SECRET}"]')
    config = Config(
        server=server,
        store=store,
        polling=_read_polling(root.table("polling")),
        providers=_read_providers(root.table("providers")),
        handlers=read_handlers(root),
        network=_read_network(root.table("network")),
        folder=reading.folder,
        file=reading.file,
        filled=tuple(dict.fromkeys(reading.secrets)),
    )
    root.close()
    return config


def _read_server(table: Table) -> ServerConfig:
    base = ServerConfig()
    server = ServerConfig(
        host=table.take("host", values.host, base.host),
        port=table.take("port", values.whole(0, 65_535), base.port),
        public_url=table.take("public_url", values.public_url, base.public_url),
        probe_public_url=table.take("probe_public_url", values.switch, base.probe_public_url),
        secrets=table.take_list("secrets", values.text, secret=True),
        api_keys=table.take_list("api_keys", values.token, secret=True),
        trusted_proxies=table.take_list("trusted_proxies", values.network),
        max_body_bytes=table.take("max_body_bytes", values.body_size, base.max_body_bytes),
        provider_specs=table.take_list("provider_specs", values.path_below(table.reading.folder)),
    )
    table.close()
    return server


def _read_store(table: Table) -> StoreConfig:
    folder = table.reading.folder
    base = StoreConfig(url=values.store_url(folder)(StoreConfig().url))
    store = StoreConfig(
        url=table.take("url", values.store_url(folder), base.url),
        listen_url=table.take("listen_url", values.listen_url, base.listen_url),
        retention=table.take("retention", values.duration(), base.retention),
        raw_retention=table.take("raw_retention", values.duration(), base.raw_retention),
    )
    if store.listen_url and not values.is_postgres(store.url) and table.reading.is_clean("store.url"):
        table.reading.add("store.listen_url", "is for PostgreSQL only; leave it out with SQLite")
    table.close()
    return store


def _read_polling(table: Table) -> PollingConfig:
    polling = PollingConfig(
        overdue_after=table.take("overdue_after", values.overdue, None),
        interval=table.take("interval", values.duration(), None),
        max_interval=table.take("max_interval", values.duration(), None),
        deadline=_read_deadline(table),
        concurrency=table.take("concurrency", values.whole(1), None),
    )
    if polling.interval and polling.max_interval and polling.interval > polling.max_interval:
        table.reading.add(table.key("max_interval"), "must not be less than interval")
    table.close()
    return polling


def _read_deadline(table: Table) -> dict[str, timedelta] | None:
    """One for every media, or a table by media."""
    if not table.has_table("deadline"):
        one = table.take("deadline", values.deadline, None)
        return None if one is None else {"": one}
    by_media = table.table("deadline")
    found = {media: by_media.take(media, values.deadline, None) for media in MEDIA}
    by_media.close()
    return {media: deadline for media, deadline in found.items() if deadline is not None}


def _read_providers(table: Table) -> dict[str, ProviderConfig]:
    found = {}
    for name in table.names():
        try:
            values.name(name)
        except ValueError as error:
            table.reading.add(table.key(name), str(error))
        found[name] = _read_provider(table.table(name))
    return found


def _read_provider(table: Table) -> ProviderConfig:
    base = ProviderConfig()
    provider = ProviderConfig(
        spec=table.take("spec", values.name, None),
        api_key=table.take("api_key", values.key, "", secret=True),
        base_url=table.take("base_url", values.base_url, None),
        confirm=table.take("confirm", values.switch, base.confirm),
        submit_timeout=table.take("submit_timeout", values.duration(), base.submit_timeout),
        submit_attempts=table.take("submit_attempts", values.whole(1), base.submit_attempts),
        rate_limit=table.take("rate_limit", values.rate, None),
        max_open=table.take("max_open", values.whole(0, 1_000_000), None),
        max_cost_per_day=table.take("max_cost_per_day", values.amount, None),
        callback_secrets=table.take_list("callback_secrets", values.text, secret=True),
        jwks_url=table.take("jwks_url", values.base_url, None),
        polling=_read_polling(table.table("polling")),
    )
    table.close()
    return provider


def _read_network(table: Table) -> NetworkConfig:
    network = NetworkConfig(allow_private=table.take_list("allow_private", values.network))
    table.close()
    return network
