"""The secret that is made where none is configured: once, whoever starts first."""

from __future__ import annotations

import os
import threading

import pytest

from receiver.app import keep_secret
from receiver.config import load
from receiver.errors import ConfigError


@pytest.fixture
def config(tmp_path):
    return load(f'[store]\nurl = "sqlite:///{tmp_path}/receiver.db"\n', {}, folder=tmp_path)


def test_all_who_start_at_once_have_the_same_secret(config, tmp_path, monkeypatch):
    """Each one finds no file, and all of them write before the first file has its name."""
    together = threading.Barrier(8)
    link = os.link

    def wait_and_link(*arguments):
        together.wait(10)
        link(*arguments)

    monkeypatch.setattr(os, "link", wait_and_link)
    found = []
    threads = [threading.Thread(target=lambda: found.append(keep_secret(config))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 8
    assert len(set(found)) == 1
    assert len(found[0]) >= 32
    assert keep_secret(config) == found[0]
    (kept,) = tmp_path.iterdir()
    assert kept.name == "receiver.secret"
    assert kept.stat().st_mode & 0o777 == 0o600


def test_where_none_can_be_kept_that_is_said(tmp_path):
    config = load(f'[store]\nurl = "sqlite:///{tmp_path}/nowhere/receiver.db"\n', {}, folder=tmp_path)
    with pytest.raises(ConfigError, match="none can be kept"):
        keep_secret(config)
