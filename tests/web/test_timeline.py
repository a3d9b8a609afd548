"""The picture of a job's timeline: what a person sees of it at a glance."""

from __future__ import annotations

from datetime import timedelta

from receiver.model import DeliveryState, FinishedBy, Status
from receiver.stores.terms import TimelineEntry
from receiver.web.pages_timeline import draw
from tests.factories import NOW, make_delivery, make_event, make_job, seconds


def draw_with(waiting: timedelta):
    """A job that took ten seconds, and a delivery that has waited since."""
    job = make_job(
        status=Status.SUCCEEDED, created_at=NOW, submitted_at=NOW, finished_at=NOW + seconds(10), finished_by=FinishedBy.CALLBACK
    )
    event = make_event(job, at=NOW + seconds(10))
    delivery = make_delivery(event, state=DeliveryState.PENDING)
    entries = [TimelineEntry(NOW + seconds(10), event), TimelineEntry(NOW + seconds(10), delivery)]
    return draw(job, entries, NOW + seconds(10) + waiting)


def test_a_delivery_that_waits_for_days_does_not_hide_the_job():
    picture = draw_with(timedelta(days=5))
    provider, waiting = picture.lanes[1].bars[0], picture.lanes[-1].bars[0]
    assert provider.width > 15
    assert round(waiting.x + waiting.width) == 100
    assert picture.is_cut
    assert all(x < 90 for x, _ in picture.ticks)


def test_what_fits_is_shown_whole():
    picture = draw_with(seconds(20))
    assert not picture.is_cut
    assert round(picture.lanes[-1].bars[0].x) == 33
    assert [text for _, text in picture.ticks] == ["0", "10 s", "20 s", "30 s"]
