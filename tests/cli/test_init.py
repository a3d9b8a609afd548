"""`receiver init`: what it asks, what it writes, and that this runs."""

import re
import tomllib

import pytest

from receiver.app import check
from receiver.cli.init import SIMULATOR
from receiver.cli.simulate import simulate
from receiver.config import load
from receiver.providers.loader import load_specs
from receiver.simulator import Simulator
from tests.cli.terminal import BOUND, Terminal


def test_init_writes_a_configuration_that_loads(receiver, tmp_path):
    result = receiver("init")
    assert result.exit_code == 0
    assert load((tmp_path / "receiver.toml").read_text(), {}).providers == {}


def test_init_does_not_overwrite_a_file_unless_forced(receiver, tmp_path):
    file = tmp_path / "receiver.toml"
    file.write_text("# mine")
    assert receiver("init").exit_code == 2
    assert file.read_text() == "# mine"
    assert receiver("init", "--force").exit_code == 0
    assert file.read_text() != "# mine"


@pytest.mark.parametrize("words", [("init", "etc.toml"), ("--config", "etc.toml", "init")])
def test_init_writes_the_file_that_is_named(receiver, tmp_path, words):
    assert receiver(*words).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["etc.toml"]


def test_init_switches_on_what_was_asked_for(receiver, tmp_path):
    result = receiver("init", "mine.toml", "--provider", "pixazo", "--provider", "huzz", "--public-url", "https://hooks.example.com")
    environ = {"RECEIVER_API_KEY": "k" * 20, "PIXAZO_API_KEY": "p", "HUZZ_API_KEY": "h"}
    config = load((tmp_path / "mine.toml").read_text(), environ)
    assert (config.server.public_url, config.server.api_keys) == ("https://hooks.example.com", ("k" * 20,))
    assert {name: provider.api_key for name, provider in config.providers.items()} == {"pixazo": "p", "huzz": "h"}
    assert all(name in result.stdout for name in environ)


def test_init_asks_for_the_secret_of_a_provider_that_signs(receiver, tmp_path):
    result = receiver("init", "--provider", "replicate", "--provider", "fal")
    text = (tmp_path / "receiver.toml").read_text()
    environ = {"REPLICATE_API_KEY": "r", "FAL_API_KEY": "f", "REPLICATE_CALLBACK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
    assert set(check(load(text, environ)).accounts) == {"replicate", "fal"}
    assert all(name in result.stdout for name in environ)


def test_init_says_which_webhook_is_set_at_the_provider(receiver):
    result = receiver("init", "--provider", "openai", "--provider", "replicate", "--public-url", "https://hooks.example.com")
    assert re.findall(r"webhook is (\S+)", result.stdout) == ["https://hooks.example.com/callbacks/openai"]


@pytest.mark.parametrize("name", sorted(load_specs()))
def test_init_knows_every_shipped_provider(receiver, tmp_path, name):
    assert receiver("init", "--provider", name).exit_code == 0
    assert name in tomllib.loads((tmp_path / "receiver.toml").read_text())["providers"]


@pytest.mark.parametrize("words", [("--provider", "nobody"), ("--public-url", "nowhere")])
def test_init_refuses_what_would_not_run(receiver, tmp_path, words):
    assert receiver("init", *words).exit_code == 2
    assert not (tmp_path / "receiver.toml").exists()


def test_init_writes_what_the_simulator_wants(receiver, tmp_path):
    result = receiver("init", "--simulated", "--outputs", "kept")
    plan = check(load((tmp_path / "receiver.toml").read_text(), {}, folder=tmp_path))
    told = Simulator().settings(SIMULATOR)
    assert {name: account.base_url for name, account in plan.accounts.items()} == {name: each["base_url"] for name, each in told.items()}
    assert plan.config.network.allow_private == ("127.0.0.0/8",)
    assert [handler.options for handler in plan.config.handlers] == [{"path": "kept"}]
    assert "receiver simulate" in result.stdout
    assert SIMULATOR.endswith(f":{next(option.default for option in simulate.params if option.name == 'port')}")


def test_init_asks_again_for_what_is_wrong_and_says_what_to_type_next(tmp_path):
    terminal = Terminal(tmp_path, "init")
    try:
        for question, answer in [
            ("Providers to use", "pixazzo, huzz"),
            ("pixazzo: there are", "pixazo, huzz"),
            ("Public URL", "hooks.example.com"),
            ("must be", "https://hooks.example.com"),
            ("Folder to keep it in", ""),
        ]:
            terminal.read_until(lambda text, question=question: question in text and text.rstrip("\r\n").endswith(": "))
            terminal.text = ""
            terminal.type(answer + "\n")
        terminal.read_until(lambda text: "receiver serve" in text)
        assert terminal.process.wait(BOUND) == 0
    finally:
        terminal.close()
    exported = re.findall(r"export (\w+)=", terminal.text)
    assert exported == ["PIXAZO_API_KEY", "HUZZ_API_KEY", "RECEIVER_API_KEY"]
    plan = check(load((tmp_path / "receiver.toml").read_text(), dict.fromkeys(exported, "k" * 20), folder=tmp_path))
    assert list(plan.accounts) == ["pixazo", "huzz"]
    assert plan.config.server.public_url == "https://hooks.example.com"
    assert [(handler.use, handler.options) for handler in plan.config.handlers] == [("storage", {"path": "outputs"})]
