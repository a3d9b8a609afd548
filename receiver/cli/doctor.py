"""`receiver doctor`: finds what is wrong and says how to mend it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import click
import msgspec
from rich.text import Text

from receiver.cli.codes import MISUSED
from receiver.cli.findings import Finding
from receiver.cli.output import console, plain, print_json, print_lines, status
from receiver.cli.session import Session, pass_session, run_async, shows_json
from receiver.errors import ConfigError

if TYPE_CHECKING:
    from receiver.app import Plan
    from receiver.config import Config


@click.command()
@click.option("--offline", is_flag=True, help="Ask nobody: neither providers nor the public URL nor handlers' targets.")
@shows_json
@pass_session
def doctor(session: Session, offline: bool, as_json: bool) -> None:
    """Check configuration, database, disk, clock, keys, public URL and handlers. Exit code 2 when something fails."""
    findings = run_async(examine(session, offline=offline, is_silent=as_json))
    if as_json:
        print_json({"checks": msgspec.to_builtins(findings)})
    if any(finding.state == "fail" for finding in findings):
        raise click.exceptions.Exit(MISUSED)


async def examine(session: Session, *, offline: bool, is_silent: bool) -> list[Finding]:
    """All findings; each is shown as soon as it is there."""
    findings = []
    async for finding in find_all(session, offline=offline):
        findings.append(finding)
        if not is_silent:
            show(finding)
    return findings


def show(finding: Finding) -> None:
    line = Text.assemble(status(f"{finding.state:<4}").copy(), " ", (finding.check + ": ", "bold"), plain(finding.detail))
    line.stylize({"ok": "green", "warn": "yellow", "fail": "bold red"}[finding.state], 0, 4)
    print_lines(line)
    if finding.mend:
        print_lines(Text.assemble("     → ", plain(finding.mend)))
    console().file.flush()


async def find_all(session: Session, *, offline: bool) -> AsyncIterator[Finding]:
    from receiver.cli import checks_local, checks_remote

    try:
        config = session.config
    except ConfigError as error:
        for finding in mistakes_of(error):
            yield finding
        return
    session.set_up_logs()
    yield Finding("ok", "configuration", where(config))
    plan: Plan | None = None
    try:
        plan = session.check(config)
    except ConfigError as error:
        for finding in mistakes_of(error):
            yield finding
    for finding in checks_local.check_files(config):
        yield finding
    async for finding in checks_local.check_traces():
        yield finding
    async for finding in checks_local.check_store(config, plan):
        yield finding
    if plan is not None:
        for finding in checks_local.check_plan(plan):
            yield finding
        if not offline:
            async for finding in checks_remote.check_network(plan):
                yield finding


def where(config: Config) -> str:
    file = config.folder / config.file
    return f"{config.file} is read" if file.is_file() else f"there is no {config.file}; the built-in defaults count"


def mistakes_of(error: ConfigError) -> list[Finding]:
    return [Finding("fail", mistake.key or "configuration", f"{mistake.detail} ({mistake.file})") for mistake in error.mistakes]
