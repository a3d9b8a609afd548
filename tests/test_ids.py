"""Ids."""

import uuid
from datetime import UTC, datetime, timedelta

from receiver.ids import derive_id, make_id, uuid7

NOW = datetime(2026, 5, 1, 12, 0, 0, 123_000, tzinfo=UTC)


def test_an_id_is_a_uuid_of_version_7_with_its_time():
    made = uuid7(NOW)
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == int(NOW.timestamp() * 1000)


def test_ids_sort_by_time_and_do_not_repeat():
    early = {make_id("job", NOW) for _ in range(1000)}
    late = {make_id("job", NOW + timedelta(milliseconds=1)) for _ in range(1000)}
    assert len(early) == len(late) == 1000
    assert max(early) < min(late)


def test_the_same_parts_give_the_same_id():
    assert derive_id("evt", "a", "b") == derive_id("evt", "a", "b")
    assert derive_id("evt", "a", "b") != derive_id("evt", "ab", "")
