"""Where a request stands: what is meant for programs, and the way from there to the overview."""

from __future__ import annotations

from starlette.types import Scope

FOR_PROGRAMS = ("/v1/", "/callbacks/", "/metrics", "/openapi.json", "/healthz", "/readyz")


def is_for_programs(path: str) -> bool:
    return path.startswith(FOR_PROGRAMS)


def root_of(scope: Scope) -> str:
    """The relative way to the overview: right behind every proxy that cuts a prefix off."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    raw = (scope.get("raw_path") or b"/").decode("ascii", "replace")
    if path == "/" and not raw.endswith("/"):
        return f"./{raw.rpartition('/')[2]}/"
    return "../" * (path.count("/") - 1) or "./"
