"""A client of the page: plain HTTP, and the endpoints by Gradio's documented API (`/gradio_api/call/v2/NAME`)."""

from __future__ import annotations

import json
from typing import Any

import httpx

API = "/gradio_api/"
BUSY = 503


class Refused(Exception):  # noqa: N818 (a right answer to a wrong request)
    """The server refused a request.

    Args:
        status: the HTTP status; 200 if an endpoint began and then told of an error.
        words: what the server said.
    """

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"{status} {words}")
        self.status, self.words = status, words


class WrongAnswerError(Exception):
    """The server gave an answer that is none to the request."""


def body_of(answer: httpx.Response) -> bytes:
    """Returns the body of an answer.

    Raises:
        Refused: it is none of success.
    """
    if answer.status_code != httpx.codes.OK:
        raise Refused(answer.status_code, words_of(answer))
    return answer.content


def words_of(answer: httpx.Response) -> str:
    """Returns what an answer that is no success says."""
    try:
        said = answer.json()
    except ValueError:
        return answer.text
    return str(said.get("detail", said.get("error", said))) if isinstance(said, dict) else str(said)


class Visitor:
    """A client.

    Args:
        http: how it reaches the server.
    """

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def get(self, path: str) -> bytes:
        """Returns what is at a path.

        Raises:
            Refused: it is not served.
        """
        return body_of(await self.http.get(path))

    async def call(self, name: str, **given: Any) -> Any:
        """Returns the answer of an endpoint.

        Raises:
            Refused: the queue is full, or the endpoint told of an error.
            WrongAnswerError: it told nothing.
        """
        joined = json.loads(body_of(await self.http.post(f"{API}call/v2/{name}", json=given)))
        event = ""
        async with self.http.stream("GET", f"{API}call/v2/{name}/{joined['event_id']}") as told:
            async for line in told.aiter_lines():
                key, _, value = line.partition(": ")
                if key == "event":
                    event = value
                elif key == "data" and event == "complete":
                    return json.loads(value)[0]
                elif key == "data" and event == "error":
                    raise Refused(told.status_code, error_in(value))
        raise WrongAnswerError(f"the answer of {name} ended without a result")

    async def upload(self, content: bytes, name: str = "picture.png") -> str:
        """Uploads a file; returns its path on the server.

        Raises:
            Refused: it is not accepted.
        """
        (path,) = json.loads(body_of(await self.http.post(f"{API}upload", files={"files": (name, content)})))
        return str(path)


def error_in(data: str) -> str:
    """Returns what an endpoint told of an error."""
    said = json.loads(data)
    return str(said.get("error", said) if isinstance(said, dict) else said)
