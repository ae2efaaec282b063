"""Every refusal as a problem document (RFC 9457), from the error catalog: same code, message and hint as on the command line."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from hub.client.http import ApiRequestInvalid, NotFound
from model_formats.core.errors import SpokeshaveError

__all__ = ["install_problems", "problem"]

MEDIA_TYPE = "application/problem+json"


def problem(error: SpokeshaveError, *, status: int | None = None) -> JSONResponse:
    """The document of one error. `type` is a reference into the published list of codes."""
    body = {
        "type": f"/errors#{error.code}",
        "title": (type(error).__doc__ or error.code).partition("\n")[0],
        "status": status or error.http,
        "detail": error.message,
        "code": error.code,
        "hint": error.hint,
        "retryable": error.retryable,
        "exit": error.exit,
    }
    headers = {"Retry-After": "5"} if error.http == 503 else {}
    return JSONResponse(body, status_code=status or error.http, headers=headers, media_type=MEDIA_TYPE)


def install_problems(app: FastAPI) -> None:
    """Let every way to fail answer with a problem document."""
    app.add_exception_handler(SpokeshaveError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _plain)
    app.add_exception_handler(Exception, _fault)


def _ours(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SpokeshaveError)  # noqa: S101 (registered for this class)
    answer = problem(error)
    if error.http == 401:
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def _fault(request: Request, _error: Exception) -> JSONResponse:
    """What nobody foresaw: the log has the trace, the caller a code and nothing of what is inside."""
    return problem(SpokeshaveError(f"the hub failed at {request.method} {request.url.path}"))


def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    first = error.errors()[0]
    return problem(ApiRequestInvalid(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"))


def _plain(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101
    if error.status_code == 404:
        return problem(NotFound(f"there is nothing at {request.url.path}"))
    return problem(ApiRequestInvalid(str(error.detail)), status=error.status_code)
