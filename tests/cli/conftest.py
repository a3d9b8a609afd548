"""The command line in a folder of its own, with an empty environment."""

import logging
import os

import pytest
import structlog
from click.testing import CliRunner

from receiver.cli.root import root


@pytest.fixture
def receiver(tmp_path, monkeypatch):
    """`receiver("jobs", "--json")` in the test's own folder, in this process; the result has exit_code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("RECEIVER_") or name.endswith("_API_KEY"):
            monkeypatch.delenv(name)

    def run(*words, stdin=None, **environ):
        return CliRunner().invoke(root, list(map(str, words)), input=stdin, env=environ, catch_exceptions=False)

    return run


@pytest.fixture(autouse=True)
def logs_as_before():
    """What a command says about logging counts for that command."""
    handlers, level = logging.getLogger().handlers, logging.getLogger().level
    yield
    logging.getLogger().handlers, logging.getLogger().level = handlers, level
    structlog.reset_defaults()
