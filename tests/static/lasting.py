"""Answers that a browser keeps."""

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send


def lasting(send: Send) -> Send:
    """The same, with answers that need not be asked for again today."""

    async def altered(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(raw=message["headers"])["cache-control"] = "max-age=86400"
        await send(message)

    return altered
