"""Three nodes on one PostgreSQL: killed at random together with their database, and left in peace."""

import random

import pytest

from receiver.simulator import Fault, Scenario
from tests.crash.cluster import open_cluster
from tests.crash.house import until
from tests.crash.ledger import balance
from tests.crash.operator import Operator
from tests.crash.test_outages import call_back, is_kept, is_ready, is_unready
from tests.postgres import get_server
from tests.soak_cluster import calm, storm

pytestmark = pytest.mark.long


async def test_nodes_and_their_database_die_at_random_and_nothing_is_lost_or_doubled(tmp_path, capsys):
    books = await storm(nodes=3, jobs=100, kills=4, stalls=0, restarts=1, seed=3, folder=tmp_path, postgres=get_server(), fork=True)
    with capsys.disabled():
        print("\n" + books.table())
    assert books.faults == []
    assert books.counts["submissions"] == 100
    assert books.counts["kill -9"] == 4


async def test_a_node_that_stood_still_for_longer_than_its_lease_harms_nothing(tmp_path, capsys):
    books = await storm(nodes=3, jobs=50, kills=0, stalls=1, restarts=0, seed=4, folder=tmp_path, postgres=get_server(), fork=True)
    with capsys.disabled():
        print("\n" + books.table())
    assert books.faults == []
    assert books.counts["nodes that stood still"] == 1


async def test_while_nobody_dies_no_poll_no_delivery_and_no_download_happens_twice(tmp_path, capsys):
    books = await calm(nodes=3, jobs=120, seed=3, folder=tmp_path, postgres=get_server(), fork=True)
    with capsys.disabled():
        print("\n" + books.table())
    assert books.faults == []
    assert books.counts["jobs succeeded"] == books.counts["final events"] == 120
    assert books.counts["polls"] >= 40


async def test_while_the_database_is_away_nothing_is_acknowledged_and_it_recovers_by_itself(sim, tmp_path):
    sim.simulator.plan("elkapi", Scenario(seconds=0.1, faults=frozenset({Fault.LOST})))
    server = get_server()
    if server.wheel is None:
        pytest.skip("the server that RECEIVER_TEST_POSTGRES_URL names is not ours to stop")
    polling = 'overdue_after = "60s"'
    async with open_cluster(sim, tmp_path, server, 2, random.Random(1), fork=True, polling=polling) as cluster, cluster.running():
        house = cluster.front
        orders = await house.submit_all([("elkapi", "a boat", {})])
        await until(lambda: [job.state for job in sim.simulator.ledger.jobs] == ["succeeded"])
        async with cluster.without_postgres():
            for _ in range(6):
                refused = await call_back(house, sim)
                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) > 0
            assert (await house.api.get("/healthz")).status_code == 200
            assert "store" in (await until(lambda: is_unready(house)))["failing"]
        await until(lambda: is_kept(house, sim))
        await until(Operator(house).sees_all_home)
        await until(lambda: is_ready(house))
        books = await balance(house, orders)
        assert [job["finished_by"] for job in await house.jobs()] == ["callback"]
        kept = [entry for job in await house.jobs() for entry in await house.timeline(job["id"]) if entry["kind"] == "notice"]
        assert len([entry for entry in kept if entry["channel"] == "callback"]) == 1
    assert books.faults == [], books.table()
