"""A typed client of the HTTP API, for users and for the command line.

    async with Client("http://127.0.0.1:8080", api_key="…") as client:
        submitted = await client.submit("pixazo", "hunyuan-image", {"prompt": "a boat"})
        job = await client.wait(submitted["jobs"][0]["id"])

Answers are the API's JSON documents as they are, with types.
"""

from receiver.client.blocking import SyncClient
from receiver.client.calls import FINAL, Client, Pause
from receiver.client.documents import (
    Cost,
    CostSum,
    Delivery,
    DeliveryPage,
    Event,
    EventData,
    Job,
    JobError,
    JobPage,
    Output,
    Stored,
    Submitted,
    Timeline,
)
from receiver.client.problems import ApiError, NotReachable

__all__ = [
    "FINAL",
    "ApiError",
    "Client",
    "Cost",
    "CostSum",
    "Delivery",
    "DeliveryPage",
    "Event",
    "EventData",
    "Job",
    "JobError",
    "JobPage",
    "NotReachable",
    "Output",
    "Pause",
    "Stored",
    "Submitted",
    "SyncClient",
    "Timeline",
]
