"""Holds config/receiver.toml and the built-in defaults together."""

import re
from pathlib import Path

import msgspec
import pytest

from receiver.config import (
    HandlerConfig,
    NetworkConfig,
    PollingConfig,
    ProviderConfig,
    ServerConfig,
    StoreConfig,
    load,
)
from receiver.providers import account
from receiver.providers.loader import load_specs

FILE = Path(__file__).parents[1] / "config" / "receiver.toml"
TABLES = {
    "server": ServerConfig,
    "store": StoreConfig,
    "polling": PollingConfig,
    "providers.pixazo": ProviderConfig,
    "handlers": HandlerConfig,
    "network": NetworkConfig,
}


def settings():
    """Each setting of the file as (table, key, is_example); a remark counts for the settings right below it."""
    table, remark, was_setting = "", "", False
    for line in FILE.read_text().splitlines():
        if line.startswith("# ") or line in ("#", ""):
            remark = line if was_setting or not line else f"{remark} {line}"
            was_setting = False
        elif header := re.fullmatch(r"#?\[+([a-z._]+)\]+", line):
            table, was_setting = header[1], False
            yield table, "", "Example." in remark
        else:
            was_setting = True
            yield table, re.match(r"#([a-z_]+) = ", line)[1], "Example." in remark


def shown_defaults():
    """Those of [polling] and of a spec have tests of their own."""
    for table, key, is_example in settings():
        if key and not is_example and table != "polling" and key not in ("spec", "base_url"):
            yield table, key


def documented(table):
    inner = {name.removeprefix(f"{table}.") for name, key, _ in settings() if name.startswith(f"{table}.") and not key}
    return {key for name, key, _ in settings() if name == table and key} | inner


@pytest.fixture
def everything(tmp_path):
    """The configuration with every setting in use."""
    (tmp_path / "providers").mkdir()
    text = re.sub(r"^#(?=[a-z\[])", "", FILE.read_text(), flags=re.MULTILINE)
    environ = {name: f"value-of-{name}" for name in re.findall(r'^[^#\n]*"\$\{([A-Z_]+)\}', text, flags=re.MULTILINE)}
    return load(text, environ, folder=tmp_path)


def test_the_file_as_it_is_says_no_more_than_the_defaults(tmp_path):
    assert load(FILE.read_text(), {}, folder=tmp_path) == load("", {}, folder=tmp_path)


@pytest.mark.parametrize("table", TABLES)
def test_the_file_documents_every_key(table):
    assert documented(table) == set(TABLES[table].__struct_fields__)


def test_every_documented_setting_loads_when_its_sign_is_taken_away(everything):
    assert set(everything.providers) == {"huzz", "elkapi", "oxen", "pixazo", "hoox"}
    assert [handler.options for handler in everything.handlers] == [{"path": "outputs"}]


@pytest.mark.parametrize(("table", "key"), list(shown_defaults()))
def test_what_is_shown_as_a_default_is_the_default(everything, tmp_path, table, key):
    defaults = load('[providers.pixazo]\n[[handlers]]\nname = "archive"\nuse = "storage"', {}, folder=tmp_path)

    def value(config):
        holder = {"providers.pixazo": config.providers["pixazo"], "handlers": config.handlers[0]}.get(table)
        return getattr(holder or getattr(config, table), key)

    assert value(everything) == value(defaults)


def test_the_defaults_of_polling_are_those_that_an_account_falls_back_to(everything):
    shown = msgspec.structs.asdict(everything.polling)
    assert shown == {
        "overdue_after": "auto",
        "interval": account.INTERVAL,
        "max_interval": account.MAX_INTERVAL,
        "deadline": {"": account.DEADLINE},
        "concurrency": account.CONCURRENCY,
    }


def test_what_is_shown_as_the_spec_s_own_is_in_the_spec(everything):
    assert everything.providers["pixazo"].spec == "pixazo"
    assert everything.providers["pixazo"].base_url == load_specs([])["pixazo"].base_url


def test_no_line_is_longer_than_the_house_allows():
    assert max(map(len, FILE.read_text().splitlines())) <= 140
