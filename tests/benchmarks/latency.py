"""From the first byte of a callback to the call of the handler, at several rates that are offered."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.flow import installation, percentile
from tests.benchmarks.lines import Line, Settings
from tests.benchmarks.servers import database, press

RATES = (100, 1_000, 3_000)
SECONDS = 10.0
WARM = 2.0  # seconds that do not count
GOALS = {1_000: "p99 < 50 ms"}


def measure(settings: Settings) -> Iterator[Line]:
    for store in settings.stores:
        for rate in RATES:
            yield measure_one(store, rate, max(SECONDS * settings.scale, 1.0))


def measure_one(store: str, rate: int, seconds: float) -> Line:
    jobs = int(rate * (seconds + WARM)) + 1
    with database(store) as url, installation(url, jobs) as (addresses, marks):
        load = press(addresses, seconds + WARM, jobs, connections=256, rate=rate, status="completed", once=True)
        accepted = load["statuses"].get("200", 0)
        has_drained = marks.wait_for(accepted, 60)
        called = marks.read()
    sent = dict(load["sent"])
    begin = min(sent.values()) + int(WARM * 1e9)
    laps = [(called[number] - at) / 1e6 for number, at in sent.items() if at >= begin and number in called]
    return Line(
        name=f"callback → handler at {rate:,}/s",
        store=store,
        ours=percentile(laps, 0.99),
        unit="ms p99",
        goal=GOALS.get(rate, ""),
        note=f"p50 {percentile(laps, 0.5):.1f} ms; {accepted / load['seconds']:,.0f}/s accepted, {len(called)} of {accepted} handled"
        + ("" if has_drained else ", not drained in 60 s"),
        details={"p50_ms": percentile(laps, 0.5), "p99_ms": percentile(laps, 0.99), "statuses": load["statuses"], "late": load["late"]},
    )
