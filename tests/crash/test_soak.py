"""The soak, short: five providers, every fault, kill -9 at random."""

import pytest

from tests.soak import soak

pytestmark = pytest.mark.long


async def test_random_kills_among_all_faults_lose_and_double_nothing(tmp_path, capsys):
    books = await soak(jobs=60, kills=4, seed=7, folder=tmp_path, fork=True, longest=60)
    with capsys.disabled():
        print("\n" + books.table())
    assert books.faults == []
    assert books.counts["submissions"] == 60
    assert books.counts["generations billed"] > 40
