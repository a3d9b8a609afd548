"""`receiver try-spec`: what a provider spec makes of a body."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import click

from receiver.cli.output import print_json

BODY = click.File("rb")


@click.command("try-spec")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--callback", type=BODY, metavar="BODY.json", help="The body of a callback; - reads it from stdin.")
@click.option("--poll", type=BODY, metavar="BODY.json", help="The body of a poll answer.")
@click.option("--submit", type=BODY, metavar="BODY.json", help="The body of a submit answer.")
@click.option("--operation", metavar="NAME", help="The operation; default: the spec's first.")
@click.option("--http-status", type=click.IntRange(100, 599), default=200, show_default=True, help="The HTTP code of the answer.")
def try_spec(
    file: Path,
    callback: BinaryIO | None,
    poll: BinaryIO | None,
    submit: BinaryIO | None,
    operation: str | None,
    http_status: int,
) -> None:
    """Print the Update that comes of a body by the spec in FILE. Without a body the spec is only checked."""
    from receiver.explain import explain
    from receiver.providers.loader import parse_spec

    bodies = {name: given.read() for name, given in (("callback", callback), ("poll", poll), ("submit", submit)) if given is not None}
    if len(bodies) > 1:
        raise click.UsageError("Give one body: --callback, --poll or --submit.")
    spec = parse_spec(read(file), str(file))
    if operation is not None and operation not in spec.operations:
        raise click.UsageError(f"{file} has no operation {operation!r}; it has {', '.join(spec.operations)}.")
    if not bodies:
        click.echo(f"{file} is a complete spec; operations: {', '.join(spec.operations)}.")
        return
    [(channel, body)] = bodies.items()
    found = explain(spec, operation=operation, http_status=http_status, now=datetime.now(UTC), **{channel: body})
    print_json(found)


def read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{file} cannot be read: {error}") from None
