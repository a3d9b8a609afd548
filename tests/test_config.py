import ipaddress
from contextlib import suppress
from datetime import timedelta
from io import StringIO

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from receiver.config import (
    Config,
    PollingConfig,
    RateLimit,
    ServerConfig,
    StoreConfig,
    check_exposure,
    find_and_load,
    load,
)
from receiver.errors import ConfigError

KEY = {"KEY": "sk-0123456789"}
HANDLER = '[[handlers]]\nname = "archive"\nuse = "storage"\n'


def mistakes_of(text, environ=None, **places):
    """The mistakes in a text by key."""
    with pytest.raises(ConfigError) as caught:
        load(text, environ or {}, **places)
    return {mistake.key: mistake.detail for mistake in caught.value.mistakes}


def only_mistake_of(text, environ=None, **places):
    found = mistakes_of(text, environ, **places)
    assert len(found) == 1, found
    return next(iter(found.items()))


# What is read


def test_an_empty_text_gives_the_defaults(tmp_path):
    config = load("", {}, folder=tmp_path)
    assert config.server == ServerConfig()
    assert config.polling == PollingConfig()
    assert config.store == StoreConfig(url=f"sqlite:///{tmp_path}/receiver.db")
    assert (config.providers, config.handlers, config.file, config.folder) == ({}, (), "receiver.toml", tmp_path)


def test_every_key_of_the_contract_is_read(tmp_path):
    (tmp_path / "mine").mkdir()
    config = load(
        """
        [server]
        host = "0.0.0.0"
        port = 0
        public_url = "https://Hooks.example.com/receiver/"
        probe_public_url = false
        secrets = ["new-secret", "old-secret"]
        api_keys = ["${KEY}"]
        trusted_proxies = ["10.0.0.0/8", "fd00::1"]
        max_body_bytes = "2MiB"
        provider_specs = ["mine"]

        [store]
        url = "postgresql://user@host/db"
        listen_url = "postgres://user@direct:5432/db"
        retention = "10d"
        raw_retention = 3600

        [polling]
        overdue_after = "20s"
        interval = 0.5
        max_interval = "2m"
        deadline = {image = "10m", 3d = "2h"}
        concurrency = 7

        [providers.pixazo-eu]
        spec = "pixazo"
        api_key = "${KEY}"
        base_url = "http://127.0.0.1:9000/eu/"
        confirm = true
        submit_timeout = "10s"
        submit_attempts = 1
        rate_limit = "10/s"
        max_open = 50
        max_cost_per_day = 12.5
        callback_secrets = ["whsec_abc"]
        [providers.pixazo-eu.polling]
        overdue_after = "auto"
        deadline = "90s"

        [[handlers]]
        name = "archive"
        use = "storage"
        events = ["job.*"]
        where = {provider = "pixazo*", "metadata.team" = ["red", "blue"]}
        retry = {attempts = 3, first = "1s", max = "5m"}
        timeout = "5s"
        concurrency = 1
        [handlers.options]
        path = "s3://bucket"
        nested = {list = ["a", 1, true]}

        [network]
        allow_private = ["192.168.0.0/16"]
        """,
        KEY,
        folder=tmp_path,
    )
    seconds = lambda number: timedelta(seconds=number)  # noqa: E731
    assert msgspec.structs.asdict(config.server) == {
        "host": "0.0.0.0",
        "port": 0,
        "public_url": "https://hooks.example.com/receiver",
        "probe_public_url": False,
        "secrets": ("new-secret", "old-secret"),
        "api_keys": ("sk-0123456789",),
        "trusted_proxies": ("10.0.0.0/8", "fd00::1/128"),
        "max_body_bytes": 2_097_152,
        "provider_specs": (tmp_path / "mine",),
    }
    assert msgspec.structs.astuple(config.store) == (
        "postgresql://user@host/db",
        "postgres://user@direct:5432/db",
        timedelta(days=10),
        seconds(3600),
    )
    assert msgspec.structs.astuple(config.polling) == (
        seconds(20),
        seconds(0.5),
        seconds(120),
        {"image": seconds(600), "3d": seconds(7200)},
        7,
    )
    account = config.providers["pixazo-eu"]
    assert (account.spec, account.api_key, account.base_url, account.confirm) == (
        "pixazo",
        "sk-0123456789",
        "http://127.0.0.1:9000/eu",
        True,
    )
    assert (account.submit_timeout, account.submit_attempts, account.rate_limit) == (seconds(10), 1, RateLimit(10, 1.0))
    assert (account.max_open, account.max_cost_per_day) == (50, 12.5)
    assert (account.callback_secrets, account.polling) == (
        ("whsec_abc",),
        PollingConfig(overdue_after="auto", deadline={"": seconds(90)}),
    )
    (handler,) = config.handlers
    assert (handler.name, handler.use, handler.events) == ("archive", "storage", ("job.*",))
    assert handler.where == {"provider": ("pixazo*",), "metadata.team": ("red", "blue")}
    assert msgspec.structs.astuple(handler.retry) == (3, seconds(1), seconds(300))
    assert (handler.timeout, handler.concurrency) == (seconds(5), 1)
    assert handler.options == {"path": "s3://bucket", "nested": {"list": ["a", 1, True]}}
    assert config.network.allow_private == ("192.168.0.0/16",)


