"""The person who looks after an installation: waits until all is home, and says what nobody else can know."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import httpx

from tests.crash.house import House

OPEN = {"submitting", "queued", "processing"}


class Operator:
    """Looks up at the provider, by the prompt, what became of an unconfirmed job, and resolves it. `said` counts that."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.said: Counter[str] = Counter()
        self.waits_for = "the server"

    async def sees_all_home(self) -> bool:
        """Nothing is open or to be delivered; what is unconfirmed when all else is done was resolved."""
        try:
            counts = {status: count for status, count in (await self.house.open_jobs()).items() if status in OPEN}
            if counts:
                self.waits_for = f"jobs that are {counts}"
                return False
            return await self._resolve_all(await self.house.jobs())
        except httpx.TransportError:  # it was just killed
            return False

    async def _resolve_all(self, jobs: list[dict[str, Any]]) -> bool:
        expected = [job for job in jobs if job["status"] in OPEN or self._is_asked_again(job)]
        if expected:
            self.waits_for = f"{len(expected)} jobs, such as {expected[0]}"
            return False
        lost = [job for job in jobs if job["status"] == "unconfirmed"]
        taken = self._taken() if lost else {}
        families: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for job in jobs:
            families[job["submission_id"]].append(job)
        for job in lost:
            await self._resolve(job, families[job["submission_id"]], taken[self.house.prompts[job["submission_id"]]])
        deliveries = await self.house.open_deliveries()
        self.waits_for = f"{len(lost)} unconfirmed jobs, {deliveries} deliveries"
        return not lost and not deliveries

    def tell(self) -> str:
        return f"waited for {self.waits_for}"

    def _taken(self) -> defaultdict[str, list[str]]:
        """The provider's ids, by prompt."""
        taken: defaultdict[str, list[str]] = defaultdict(list)
        for entry in self.house.sim.simulator.ledger.submits:
            taken[entry.prompt] += entry.job_ids
        return taken

    async def _resolve(self, job: dict[str, Any], family: list[dict[str, Any]], taken: list[str]) -> None:
        free = [one for one in taken if one not in {other["remote_id"] for other in family}]
        body = {"remote_id": free[0]} if free else {"abandon": True}
        answer = await self.house.api.post(f"/v1/jobs/{job['id']}/resolve", json=body)
        if answer.status_code == 200:  # else it came home by itself meanwhile
            family[family.index(job)].update(answer.json())
            self.said["unconfirmed, found by the operator" if free else "unconfirmed, never taken"] += 1

    def _is_asked_again(self, job: dict[str, Any]) -> bool:
        """It expired, and the provider will tell yet."""
        has_end = " stuck" not in self.house.prompts.get(job["submission_id"], "")
        return bool(job["status"] == "expired" and job["remote_id"] and has_end)
