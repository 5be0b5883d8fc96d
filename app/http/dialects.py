"""Errors in the shape that a path's clients expect: OpenAI's, nanochat's or Anthropic's."""

from collections.abc import Mapping

import msgspec
from starlette.responses import Response
from starlette.types import Scope

from app.http.errors import ApiError, error_response

DETAIL_PATHS = ("/chat/completions",)  # where nanochat's clients look for `detail`
ANTHROPIC = "/v1/messages"

_ANTHROPIC_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_answer(error: ApiError, scope: Scope) -> Response:
    """The answer to a request that failed before its answer began."""
    if is_anthropic(scope):
        body = msgspec.json.encode(anthropic_error(error, scope.get("request_id", "")))
        return error_response(error, body)
    return error_response(error, detail=route_path(scope) in DETAIL_PATHS)


def is_anthropic(scope: Scope) -> bool:
    """Whether whoever asks expects Anthropic's shape."""
    path = route_path(scope)
    return path == ANTHROPIC or path.startswith(ANTHROPIC + "/")


def anthropic_error(error: ApiError, request_id: str) -> dict[str, object]:
    """What is no fault of the client's, and has no type of its own, is an `api_error`."""
    other = "invalid_request_error" if error.status < 499 else "api_error"
    type = _ANTHROPIC_TYPES.get(error.status, other)
    return {"type": "error", "error": {"type": type, "message": error.message}, "request_id": request_id}


def route_path(scope: Scope) -> str:
    """The path that the router will see: the scope's, without the root path in front."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    if root and (path == root or path.startswith(root + "/")):
        return path[len(root) :]
    return path
