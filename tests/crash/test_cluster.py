"""Three nodes on one PostgreSQL: killed at random together with their database, and left in peace."""

import pytest

from tests.postgres import get_server
from tests.soak_cluster import calm, storm

pytestmark = pytest.mark.long


async def test_nodes_and_their_database_die_at_random_and_nothing_is_lost_or_doubled(tmp_path, capsys):
    books = await storm(nodes=3, jobs=200, kills=8, restarts=1, seed=3, folder=tmp_path, postgres=get_server(), fork=True)
    with capsys.disabled():
        print("\n" + books.table())
    assert books.faults == []
    assert books.counts["submissions"] == 200
    assert books.counts["kill -9"] == 8


async def test_while_nobody_dies_no_poll_no_delivery_and_no_download_happens_twice(tmp_path, capsys):
    books = await calm(nodes=3, jobs=120, seed=3, folder=tmp_path, postgres=get_server(), fork=True)
    with capsys.disabled():
        print("\n" + books.table())
    assert books.faults == []
    assert books.counts["jobs succeeded"] == books.counts["final events"] == 120
    assert books.counts["polls"] >= 40