def test_a_condition_on_metadata_may_be_a_dotted_key():
    config = load(f'{HANDLER}where = {{metadata.team = "red", error.code = "rate_limited"}}', {})
    assert config.handlers[0].where == {"metadata.team": ("red",), "error.code": ("rate_limited",)}


@pytest.mark.parametrize(
    ("written", "path"),
    [("sqlite:///jobs.db", "{folder}/jobs.db"), ("sqlite:///../jobs.db", "{above}/jobs.db"), ("sqlite:////var/x.db", "/var/x.db")],
)
def test_a_sqlite_path_becomes_absolute(tmp_path, written, path):
    url = load(f'[store]\nurl = "{written}"', {}, folder=tmp_path).store.url
    assert url == "sqlite:///" + path.format(folder=tmp_path, above=tmp_path.parent)


def test_nothing_but_the_arguments_counts(monkeypatch):
    monkeypatch.setenv("KEY", "from-the-process")
    assert only_mistake_of('[providers.oxen]\napi_key = "${KEY}"') == (
        "providers.oxen.api_key",
        "the environment variable KEY is not set",
    )


# What is filled in


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("${KEY}", "sk-0123456789"),
        ("a-${KEY}-${OTHER}", "a-sk-0123456789-${KEY}"),
        ("$${KEY}", "${KEY}"),
        ("$$${KEY}", "$${KEY}"),
        ("$KEY {KEY} $", "$KEY {KEY} $"),
        ("${file:secret.txt}", "from a file\n"),
    ],
)
def test_names_and_files_are_filled_in_once(tmp_path, written, read):
    (tmp_path / "secret.txt").write_text("from a file\n\n")
    config = load(f"{HANDLER}options = {{deep = [{{x = '{written}'}}]}}", {**KEY, "OTHER": "${KEY}"}, folder=tmp_path)
    assert config.handlers[0].options == {"deep": [{"x": read}]}
    assert type(config.handlers[0].options["deep"][0]["x"]) is str


def test_a_condition_is_filled_in():
    assert load(f'{HANDLER}where = {{"metadata.team" = ["${{TEAM}}"]}}', {"TEAM": "red"}).handlers[0].where == {"metadata.team": ("red",)}


def test_variables_give_numbers_and_switches_too():
    config = load(
        '[server]\nport = "${PORT}"\nprobe_public_url = "${PROBE}"\n[polling]\ninterval = "${WAIT}"',
        {"PORT": "9000", "PROBE": "false", "WAIT": "2"},
    )
    assert (config.server.port, config.server.probe_public_url, config.polling.interval) == (9000, False, timedelta(seconds=2))


@pytest.mark.parametrize("text", ['port = "9000"', 'probe_public_url = "false"'])
def test_text_that_was_written_out_is_no_number_and_no_switch(text):
    only_mistake_of(f"[server]\n{text}")


