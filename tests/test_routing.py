"""Which handlers want an event."""

import pytest

from receiver.config import HandlerConfig
from receiver.routing import make_deliveries, wants
from tests.factories import NOW, make_event, make_job, make_output

DEFAULT = HandlerConfig(name="archive", use="log").events


def handler(events=DEFAULT, **where):
    return HandlerConfig(
        name="archive", use="log", events=events, where={key.replace("__", "."): tuple(globs) for key, globs in where.items()}
    )


def event(type="job.succeeded", **job):
    return make_event(make_job(provider="pixazo", model="hunyuan-image", **job), type)


@pytest.mark.parametrize("type", ["job.succeeded", "job.failed", "job.cancelled", "job.expired"])
def test_the_default_events_are_the_final_ones(type):
    assert wants(handler(), event(type))


@pytest.mark.parametrize("type", ["job.submitted", "job.processing", "job.stored", "job.unconfirmed", "receiver.dead_letter", "acme.done"])
def test_the_default_events_are_no_others(type):
    assert not wants(handler(), event(type))


def test_globs_pick_events_by_type():
    assert wants(handler(("job.*",)), event("job.processing"))
    assert not wants(handler(("job.*",)), event("receiver.dead_letter"))


@pytest.mark.parametrize(
    ("where", "is_wanted"),
    [
        ({"provider": ["pixazo"]}, True),
        ({"provider": ["hoox", "pix*"]}, True),
        ({"provider": ["hoox"]}, False),
        ({"metadata__team": ["red"]}, True),
        ({"metadata__team": ["blue"]}, False),
        ({"metadata__user": ["*"]}, False),
        ({"error__code": ["*"]}, False),
        ({"provider": ["pixazo"], "metadata__team": ["blue"]}, False),
    ],
)
def test_every_condition_must_match_and_an_absent_field_matches_none(where, is_wanted):
    assert wants(handler(**where), event(metadata={"team": "red"})) is is_wanted


def test_a_job_whose_links_die_soon_is_urgent():
    job = make_job(outputs=(make_output(index=0), make_output(index=1, expires_at=NOW)))
    (delivery,) = make_deliveries(make_event(job), [handler()], NOW, job)
    assert delivery.urgent_at == NOW
