"""`/v1/providers` and `/v1/handlers`: what is configured, and how it does. Never a secret."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from receiver.learning import learned_overdue
from receiver.providers.account import Account
from receiver.providers.spec import Spec
from receiver.services import HandlerHealth, Services
from receiver.stores.terms import Breaker, Learned
from receiver.times import to_rfc3339
from receiver.web.operations import Answer, Operation, answer_json, services_of
from receiver.web.query import Query
from receiver.web.views import Handlers, Providers

Counts = Mapping[tuple[str, str], int]


async def list_providers(request: Request, query: Query) -> Response:
    return answer_json({"providers": await provider_rows(services_of(request))})


async def list_handlers(request: Request, query: Query) -> Response:
    return answer_json({"handlers": await handler_rows(services_of(request))})


async def provider_rows(services: Services) -> list[dict[str, Any]]:
    counters, breakers = await services.counters.read(), await services.store.read_breakers()
    learned, jobs = await services.store.read_learned(), await services.tally.open_jobs()
    names = sorted({*services.specs, *services.accounts, *(provider for provider, _ in jobs)})
    rows = []
    for name in names:
        account = services.accounts.get(name)
        spec = account.spec if account else services.specs.get(name)
        rows.append(
            {
                "name": name,
                "configured": account is not None,
                "spec": spec.name if spec else None,
                "base_url": account.base_url if account else spec.base_url if spec else None,
                "operations": show_operations(spec) if spec else [],
                **show_abilities(spec),
                "calls_back": account is not None and account.has_callback and services.config.server.public_url is not None,
                "health": show_breaker(breakers.get(name), services.clock.now()),
                "learned": [show_learned(account, row) for row in learned if account and row.provider == name],
                "open_jobs": counts_of(jobs, name),
                "counters": counts_of(counters, f"provider:{name}"),
            }
        )
    return rows


async def handler_rows(services: Services) -> list[dict[str, Any]]:
    counters, deliveries = await services.counters.read(), await services.tally.deliveries()
    names = [*services.handlers, *sorted({handler for handler, _ in deliveries} - set(services.handlers))]
    return [
        {
            **show_handler(services, name),
            "deliveries": counts_of(deliveries, name),
            "counters": counts_of(counters, f"handler:{name}"),
        }
        for name in names
    ]


def show_operations(spec: Spec) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "models": list(operation.models),
            "media": sorted({*operation.media, *(model.media for model in operation.models.values() if model.media)}),
            "has_cancel": spec.cancel_call(name) is not None,
        }
        for name, operation in spec.table.operations.items()
    ]


def show_abilities(spec: Spec | None) -> dict[str, bool]:
    table = spec.table if spec else None
    return {
        "has_callback": table is not None and table.callback is not None,
        "has_stream": table is not None and table.stream is not None,
        "has_list": table is not None and table.list is not None,
    }


def show_breaker(breaker: Breaker | None, now: datetime) -> dict[str, Any]:
    """`open`: left alone for a while; `failing`: the last calls failed; else `ok`."""
    if breaker is None:
        return {"state": "ok", "failures": 0, "open_until": None, "last_error": None, "last_error_at": None}
    is_open = breaker.open_until is not None and breaker.open_until > now
    return {
        "state": "open" if is_open else "failing" if breaker.failures else "ok",
        "failures": breaker.failures,
        "open_until": to_rfc3339(breaker.open_until) if is_open else None,
        "last_error": breaker.last_error,
        "last_error_at": to_rfc3339(breaker.last_error_at),
    }


def show_learned(account: Account, learned: Learned) -> dict[str, Any]:
    """What jobs of this model taught: how many, and the silence after which a callback of theirs is overdue."""
    operations = account.spec.table.operations
    name, media = next(
        ((name, each.models[learned.model].media) for name, each in operations.items() if learned.model in each.models),
        (next(iter(operations)), None),
    )
    taught = learned_overdue(learned) or account.overdue_prior(media, name)
    silence = account.overdue_for(media, name) or min(taught, account.deadline_for(media, name) / 4)
    return {"model": learned.model or None, "count": len(learned.seconds), "overdue_after_seconds": round(silence.total_seconds(), 3)}


def show_handler(services: Services, name: str) -> dict[str, Any]:
    config, health = services.handlers.get(name), services.handler_health.get(name, HandlerHealth())
    return {
        "name": name,
        "configured": config is not None,
        "use": config.use if config else None,
        "events": list(config.events) if config else [],
        "where": {key: list(wanted) for key, wanted in config.where.items()} if config else {},
        "health": {
            "state": handler_state(health),
            "running": health.running,
            "last_error": health.last_error,
            "last_error_at": to_rfc3339(health.last_error_at),
            "last_done_at": to_rfc3339(health.last_done_at),
        },
    }


def handler_state(health: HandlerHealth) -> str:
    """`failing` while nothing went well since the last error."""
    if health.last_error_at is None or (health.last_done_at is not None and health.last_done_at > health.last_error_at):
        return "ok"
    return "failing"


def counts_of(counts: Counts, scope: str) -> dict[str, int]:
    return {name: count for (each, name), count in sorted(counts.items()) if each == scope}


OPERATIONS = (
    Operation(
        "GET",
        "/v1/providers",
        list_providers,
        "Configuration",
        "Every known provider: what it can do, how it does.",
        (Answer(200, "All of them.", Providers),),
    ),
    Operation(
        "GET",
        "/v1/handlers",
        list_handlers,
        "Configuration",
        "Every handler: what it wants, how it does.",
        (Answer(200, "All of them.", Handlers),),
    ),
)
