"""The command itself: what it finds, what it says when something is wrong."""

import json
import subprocess
import sys

import pytest

from receiver.cli.root import COMMANDS, guarded, root
from receiver.client import ApiError, NotReachable
from receiver.errors import ConfigError, Mistake, StoreUnavailable
from tests.loopback import free_port

PROMISED = (
    "demo serve poll submit jobs show watch cancel replay dead providers handlers keys costs doctor simulate try-spec init migrate prune"
)
LISTINGS = ["jobs", "show", "dead", "providers", "handlers", "keys", "costs", "doctor", "submit", "cancel", "replay"]


def test_the_help_names_every_command_that_is_promised(receiver):
    result = receiver("--help")
    assert result.exit_code == 0
    assert list(COMMANDS) == PROMISED.split()
    assert all(f"\n  {name} " in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", PROMISED.split())
def test_every_command_has_help_and_takes_a_configuration(receiver, name):
    result = receiver(name, "--help")
    assert result.exit_code == 0
    assert "--config FILE" in result.stdout


@pytest.mark.parametrize("name", LISTINGS)
def test_what_shows_something_shows_it_as_json_too(name):
    assert any("--json" in option.opts for option in root.get_command(None, name).params)


def test_the_help_comes_without_importing_what_commands_need():
    script = (
        "import sys\nfrom receiver.cli.root import root\nroot.main(['--help'], standalone_mode=False)\n"
        "print([name for name in ('httpx', 'starlette', 'uvicorn', 'rich', 'msgspec') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=20)
    assert done.stderr.strip() == "[]"


def test_a_misspelt_command_is_answered_with_the_right_one(receiver):
    result = receiver("provider")
    assert (result.exit_code, "Did you mean 'providers'?" in result.stderr) == (2, True)


def test_an_unknown_option_is_a_usage_error(receiver):
    assert receiver("jobs", "--colour").exit_code == 2


@pytest.mark.parametrize("words", [("--config", "other.toml", "keys"), ("keys", "--config", "other.toml")])
def test_the_configuration_may_be_named_before_or_after_the_command(receiver, tmp_path, words):
    (tmp_path / "other.toml").write_text('[server]\napi_keys = ["0123456789abcdef"]\n')
    result = receiver(*words, "--json")
    assert len(json.loads(result.stdout)["keys"]) == 1


def test_every_mistake_of_a_configuration_is_a_line_and_the_code_is_2(receiver, tmp_path):
    (tmp_path / "receiver.toml").write_text('[server]\nprot = 1\n[store]\nretention = "long"\n')
    result = receiver("jobs")
    assert result.exit_code == 2
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == ["server.prot", "store.retention"]


def test_a_configuration_that_is_not_there_is_code_2(receiver):
    assert receiver("jobs", "--config", "nowhere.toml").exit_code == 2


def test_a_server_that_is_not_there_is_code_3(receiver):
    result = receiver("jobs", "--server", f"http://127.0.0.1:{free_port()}")
    assert result.exit_code == 3
    assert "there is no server at http://127.0.0.1:" in result.stderr


def test_who_only_asks_the_server_need_not_have_what_the_server_has(receiver, tmp_path):
    text = f'[server]\nport = {free_port()}\nsecrets = ["${{RECEIVER_SECRET}}"]\n[providers.pixazo]\napi_key = "${{PIXAZO_API_KEY}}"\n'
    (tmp_path / "receiver.toml").write_text(text)
    result = receiver("jobs")
    assert (result.exit_code, "there is no server at" in result.stderr) == (3, True)
    (tmp_path / "receiver.toml").write_text(text.replace("[providers", 'api_keys = ["${RECEIVER_API_KEY}"]\n[providers'))
    result = receiver("jobs")
    assert (result.exit_code, "RECEIVER_API_KEY is not set" in result.stderr) == (2, True)
    assert receiver("jobs", RECEIVER_API_KEY="k" * 20).exit_code == 3


def test_an_address_that_is_none_is_code_2_without_a_traceback(receiver):
    result = receiver("jobs", RECEIVER_URL="nonsense")
    assert (result.exit_code, "nonsense" in result.stderr) == (2, True)


def test_the_server_is_looked_for_where_the_configuration_says(receiver, tmp_path):
    port = free_port()
    (tmp_path / "receiver.toml").write_text(f'[server]\nhost = "127.0.0.1"\nport = {port}\n')
    assert f"http://127.0.0.1:{port}" in receiver("jobs").stderr


def test_the_version_is_said(receiver):
    from receiver import __version__

    assert receiver("--version").stdout.strip() == f"receiver {__version__}"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StoreUnavailable(), 3),
        (NotReachable("nobody there"), 3),
        (ApiError(503, {"detail": "busy"}), 3),
        (ApiError(404, {"detail": "none"}), 2),
        (ConfigError([Mistake("receiver.toml", "server.port", "must be a number")]), 2),
        (KeyboardInterrupt(), 130),
        (KeyError("a bug"), 70),
    ],
)
def test_what_goes_wrong_has_its_exit_code_and_only_a_bug_a_traceback(capsys, error, code):
    def fail():
        raise error

    assert guarded(fail) == code
    assert ("Traceback" in capsys.readouterr().err) == (code == 70)


def test_mistakes_in_keys_specs_and_handlers_are_told_at_once(receiver, tmp_path):
    (tmp_path / "receiver.toml").write_text(
        '[server]\nhots = "x"\n[providers.pixzo]\napi_key = "${NOT_SET_HERE}"\n'
        '[[handlers]]\nname = "a"\nuse = "storag"\n[[handlers]]\nuse = "log"\n'
    )
    result = receiver("serve")
    assert result.exit_code == 2
    told = [line.split(": ")[1] for line in result.stderr.splitlines() if line]
    assert told == ["server.hots", "providers.pixzo.api_key", "handlers[1].name", "handlers.a.use"]
