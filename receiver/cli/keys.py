"""`receiver keys`: makes, lists and revokes API keys without keeping or showing one."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from receiver.cli.output import print_json, print_table
from receiver.cli.session import KEY_VARIABLE, Session, pass_session, run_async, shows_json
from receiver.cli.store import read_version
from receiver.ids import make_id
from receiver.keys import ApiKey, Scope, digest
from receiver.stores import open_store
from receiver.stores.base import Store
from receiver.times import to_rfc3339

PREFIX = "rcv_"
MAX_NAME = 100
T = TypeVar("T")


@click.command()
@click.argument("action", type=click.Choice(["list", "new", "revoke"]), default="list", metavar="[new | revoke KEY]")
@click.argument("wanted", required=False, metavar="")
@click.option("--name", help="With new: who it is for. Such a key counts at once, and is kept as a hash in the database.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="With --name: what it may do; several times for several.",
)
@shows_json
@pass_session
def keys(session: Session, action: str, wanted: str | None, name: str | None, scopes: Sequence[str], as_json: bool) -> None:
    """List the API keys, never showing one; `receiver keys new` makes one and shows it this once.

    A key in api_keys of the configuration may do everything. One made with --name and --scope may submit, read or operate
    (cancel, poll, resolve, settle, replay, delete), and ends by `receiver keys revoke` with its name or id.
    """
    if (wanted is None) == (action == "revoke"):
        raise click.UsageError("revoke takes the name or id of a key." if wanted is None else f"{action} takes no {wanted!r}.")
    if bool(name) != bool(scopes) or (name and action != "new"):
        raise click.UsageError("--name and --scope belong together, and to new.")
    if wanted is not None:
        revoke(session, wanted, as_json)
    elif name:
        make_stored(session, name, sorted(set(map(Scope, scopes)), key=list(Scope).index), as_json)
    elif action == "new":
        show_new(as_json)
    else:
        show_all(session, as_json)


def show_new(as_json: bool) -> None:
    key = make_key()
    if as_json:
        print_json({"key": key, "fingerprint": fingerprint(key)})
        return
    click.echo(key)
    click.echo(
        f"""
It is kept nowhere. Put it into the environment of the server and of whoever calls it:

  export {KEY_VARIABLE}={key}

and this line into receiver.toml, below [server]:

  api_keys = ["${{{KEY_VARIABLE}}}"]

Fingerprint: {fingerprint(key)}""",
        err=True,
    )


def make_stored(session: Session, name: str, scopes: Sequence[Scope], as_json: bool) -> None:
    if len(name) > MAX_NAME or not name.isprintable() or name != name.strip():
        raise click.BadParameter(f"is not a name of up to {MAX_NAME} printable characters", param_hint="--name")
    now, key = datetime.now(UTC), make_key()
    made = ApiKey(id=make_id("key", now), name=name, scopes=tuple(scopes), digest=digest(key), created_at=now)
    if not ask_store(session, lambda store: store.create_key(made)):
        raise click.BadParameter(f"there is a key {name!r} already; revoke it first", param_hint="--name")
    if as_json:
        print_json({"key": key, **show_stored(made)})
        return
    click.echo(key)
    click.echo(f"\n{made.id} for {name}: {', '.join(scopes)}. Only its hash is kept: this is the one time that it is shown.", err=True)
    if not session.config.server.api_keys:
        click.echo("It counts once [server] has api_keys: without them everybody on this machine may do everything.", err=True)


def revoke(session: Session, wanted: str, as_json: bool) -> None:
    async def find_and_revoke(store: Store) -> ApiKey | None:
        found = [key for key in await store.read_keys() if key.revoked_at is None and wanted in {key.id, key.name}]
        return found[0] if found and await store.revoke_key(found[0].id, datetime.now(UTC)) else None

    revoked = ask_store(session, find_and_revoke)
    if revoked is None:
        raise click.BadParameter(f"there is no key {wanted!r} that counts; `receiver keys` lists them", param_hint="KEY")
    print_json({"revoked": revoked.id}) if as_json else click.echo(f"Revoked {revoked.id} for {revoked.name}.")


def show_all(session: Session, as_json: bool) -> None:
    configured = [fingerprint(key) for key in session.config.server.api_keys]
    # A database that is not there yet holds no keys, and looking makes none.
    stored = [] if read_version(session.config.store.url) == 0 else ask_store(session, lambda store: store.read_keys())
    if as_json:
        print_json({"keys": [{"fingerprint": each, "scopes": list(Scope)} for each in configured] + [show_stored(key) for key in stored]})
        return
    rows = [("api_keys", each, "every scope", "", "") for each in configured]
    rows += [
        (key.name, key.id, ", ".join(key.scopes), to_rfc3339(key.created_at) or "", to_rfc3339(key.revoked_at) or "") for key in stored
    ]
    print_table(
        ("NAME", "FINGERPRINT OR ID", "SCOPES", "CREATED", "REVOKED"), rows, empty="There are no API keys; `receiver keys new` makes one."
    )


def show_stored(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": list(key.scopes),
        "created_at": to_rfc3339(key.created_at),
        "revoked_at": to_rfc3339(key.revoked_at),
    }


def ask_store(session: Session, question: Callable[[Store], Awaitable[T]]) -> T:
    """The answer of the database itself: keys are managed by whoever may read the configuration, not over HTTP."""
    config = session.config.store

    async def ask() -> T:
        async with open_store(config.url, listen_url=config.listen_url) as store:
            return await question(store)

    return run_async(ask())


def make_key() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def fingerprint(key: str) -> str:
    """Enough to tell keys apart, and nothing to guess one by."""
    return hashlib.sha256(b"receiver.fingerprint:" + key.encode()).hexdigest()[:12]