@pytest.mark.parametrize(
    ("written", "detail"),
    [
        ("${NOPE}", "the environment variable NOPE is not set"),
        ("${EMPTY}", "the environment variable EMPTY is empty"),
        ("${BYTES}", "the environment variable BYTES is not UTF-8"),
        ("${file:nope.txt}", "nope.txt cannot be read: No such file"),
        ("${file:.}", "cannot be read: Is a directory"),
        ("${file:empty.txt}", "empty.txt is empty"),
        ("${file:latin.txt}", "latin.txt is not UTF-8"),
        ("${file:large.txt}", "large.txt is over 1 MiB"),
        ("${file:a\\u0000b}", "cannot be read"),
        ("${NAME:-default}", 'neither "${NAME}" nor "${file:PATH}"'),
        ("${}", 'neither "${NAME}" nor "${file:PATH}"'),
        ("${NAME", 'without "}"'),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_cannot_be_filled_in_names_key_and_source(tmp_path, written, detail):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9\xff")
    (tmp_path / "large.txt").write_bytes(b"x" * (1024 * 1024 + 1))
    environ = {"EMPTY": "", "BYTES": "\udcff"}
    key, found = only_mistake_of(f'[server]\nsecrets = ["fine", "{written}"]', environ, folder=tmp_path)
    assert key == "server.secrets[1]"
    assert detail in found


def test_two_wrong_names_in_one_text_are_two_mistakes():
    with pytest.raises(ConfigError) as caught:
        load('[providers.oxen]\napi_key = "${A}${B}"', {})
    assert [str(mistake) for mistake in caught.value.mistakes] == [
        "receiver.toml: providers.oxen.api_key: the environment variable A is not set",
        "receiver.toml: providers.oxen.api_key: the environment variable B is not set",
    ]


# What is wrong


def test_every_mistake_is_reported_at_once():
    found = mistakes_of(
        """
        colour = "red"
        [server]
        prot = 9000
        host = ""
        [store]
        retention = "soon"
        [polling]
        concurrency = 0
        [providers.pixazo.polling]
        interval = "0.05s"
        [[handlers]]
        name = "archive"
        use = "storage"
        retry = {attempts = 0}
        [[handlers]]
        retry = {attempts = true}
        [network]
        allow_private = ["10.0.0.0/8", "10.0.0.1/8", 7]
        """
    )
    assert set(found) == {
        "colour",
        "server.prot",
        "server.host",
        "store.retention",
        "polling.concurrency",
        "providers.pixazo.polling.interval",
        "handlers.archive.retry.attempts",
        "handlers[1].name",
        "handlers[1].use",
        "handlers[1].retry.attempts",
        "network.allow_private[1]",
        "network.allow_private[2]",
    }
    assert found["server.prot"] == 'unknown key; did you mean "port"?'
    assert found["colour"] == "unknown key; known: server, store, polling, providers, handlers, network"
    assert '"10.0.0.0/8"' in found["network.allow_private[1]"]


def test_a_mistake_names_the_file():
    with pytest.raises(ConfigError, match=r"^deploy/my\.toml: server\.port: must be a whole number from 0 to 65535, not 70000$"):
        load("[server]\nport = 70000", {}, file="deploy/my.toml")


@pytest.mark.parametrize("text", ["[server\nport = 1", "a = 1\na = 2", "[server]\nport = 08", 'host = "a\nb"', "x = " + "[" * 5000])
def test_broken_toml_is_one_mistake(text):
    key, detail = only_mistake_of(text)
    assert key == ""
    assert detail.startswith("is not TOML")


def test_a_table_that_is_added_once_more_says_where_its_keys_go():
    detail = only_mistake_of("[server]\nport = 1\n[network]\n[server]\nhost = 'a'")[1]
    assert "line 4" in detail
    assert detail.endswith("each table stands in it once: put the keys where it is")


def test_broken_toml_says_the_line():
    assert "line 2" in only_mistake_of("[server]\nport = = 1")[1]


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("server", line)
        for line in (
            'host = "127.0.0.1:8080"',
            'host = "http://127.0.0.1"',
            "host = 1",
            "port = -1",
            "port = 65536",
            "port = 80.5",
            "port = true",
            'public_url = "localhost"',
            'public_url = "ftp://localhost"',
            'public_url = "http://localhost?x=1"',
            'public_url = "http://localhost/#x"',
            'public_url = "http://me@localhost"',
            'public_url = "http://localhost:0"',
            'public_url = "http://localhost:99999"',
            'public_url = "http://localhost:port"',
            'public_url = "http://local host"',
            'public_url = "http://[::1"',
            'public_url = "http://[::1]x"',
            'public_url = "http://bücher.localhost"',
            'public_url = "http://localhost\\\\@example.com"',
            'public_url = ""',
            'probe_public_url = "yes"',
            "probe_public_url = 1",
            'secrets = [""]',
            "api_keys = [7]",
            'api_keys = ["two words"]',
            'trusted_proxies = ["10.0.0.0/33"]',
            'trusted_proxies = ["proxy"]',
            "max_body_bytes = 0",
            'max_body_bytes = "65MiB"',
            'max_body_bytes = "1 megabyte"',
            'provider_specs = ["nowhere"]',
            'provider_specs = "nowhere"',
        )
    ]
    + [
        ("store", line)
        for line in (
            'url = "mysql://host/db"',
            'url = "sqlite://receiver.db"',
            'url = "sqlite:///"',
            'url = "sqlite:///:memory:"',
            'url = "sqlite:///receiver.db?mode=ro"',
            'listen_url = "sqlite:///receiver.db"',
            'listen_url = "postgresql://host/db"',
            "retention = 0",
            'raw_retention = "0.09s"',
            'retention = "99999999d"',
            "retention = nan",
            "retention = inf",
            "retention = 2026-01-01",
        )
    ]
    + [
        ("polling", line)
        for line in (
            'overdue_after = "automatic"',
            "overdue_after = 0.01",
            "interval = true",
            "deadline = 0.5",
            'deadline = {image = "10m", movie = "1h"}',
            "deadline = {image = 0.5}",
            "concurrency = 1.5",
            'interval = "2m"\nmax_interval = "1m"',
        )
    ]
    + [
        ("providers.pixazo", line)
        for line in (
            'spec = "../pixazo"',
            'api_key = ""',
            'api_key = "with\\nnewline"',
            'base_url = "gateway.pixazo.ai"',
            'base_url = "https://user:pass@gateway.pixazo.ai"',
            'confirm = "no"',
            "submit_timeout = 0",
            "submit_attempts = 0",
            'rate_limit = "60"',
            "max_open = -1",
            "max_open = 2.5",
            "max_cost_per_day = -0.5",
            "max_cost_per_day = nan",
            'max_cost_per_day = "12"',
            "rate_limit = 60",
            'callback_secrets = "one"',
            "polling = 5",
        )
    ],
)
def test_a_value_out_of_range_is_one_mistake_at_its_key(table, line):
    key, detail = only_mistake_of(f"[{table}]\n{line}")
    assert key.startswith(f"{table}.")
    assert "must" in detail or "is for PostgreSQL" in detail or "did you mean" in detail or "unknown key" in detail


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("events = []", "events"),
        ('events = "job.*"', "events"),
        ('events = ["job.*", 1]', "events[1]"),
        ('where = "pixazo"', "where"),
        ("where = {provider = []}", "where.provider"),
        ("where = {provider = 1}", "where.provider"),
        ('where = {providers = "pixazo"}', "where.providers"),
        ('where = {status = ["failed", "succeded"]}', "where.status[1]"),
        ('where = {media = "film"}', "where.media"),
        ('where = {"metadata." = "x"}', 'where."metadata."'),
        ('where = {metadata = "x"}', "where.metadata"),
        ("retry = {attempts = 0}", "retry.attempts"),
        ('retry = {first = "2h"}', "retry.max"),
        ("retry = {firts = 1}", "retry.firts"),
        ("timeout = 0", "timeout"),
        ("concurrency = 0", "concurrency"),
        ("options = []", "options"),
        ('option = {path = "x"}', "option"),
    ],
)
def test_a_mistake_in_a_handler_is_named_after_it(line, key):
    assert only_mistake_of(HANDLER + line)[0] == f"handlers.archive.{key}"


