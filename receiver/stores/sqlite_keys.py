"""API keys that were made here: their hashes, who they are for, and which are revoked."""

# ruff: noqa: S608  # only names of columns are put into statements; values are bound
from __future__ import annotations

from datetime import datetime

from receiver.keys import ApiKey
from receiver.stores.rows import KEYS
from receiver.stores.sqlite_access import Access, Tx, one_by_one
from receiver.times import to_micros


@one_by_one
def _create(tx: Tx, key: ApiKey) -> bool:
    statement = f"INSERT INTO api_keys ({KEYS.columns}) VALUES ({KEYS.marks}) ON CONFLICT DO NOTHING"
    return tx.db.execute(statement, KEYS.encode(key)).rowcount == 1


@one_by_one
def _revoke(tx: Tx, asked: tuple[str, datetime]) -> bool:
    key_id, at = asked
    revoked = tx.db.execute("UPDATE api_keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (to_micros(at), key_id))
    return revoked.rowcount == 1


class KeysPart(Access):
    async def create_key(self, key: ApiKey) -> bool:
        return await self.write(_create, key)

    async def read_keys(self) -> list[ApiKey]:
        rows = await self.read(lambda db: db.execute(f"SELECT {KEYS.columns} FROM api_keys ORDER BY created_at, id").fetchall())
        return [KEYS.decode(row) for row in rows]

    async def revoke_key(self, key_id: str, at: datetime) -> bool:
        return await self.write(_revoke, (key_id, at))
