"""The way between the rooms: a room imports only what stands below it, and a library has one home."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VALUES = {"model", "times", "errors", "ids", "clock", "backoff", "units", "ending", "keys", "receiver"}
SPECS = VALUES | {"config", "config_handlers", "config_tables", "providers"}
READS = SPECS | {"normalize"}
DECIDES = READS | {"rules", "verdicts", "routing", "pacing", "learning", "adoption", "masking", "tokens"}
PASSES = DECIDES | {
    "decisions",
    "settling",
    "limiter",
    "crew",
    "runs",
    "counters",
    "handling",
    "net",
    "guarded",
    "outputs",
    "services",
    "herald",
    "stores.base",
    "stores.terms",
    "tracing",
}

# What each room may import of ours. app.py, and the command line above it, know them all.
MAY = {
    "times": set(),
    "model": {"times"},
    "keys": set(),
    "errors": set(),
    "clock": set(),
    "ending": set(),
    "units": VALUES,
    "ids": {"times"},
    "backoff": {"model"},
    "tokens": {"errors"},
    "masking": set(),
    "rules": {"model", "times", "ids"},
    "verdicts": {"model", "rules"},
    "normalize": SPECS,
    "providers": SPECS,
    "stores": VALUES | {"stores"},
    "loop": {"clock", "backoff"},
    "pulse": set(),
    "counters": set(),
    "tracing": {"model"},
    "telemetry": {"errors", "otlp", "tracing"},
    "otlp": {"model", "times", "tracing", "receiver"},
    "handling": SPECS | {"net", "options", "tracing"},
    "lanes": set(),
    "net": VALUES | {"lanes", "unpacking"},
    "guarded": VALUES | {"addresses", "guard", "net", "unpacking"},
    "jwks": PASSES,
    "inbox": PASSES | {"unpacking", "jwks", "inflow", "rush"},
    "rush": {"clock", "ending"},
    "inflow": {"stores.base", "stores.terms"},
    "submitter": PASSES,
    "settler": PASSES | {"rush"},
    "poller": PASSES | {"asking"},
    "asking": PASSES,
    "streams": PASSES,
    "dispatcher": PASSES,
    "sweeper": PASSES,
    "web": PASSES | {"web", "addresses", "commands", "inbox", "pulse", "loop", "probing"},
    "simulator": VALUES | {"simulator", "net"},
}
HOMES = {
    "starlette": {"web", "app", "embedding", "simulator"},
    "aiosqlite": {"stores"},
    "asyncpg": {"stores"},
    "sqlite3": {"stores", "cli"},
    "httpx": {"net", "guarded", "client"},
    "httpx_sse": {"net", "client"},
    "itsdangerous": {"tokens"},
    "cryptography": {"providers", "jwks", "simulator"},
    "click": {"cli", "__main__"},
    "rich": {"cli"},
    "opentelemetry": {"otlp"},
    "markdown_it": {"web"},
}


def modules() -> dict[str, Path]:
    package = ROOT / "receiver"
    return {".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__"): path for path in package.rglob("*.py")}


@cache
def imports(path: Path) -> set[str]:
    """The names of all modules that run-time code of a module imports."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def room(name: str) -> str:
    return name.split(".")[0]


MODULES = modules()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_room_imports_only_what_stands_below_it(name):
    allowed = MAY.get(room(name))
    if allowed is None:
        return
    ours = {found.removeprefix("receiver.") for found in imports(MODULES[name]) if found == "receiver" or found.startswith("receiver.")}
    assert {found for found in ours if found not in allowed and room(found) not in allowed} == set()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_library_has_one_home(name):
    used = {library: homes for library, homes in HOMES.items() if library in {found.split(".")[0] for found in imports(MODULES[name])}}
    assert [library for library, homes in used.items() if room(name) not in homes] == []


@pytest.mark.parametrize("path", sorted((ROOT / "handlers").glob("*.py")), ids=lambda path: path.stem)
def test_a_built_in_handler_imports_handling_and_nothing_else_of_ours(path):
    assert {found for found in imports(path) if found.split(".")[0] == "receiver"} <= {"receiver.handling"}


@pytest.mark.parametrize(
    "name", ["rules", "verdicts", "normalize", "routing", "pacing", "learning", "adoption", "backoff", "ids", "model", "errors"]
)
def test_pure_rooms_do_no_input_or_output(name):
    tree = ast.parse(MODULES[name].read_text())
    assert not any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree))
    assert not imports(MODULES[name]) & {"asyncio", "socket", "subprocess", "time", "pathlib"}
