"""Signing in with a token, and signing out."""

from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from worker.console import asked, shown, state
from worker.console.who import COOKIE, SESSION_SECONDS


async def sign_in(request: Request) -> Response:
    """Asks for a token, and begins a session if somebody has it."""
    back = asked.own_path(asked.text(request, "next") or "/")
    if request.method != "POST":
        return shown.page(request, "sign_in.html", wrong=False)
    token = (await asked.form(request)).get("token", "").strip()
    session = state.of(request).entrance.sign_in(token)
    if session is None:
        return shown.page(request, "sign_in.html", 403, wrong=True)
    response = RedirectResponse(back, 303)
    _set(request, response, COOKIE, session, SESSION_SECONDS)
    return response


async def sign_out(request: Request) -> Response:
    """Ends the session in this browser."""
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(COOKIE)
    return response


def set_cookie(
    request: Request, response: Response, name: str, purpose: str, value: Any, *, seconds: int
) -> None:
    """Gives the browser a sealed value."""
    entrance = state.of(request).entrance
    _set(request, response, name, entrance.seal(purpose, value, seconds), seconds)


def _set(request: Request, response: Response, name: str, value: str, seconds: int) -> None:
    response.set_cookie(
        name,
        value,
        max_age=seconds,
        httponly=True,
        samesite="lax",
        secure=state.of(request).entrance.is_encrypted(request),
    )
