"""A client of the chat route that needs no package: one connection for each answer, closed to end it."""

import http.client
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from urllib.parse import urlsplit

Message = dict[str, str]

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 600.0  # a server may queue a request for long before it says anything
FAILURES = (OSError, http.client.HTTPException, ValueError)


class ChatFailed(Exception):
    """There is no answer, or not all of it; the message is for whoever asked."""


@dataclass(frozen=True, slots=True)
class Card:
    """The model as the server shows it. sampling: what it recommends."""

    name: str
    sampling: dict[str, object]


@dataclass(slots=True)
class Measured:
    """What is known of one answer. Times are in seconds from the request's start; tokens as the server counts
    them, 0 where it did not say.
    """

    prompt_tokens: int = 0
    tokens: int = 0
    first: float = 0.0
    last: float = 0.0
    finish: str | None = None

    @property
    def pace(self) -> float:
        """Tokens per second after the first; 0 of fewer than two."""
        seconds = self.last - self.first
        return (self.tokens - 1) / seconds if self.tokens > 1 and seconds > 0 else 0.0


class Stream:
    """One answer under way: iterate for its pieces of text, close it at any time."""

    def __init__(self, connection: http.client.HTTPConnection, started: float) -> None:
        self._connection = connection
        self._started = started
        self._response: http.client.HTTPResponse | None = None
        self.measured = Measured()

    def open(self, path: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Sends the question. Raises ChatFailed."""
        try:
            self._connection.connect()
            assert self._connection.sock is not None
            self._connection.sock.settimeout(SILENCE_SECONDS)
            self._connection.request("POST", path, body, dict(headers))
            self._response = self._connection.getresponse()
            if self._response.status != 200:
                raise _refused(self._response)
        except FAILURES as error:
            raise _unreachable(self._connection, error) from error

    def __iter__(self) -> Iterator[str]:
        """Pieces of text as they come. Raises ChatFailed for an answer that does not reach its end."""
        assert self._response is not None
        try:
            while line := self._response.readline():
                if not line.startswith(b"data: "):
                    continue
                data = line[6:].strip()
                if data == b"[DONE]":
                    return
                if piece := self._take(json.loads(data)):
                    yield piece
        except FAILURES as error:
            raise ChatFailed(f"the answer broke off: {error}") from error
        raise ChatFailed("the connection ended before the answer did")

    def _take(self, event: dict[str, object]) -> str:
        measured = self.measured
        if isinstance(error := event.get("error"), dict):
            raise ChatFailed(f"the answer broke off: {error.get('message')}")
        usage, choices = event.get("usage"), event.get("choices")
        if isinstance(usage, dict):
            measured.prompt_tokens = int(usage.get("prompt_tokens", 0))
            measured.tokens = int(usage.get("completion_tokens", 0))
        if not isinstance(choices, list) or not choices:
            return ""
        choice = choices[0]
        measured.finish = choice.get("finish_reason") or measured.finish
        piece = (choice.get("delta") or {}).get("content") or ""
        if piece or measured.finish:
            measured.last = perf_counter() - self._started
            measured.first = measured.first or measured.last
        return str(piece)

    def close(self) -> None:
        """Ends the connection, by which the server knows that nobody listens."""
        if self._response is not None:
            self._response.close()
        self._connection.close()


class Client:
    """One server. key: of its API, "" for none."""

    def __init__(self, url: str, key: str = "") -> None:
        parts = urlsplit(url)
        self.url = url
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname or "", parts.port
        self._root = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def card(self) -> Card:
        """The first model that the server has. Raises ChatFailed."""
        document = self.get("/v1/models")
        try:
            data = document["data"]
            assert isinstance(data, list)
            model = data[0]
            meta = model.get("meta") or {}
            return Card(str(model["id"]), dict(meta.get("sampling_defaults") or {}))
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError):
            raise ChatFailed(f"{self.url} does not say which model it has") from None

    def get(self, path: str) -> dict[str, object]:
        """A JSON object. Raises ChatFailed."""
        connection = self._connection()
        try:
            connection.request("GET", self._root + path, headers=self._headers)
            response = connection.getresponse()
            if response.status != 200:
                raise _refused(response)
            document: object = json.loads(response.read())
        except FAILURES as error:
            raise _unreachable(connection, error) from error
        finally:
            connection.close()
        if not isinstance(document, dict):
            raise ChatFailed(f"{self.url}{path} is not a JSON object")
        return document

    def ask(self, messages: Sequence[Message], fields: Mapping[str, object]) -> Stream:
        """Sends a conversation; returns when the server has begun to answer. Raises ChatFailed."""
        body = {"messages": messages, "stream": True, "stream_options": {"include_usage": True}, **fields}
        stream = Stream(self._connection(), perf_counter())
        try:
            stream.open(self._root + "/v1/chat/completions", json.dumps(body).encode(), self._headers)
        except BaseException:
            stream.close()
            raise
        return stream

    def _connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=CONNECT_SECONDS)


def _refused(response: http.client.HTTPResponse) -> ChatFailed:
    """What an error says, and what can be done about it."""
    body = response.read(1 << 16)
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"the server answered {response.status} {response.reason}"
    hint = ""
    if response.status == 401:
        hint = " Give a key with --api-key-file or in APP_API_KEY."
    elif (wait := response.getheader("retry-after")) is not None:
        hint = f" Try again in {wait} s."
    return ChatFailed(f"{message}{hint}")


def _unreachable(connection: http.client.HTTPConnection, error: Exception) -> ChatFailed:
    where = f"{connection.host}:{connection.port}"
    if isinstance(error, ConnectionRefusedError):
        return ChatFailed(f"there is no server at {where}")
    return ChatFailed(f"no answer from {where}: {error or type(error).__name__}")
