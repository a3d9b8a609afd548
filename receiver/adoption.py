"""Which rows of a provider's list belong to submissions whose answer was lost. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta

import msgspec

from receiver.model import Family, Submission, Update
from receiver.normalize import matches_submission
from receiver.rules import may_adopt

CLOCK_SKEW = timedelta(minutes=2)  # between the provider's clock and ours


def adopt_from_list(families: Sequence[Family], rows: Sequence[Update], submit_timeout: timedelta) -> dict[str, list[Update]]:
    """By submission id: the rows that its jobs adopt, oldest submission first.

    Submissions that ask for the same look the same in a list. Rows are adopted only while those that match are not more
    than the jobs that wait: else one of them is somebody else's.
    """
    alike: defaultdict[bytes, list[Family]] = defaultdict(list)
    for family in sorted(families, key=lambda family: family.submission.created_at):
        alike[likeness(family.submission)].append(family)
    adopted: dict[str, list[Update]] = {}
    for group in alike.values():
        matching = {row.remote_id: row for row in rows if any(fits(row, family.submission, submit_timeout) for family in group)}
        waiting = [family.submission for family in group for job in family.jobs if job.remote_id is None and may_adopt(job)]
        if len(matching) > len(waiting):
            continue
        free = list(matching.values())
        for submission in waiting:
            row = next((row for row in free if fits(row, submission, submit_timeout)), None)
            if row is not None:
                free.remove(row)
                adopted.setdefault(submission.id, []).append(row)
    return adopted


def fits(row: Update, submission: Submission, submit_timeout: timedelta) -> bool:
    """Whether the row may be what came of the submission: the same model and input, made while our call was under way."""
    sent_at = submission.sent_at or submission.created_at
    return matches_submission(row, submission, (sent_at - CLOCK_SKEW, sent_at + submit_timeout + CLOCK_SKEW))


def likeness(submission: Submission) -> bytes:
    """Equal for submissions that a list row cannot tell apart."""
    return msgspec.json.encode([submission.operation, submission.model, submission.input], order="deterministic")