def test_unknown_conditions_come_with_those_that_there_are():
    assert only_mistake_of(f'{HANDLER}where = {{team = "red"}}') == (
        "handlers.archive.where.team",
        "unknown key; known: provider, model, media, operation, status, error.code, metadata.KEY",
    )


def test_names_of_handlers_are_unique():
    assert only_mistake_of(HANDLER + HANDLER)[0] == "handlers[1].name"


@pytest.mark.parametrize("name", ["", "Archive", "two words", "-x", "ä", "a.b"])
def test_names_are_small_and_plain(name):
    assert only_mistake_of(f'[[handlers]]\nname = "{name}"\nuse = "log"')[0] == "handlers[0].name"
    key, detail = only_mistake_of(f'[providers."{name}"]')
    assert key.startswith("providers.")
    assert "small letters" in detail


@pytest.mark.parametrize(
    "text", ["server = 1", "[[server]]", "providers = 1", "[providers]\npixazo = 1", "handlers = {}", "handlers = [1]"]
)
def test_a_table_of_the_wrong_kind_is_one_mistake(text):
    assert "must be a" in only_mistake_of(text)[1]


def test_one_table_for_handlers_says_how_to_write_it():
    assert only_mistake_of('[handlers.archive]\nuse = "storage"') == ("handlers", "must be a list of tables: write [[handlers]] above each")


def test_postgresql_wants_a_secret():
    key, detail = only_mistake_of('[store]\nurl = "postgresql://host/db"')
    assert key == "server.secrets"
    assert 'secrets = ["${RECEIVER_SECRET}"]' in detail


