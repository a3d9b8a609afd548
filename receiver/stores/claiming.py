"""Which of the notices that wait are claimed together. Pure, for both stores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile


def choose_notices(found: Sequence[tuple[int, int]], max_tries: int) -> tuple[list[int], list[int]]:
    """(worn out, to be claimed) of (arrival, tries), oldest first. One that was claimed before may be what killed its settler: it is
    claimed alone, so that it takes nobody along."""
    worn_out = [arrival for arrival, tries in found if tries >= max_tries]
    left = [(arrival, tries) for arrival, tries in found if tries < max_tries]
    if left and left[0][1]:
        return worn_out, [left[0][0]]
    return worn_out, [arrival for arrival, _ in takewhile(lambda notice: not notice[1], left)]
