"""A single connection to a PostgreSQL database, and what is told to people when it cannot be had."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from receiver.errors import ConfigError, Mistake
from receiver.stores.postgres_access import STATEMENT_SECONDS, translate

CONNECT_SECONDS = 5.0

# Nothing that waiting would cure: https://www.postgresql.org/docs/current/errcodes-appendix.html
UNUSABLE = ("28", "3D", "3F", "42501", "0A")


@asynccontextmanager
async def connected(url: str, key: str, *, seconds: float = STATEMENT_SECONDS) -> AsyncIterator[Any]:
    """A connection without statements that a pooler would lose; each may take so long. ConfigError where waiting would not help."""
    try:
        connection = await asyncpg.connect(url, timeout=CONNECT_SECONDS, command_timeout=seconds, statement_cache_size=0)
        try:
            yield connection
        finally:
            await connection.close(timeout=CONNECT_SECONDS)
    except asyncpg.PostgresError as error:
        if error.sqlstate is not None and error.sqlstate.startswith(UNUSABLE):
            raise _unusable(url, key, error) from None
        raise translate(error) from error
    except (ValueError, asyncpg.ClientConfigurationError) as error:
        raise _unusable(url, key, error) from None
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        raise translate(error) from error


def _unusable(url: str, key: str, error: Exception) -> ConfigError:
    password = urlsplit(url).password
    detail = f"{name_of(url)} cannot be used: {error}"
    return ConfigError([Mistake("", key, detail.replace(password, "***") if password else detail)])


def name_of(url: str) -> str:
    """The address without who, with what password, and how."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{'***@' if '@' in parts.netloc else ''}{host}{parts.path}"