@pytest.mark.parametrize("url", ["postgresql:///db?host=/tmp", "postgres://u:p%40ss@a:5432,b:5433/db", "postgresql://[::1]:5432/db"])
def test_addresses_that_postgresql_takes_are_taken(url):
    assert load(f'[server]\nsecrets = ["s"]\n[store]\nurl = "{url}"', {}).store.url == url


@pytest.mark.parametrize("url", ["postgresql://u:pa/ss@host/db", "postgresql://host:port/db", "postgresql://u:p ss@host/db"])
def test_addresses_that_nobody_could_read_are_not(url):
    key, detail = only_mistake_of(f'[server]\nsecrets = ["s"]\n[store]\nurl = "{url}"')
    assert key == "store.url"
    assert "%2F" in detail
    assert "ss@" not in detail


@given(st.text(max_size=60))
def test_no_text_brings_another_error(text):
    with suppress(ConfigError):
        load(text, {})


VALUES = st.recursive(
    st.booleans()
    | st.integers()
    | st.floats()
    | st.text("${}:file/x@[]%\n\0é.0", max_size=12).map(lambda text: msgspec.json.encode(text).decode()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["image", "provider", "attempts"]), inner, max_size=2),
    max_leaves=4,
)
KEYS = [
    *(f"server.{key}" for key in ServerConfig.__struct_fields__),
    *(f"store.{key}" for key in StoreConfig.__struct_fields__),
    *(f"polling.{key}" for key in PollingConfig.__struct_fields__),
    *(f"providers.x.{key}" for key in ("spec", "api_key", "base_url", "rate_limit", "callback_secrets", "polling")),
    *("server", "store", "providers", "handlers", "network", "network.allow_private"),
]


def write_toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(write_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {write_toml(inner)}' for key, inner in value.items())}}}"
    return str(value)


@given(st.sampled_from(KEYS), VALUES)
def test_no_value_brings_another_error(key, value):
    with suppress(ConfigError):
        load(f"{key} = {write_toml(value)}", {})


# Secrets


@pytest.fixture
def secretive():
    """A configuration with secrets in every place that may hold one, and these secrets."""
    environ = {name: f"very-secret-{name}" for name in ("SIGN", "API", "PROVIDER", "CALLBACK", "HOOK", "PART", "PW")}
    text = """
        [server]
        secrets = ["${SIGN}", "short"]
        api_keys = ["${API}", "literal-api-key"]
        [store]
        url = "postgresql://user:${PW}%21@host/db"
        [providers.oxen]
        api_key = "${PROVIDER}"
        callback_secrets = ["${CALLBACK}"]
        [[handlers]]
        name = "tell"
        use = "slack"
        [handlers.options]
        webhook_url = "https://hooks.example.com/literal"
        deep = [{x = "${HOOK}"}]
        url = "https://x/${PART}/y"
        path = "outputs-are-here"
        """
    literal = {"literal-api-key", "https://hooks.example.com/literal", "very-secret-PW%21", "very-secret-PW!"}
    return load(text, environ), literal | set(environ.values()) - {"very-secret-PW"}


def test_all_secrets_are_known_for_masking(secretive):
    config, secrets = secretive
    assert set(config.all_secrets()) == secrets
    assert list(config.all_secrets()) == sorted(config.all_secrets(), key=len, reverse=True)


def test_no_secret_is_in_a_repr(secretive):
    config, secrets = secretive
    parts = [config, config.server, config.store, *config.providers.values(), *config.handlers]
    console = Console(file=StringIO(), width=10_000)
    console.print(*parts)
    shown = "".join(map(repr, parts)) + console.file.getvalue()
    assert not [secret for secret in [*secrets, "short", "very-secret"] if secret in shown]
    assert "postgresql://***@host/db" in shown


def test_a_public_value_from_a_variable_is_no_secret():
    config = load('[store]\nurl = "sqlite:///${DIR}/receiver.db"', {"DIR": "/var/lib/receiver"})
    assert config.all_secrets() == ()


def test_no_value_of_a_secret_is_in_a_mistake():
    text = """
        [server]
        api_keys = ["${KEY} with spaces", "literal key"]
        port = "${KEY}"
        [store]
        url = "postgresql://u:literal key@host/db"
        [providers.oxen]
        api_key = "literal key\\n"
        callback_secrets = "literal key"
        base_url = "https://u:literal-key@host"
        """
    with pytest.raises(ConfigError) as caught:
        load(text, KEY)
    assert len(caught.value.mistakes) == 7
    assert "sk-" not in str(caught.value)
    assert "literal" not in str(caught.value)


# Who may reach it without keys


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "api.localhost", "::ffff:127.0.0.1"])
def test_without_keys_a_loopback_host_is_fine(host):
    assert load(f'[server]\nhost = "{host}"', {}).server.host == host.strip("[]")


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.2", "example.com", "localhost.example.com", "127.0.0.1.nip.io", "::ffff:10.0.0.1", "127.1"]
)
def test_without_keys_any_other_host_is_refused_with_the_line_to_add(host):
    key, detail = only_mistake_of(f'[server]\nhost = "{host}"')
    assert key == "server.host"
    assert 'api_keys = ["${RECEIVER_API_KEY}"]' in detail


