"""The timeline of a job as a picture: lanes on one axis of time, as numbers that a template writes into SVG. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

import msgspec

from receiver.model import Call, Channel, Delivery, DeliveryState, Job, Notice
from receiver.stores.terms import TimelineEntry
from receiver.web.pages_frame import show_span

STEPS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400, 172800, 604800)
TICKS = 4
THIN = 1.0  # percent: what is shorter is drawn so wide
A_MOMENT = timedelta(seconds=1)
LONGEST = 5  # of the axis, in lives of the job
ROOM_FOR_LATER = 84  # percent
MOST_LANES = 12  # of deliveries
MOST_MARKS = 200  # in a lane
CHANNELS = {Channel.SUBMIT: "Answers to the submit", Channel.CALLBACK: "Callbacks", Channel.STREAM: "Stream", Channel.POLL: "Polls"}


class Bar(msgspec.Struct, frozen=True):
    """A stretch of time; `x` and `width` in percent of the axis."""

    x: float
    width: float
    tone: str
    label: str


class Mark(msgspec.Struct, frozen=True):
    """A moment."""

    x: float
    tone: str
    label: str


class Lane(msgspec.Struct, frozen=True):
    name: str
    summary: str  # beside the lane, and what a screen reader says
    bars: tuple[Bar, ...] = ()
    marks: tuple[Mark, ...] = ()


class Picture(msgspec.Struct, frozen=True):
    lanes: tuple[Lane, ...]
    ticks: tuple[tuple[float, str], ...]  # (percent, text)
    is_cut: bool = False  # what came much later stands at the end


class Axis:
    """Where a moment stands between the first and the last."""

    def __init__(self, start: datetime, end: datetime) -> None:
        self.start = start
        self.span = max((end - start).total_seconds(), 0.001) * 1.02

    def x(self, at: datetime) -> float:
        return round(min(max((at - self.start).total_seconds() / self.span * 100, 0), 100), 3)

    def bar(self, start: datetime, end: datetime, tone: str, label: str) -> Bar:
        x = min(self.x(start), 100 - THIN)
        return Bar(x, round(max(self.x(end) - x, THIN), 3), tone, label)

    def ticks(self) -> Iterator[tuple[float, str]]:
        step = next((step for step in STEPS if self.span / step <= TICKS), self.span / TICKS)
        count = int(self.span / step)
        for number in range(count + 1):
            yield round(number * step / self.span * 100, 3), "0" if number == 0 else show_span(timedelta(seconds=number * step))


def draw(job: Job, entries: Sequence[TimelineEntry], now: datetime) -> Picture:
    """Everything that happened, from the request to the last handler."""
    rows = [entry.row for entry in entries]
    deliveries = [row for row in rows if isinstance(row, Delivery)]
    moments = [entry.at for entry in entries] + [ended_at(row, now) for row in deliveries]
    home = job.finished_at or now
    end = max([job.created_at, *moments, home])
    longest = max(home - job.created_at, A_MOMENT) * LONGEST  # a delivery that waits for days must not hide what came before
    is_cut = end - job.created_at > longest
    axis = Axis(job.created_at, job.created_at + longest if is_cut else end)
    lanes = [
        submit_lane(axis, job, [row for row in rows if isinstance(row, Call)], now),
        *provider_lane(axis, job, now),
        *notice_lanes(axis, [row for row in rows if isinstance(row, Notice)]),
        *delivery_lanes(axis, deliveries, now),
    ]
    ticks = [(x, text) for x, text in axis.ticks() if not is_cut or x < ROOM_FOR_LATER]
    return Picture(tuple(lanes), tuple(ticks), is_cut)


def submit_lane(axis: Axis, job: Job, calls: Sequence[Call], now: datetime) -> Lane:
    end = job.submitted_at or job.finished_at or now
    took = show_span(end - job.created_at)
    marks = tuple(
        Mark(axis.x(call.at), "bad" if call.error else "plain", f"Call: {call.http_status or 'no answer'}") for call in calls[:MOST_MARKS]
    )
    return Lane("Submit", took, (axis.bar(job.created_at, end, "wait", f"From the request to the provider's answer: {took}"),), marks)


def provider_lane(axis: Axis, job: Job, now: datetime) -> Iterator[Lane]:
    if job.submitted_at is None:
        return
    end = job.finished_at or now
    took = show_span(end - job.submitted_at)
    tone = {"succeeded": "good", "failed": "bad", "expired": "bad", "cancelled": "wait"}.get(job.status, "run")
    yield Lane("Provider", took, (axis.bar(job.submitted_at, end, tone, f"{job.status}: {took}"),))


def notice_lanes(axis: Axis, notices: Sequence[Notice]) -> Iterator[Lane]:
    for channel, name in CHANNELS.items():
        found = [notice for notice in notices if notice.channel is channel]
        if found:
            count = sum(1 + notice.repeats for notice in found)
            yield Lane(name, f"{count}×", (), tuple(note_marks(axis, found[:MOST_MARKS])))


def note_marks(axis: Axis, notices: Iterable[Notice]) -> Iterator[Mark]:
    for notice in notices:
        tone = {"applied": "good", "unreadable": "bad", "mismatched": "bad", "refuted": "bad"}.get(notice.outcome or "", "plain")
        label = f"{notice.status or notice.http_status or 'notice'}, {notice.outcome or 'not settled yet'}"
        yield Mark(axis.x(notice.at), tone, label)
        if notice.repeats and notice.last_at:
            yield Mark(axis.x(notice.last_at), "plain", f"{label}, {notice.repeats} more until here")


def delivery_lanes(axis: Axis, deliveries: Sequence[Delivery], now: datetime) -> Iterator[Lane]:
    """One lane per handler; each delivery is a bar from its making to its last attempt."""
    handlers = list(dict.fromkeys(delivery.handler for delivery in deliveries))
    for handler in handlers[:MOST_LANES]:
        own = [delivery for delivery in deliveries if delivery.handler == handler]
        bars = tuple(
            axis.bar(each.created_at, ended_at(each, now), TONES[each.state], f"{each.event_type}: {each.state}")
            for each in own[:MOST_MARKS]
        )
        worst = max(own, key=lambda each: list(TONES).index(each.state))
        took = show_span(ended_at(worst, now) - worst.created_at)
        yield Lane(f"→ {handler}", took if worst.state is DeliveryState.DONE else worst.state.value, bars)


def ended_at(delivery: Delivery, now: datetime) -> datetime:
    return delivery.updated_at if delivery.state in {DeliveryState.DONE, DeliveryState.DEAD} else now


TONES = {
    DeliveryState.DONE: "good",
    DeliveryState.PENDING: "wait",
    DeliveryState.RUNNING: "run",
    DeliveryState.RETRYING: "warn",
    DeliveryState.DEAD: "bad",
}
