"""API keys that were made here: their hashes, who they are for, and which are revoked."""

# ruff: noqa: S608  # only names of columns are put into statements; values are bound
from __future__ import annotations

from datetime import datetime

from receiver.keys import ApiKey
from receiver.stores.postgres_access import Access, Tx, each
from receiver.stores.postgres_rows import Table
from receiver.stores.rows import KEYS

KEY_TABLE = Table("api_keys", KEYS)


@each("upkeep")
async def _create(tx: Tx, key: ApiKey) -> bool:
    return await tx.execute(KEY_TABLE.insert("ON CONFLICT DO NOTHING"), KEY_TABLE.pack([key], tx.shift)) == 1


@each("upkeep")
async def _revoke(tx: Tx, asked: tuple[str, datetime]) -> bool:
    key_id, at = asked
    return await tx.execute("UPDATE api_keys SET revoked_at = $1 WHERE id = $2 AND revoked_at IS NULL", tx.to_db(at), key_id) == 1


class KeysPart(Access):
    async def create_key(self, key: ApiKey) -> bool:
        return await self.write(_create, key)

    async def read_keys(self) -> list[ApiKey]:
        async def look(tx: Tx) -> list[ApiKey]:
            rows = await tx.look(f"SELECT {KEY_TABLE.columns} FROM api_keys ORDER BY created_at, id")
            return [KEY_TABLE.decode(row, tx.shift) for row in rows]

        return await self.read(look)

    async def revoke_key(self, key_id: str, at: datetime) -> bool:
        return await self.write(_revoke, (key_id, at))
