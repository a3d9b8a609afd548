"""What a settlement becomes when events were emitted and files stored since it was computed; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from receiver.model import Event, Job, Output
from receiver.stores.terms import Settlement


class Standing(NamedTuple):
    """What a job's row has that no version guards: emitted events and stored files are written between settlements."""

    sequence: int
    outputs: tuple[Output, ...]


def choose_current(calls: Sequence[Sequence[Settlement]], versions: dict[str, int]) -> tuple[list[list[bool]], list[Settlement]]:
    """Which settlements were computed from the version that stands, by call and as one list. `versions` moves on."""
    answers, won = [], []
    for settlements in calls:
        answer = []
        for settlement in settlements:
            submission_id = settlement.submission.id
            is_current = versions.get(submission_id) == settlement.version
            if is_current:
                versions[submission_id] += 1
                won.append(settlement)
            answer.append(is_current)
        answers.append(answer)
    return answers, won


def merge(settlements: Sequence[Settlement], standing: Mapping[str, Standing]) -> list[Settlement]:
    merged = []
    for settlement in settlements:
        current = settlement
        for job in settlement.jobs:
            current = _merge_job(current, job, standing.get(job.id))
        merged.append(current)
    return merged


def _merge_job(settlement: Settlement, job: Job, now: Standing | None) -> Settlement:
    """The settlement over what was emitted and stored since it was computed: later sequence numbers, files kept."""
    if now is None:
        return settlement
    stored = {output.index: output.stored for output in now.outputs if output.stored is not None}
    outputs = job.outputs
    if any(output.stored is None and output.index in stored for output in outputs):
        outputs = tuple(replace(output, stored=output.stored or stored.get(output.index)) for output in outputs)
    shift = now.sequence - (job.sequence - sum(event.subject == job.id for event in settlement.events))
    if shift <= 0 and outputs is job.outputs:
        return settlement
    shift = max(shift, 0)
    changed = replace(job, outputs=outputs, sequence=job.sequence + shift)
    return replace(
        settlement,
        jobs=tuple(changed if one.id == job.id else one for one in settlement.jobs),
        events=tuple(_shift(event, shift) if event.subject == job.id else event for event in settlement.events),
        deliveries=tuple(replace(one, sequence=one.sequence + shift) if one.job_id == job.id else one for one in settlement.deliveries),
    )


def _shift(event: Event, shift: int) -> Event:
    return replace(event, sequence=str(int(event.sequence) + shift).zfill(len(event.sequence)))
