"""Is our own callback route reachable under the public URL?"""

from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from receiver.config import ServerConfig
from receiver.herald import Herald
from receiver.net import ProviderClient
from receiver.probe import PROBE_EVERY, Probe, probe_proof
from receiver.simulator.serving import serve_app
from receiver.stores import open_store
from receiver.tokens import Tokens
from tests.factories import NOW


@asynccontextmanager
async def probing(tmp_path, answer):
    """A probe, and what it met at its public URL: `answer` makes the value of the header, None for another site."""
    asked = []

    async def callback(request):
        asked.append(request.url.path)
        proof = answer(request.path_params["token"])
        return JSONResponse({}, headers={} if proof is None else {"Receiver-Probe": proof})

    app = Starlette(routes=[Route("/hooks/callbacks/receiver-probe/{token}", callback, methods=["POST"])])
    client = ProviderClient()
    async with open_store(f"sqlite:///{tmp_path / 'receiver.db'}") as store, serve_app(app) as url:
        try:
            yield Probe(ServerConfig(public_url=f"{url}/hooks"), OURS, client, store, {}, Herald(store, ())), asked
        finally:
            await client.close()


OURS = Tokens(["our-own-secret"])


async def test_we_recognize_ourselves_and_ask_again_after_minutes(tmp_path):
    async with probing(tmp_path, lambda token: probe_proof(OURS, token)) as (probe, asked):
        for seconds in (0, 15, PROBE_EVERY.total_seconds()):
            await probe.run_pass(NOW + timedelta(seconds=seconds))
        assert (probe.is_reachable, len(asked)) == (True, 2)


@pytest.mark.parametrize("answer", [lambda token: None, lambda token: token, lambda token: "forged"], ids=["nothing", "echo", "forged"])
async def test_somebody_else_at_our_address_is_not_us_and_is_asked_again_soon(tmp_path, answer):
    async with probing(tmp_path, answer) as (probe, asked):
        for seconds in (0, 15):
            await probe.run_pass(NOW + timedelta(seconds=seconds))
        assert (probe.is_reachable, len(asked)) == (False, 2)