def test_without_keys_a_public_url_is_refused_with_the_line_to_add():
    key, detail = only_mistake_of('[server]\npublic_url = "https://hooks.example.com"')
    assert key == "server.public_url"
    assert 'api_keys = ["${RECEIVER_API_KEY}"]' in detail


@pytest.mark.parametrize("url", ["http://localhost:8080", "http://127.0.0.1:8080/x", "https://[::1]"])
def test_without_keys_a_public_url_on_loopback_is_fine(url):
    assert load(f'[server]\npublic_url = "{url}"', {}).server.public_url == url


def test_with_keys_any_host_and_url_is_fine():
    config = load('[server]\nhost = "0.0.0.0"\npublic_url = "https://hooks.example.com"\napi_keys = ["k"]', {})
    assert check_exposure(config) == []


def test_an_unset_key_is_the_only_mistake_of_an_open_server():
    assert only_mistake_of('[server]\nhost = "0.0.0.0"\napi_keys = ["${NOPE}"]')[0] == "server.api_keys[0]"


def test_an_override_is_checked_like_the_file():
    config = msgspec.structs.replace(Config(), server=ServerConfig(host="0.0.0.0"))
    assert [mistake.key for mistake in check_exposure(config)] == ["server.host"]


@given(st.ip_addresses().filter(lambda address: not address.is_loopback and not getattr(address, "ipv4_mapped", None)))
def test_no_address_but_loopback_needs_no_key(address: ipaddress.IPv4Address | ipaddress.IPv6Address):
    assert check_exposure(Config(server=ServerConfig(host=str(address))))


# Where it stands


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Three files whose ports tell them apart; the current folder is `here`."""
    for port, name in ((1, "named"), (2, "variable"), (3, "here")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "receiver.toml").write_text(f"[server]\nport = {port}")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_the_named_file_goes_before_the_variable_and_that_before_the_folder(folders):
    named, environ = str(folders / "named" / "receiver.toml"), {"RECEIVER_CONFIG": "../variable/receiver.toml"}
    assert find_and_load(named, environ).server.port == 1
    assert find_and_load(None, environ).server.port == 2
    assert find_and_load(None, {}).server.port == 3


def test_without_a_file_the_defaults_count(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_and_load(None, {}) == load("", {}, folder=tmp_path)


def test_paths_are_relative_to_the_file(folders):
    config = find_and_load(None, {"RECEIVER_CONFIG": "../variable/receiver.toml"})
    assert config.file == "../variable/receiver.toml"
    assert config.store.url == f"sqlite:///{folders}/variable/receiver.db"


@pytest.mark.parametrize(("path", "environ"), [("nope.toml", {}), (None, {"RECEIVER_CONFIG": "nope.toml"})], ids=["named", "variable"])
def test_a_named_file_has_to_be_there(folders, path, environ):
    with pytest.raises(ConfigError, match=r"^nope\.toml: there is no such file"):
        find_and_load(path, environ)


@pytest.mark.parametrize(("path", "detail"), [(".", "Is a directory"), ("a\0b", "cannot be read")], ids=["folder", "nul"])
def test_a_file_that_cannot_be_read_says_why(folders, path, detail):
    with pytest.raises(ConfigError, match=detail):
        find_and_load(path, {})


def test_a_file_in_another_encoding_is_a_mistake_and_a_byte_order_mark_is_none(folders):
    path = folders / "here" / "receiver.toml"
    path.write_bytes(b"\xef\xbb\xbf[server]\nport = 4")
    assert find_and_load(None, {}).server.port == 4
    path.write_bytes(b'host = "\xff"')
    with pytest.raises(ConfigError, match="must be UTF-8"):
        find_and_load(None, {})
