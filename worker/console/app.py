"""The application: every page and every act with the role that it needs, and what all answers have
in common.

A page is a GET that changes nothing. An act is a GET that asks, and a POST that does it.
"""

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import structlog
from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.console import (
    asked,
    batches,
    content,
    dead,
    learners,
    overview,
    records,
    replays,
    shown,
    sign_in,
    state,
    viewers,
    workers,
)
from worker.console.acts import Act
from worker.console.who import Role
from worker.errors import (
    AddressError,
    BrokerAway,
    DatabaseAway,
    IngestError,
    NoBatch,
    NoHistory,
    SchemaError,
    TopologyError,
    TransientFault,
)
from worker.store.audit import By

_log = structlog.get_logger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


class Page(NamedTuple):
    """A page, and the role from which on somebody may see it."""

    path: str
    handler: Handler
    role: Role = Role.WATCH


PAGES: Final = (
    Page("/", overview.overview),
    Page("/find", overview.find),
    Page("/batches", batches.listed),
    Page("/batches/{uuid}", batches.life),
    Page("/dead", dead.groups),
    Page("/dead/letters", dead.letters),
    Page("/dead/letters/{id:int}", dead.letter),
    Page("/dead/letters/{id:int}/rehearsal", dead.rehearsal, Role.LOOK),
    Page("/dead/replays/{name}", replays.outcomes),
    Page("/learners", learners.learners),
    Page("/learners/{user}", learners.learner),
    Page("/learners/{user}/report", learners.report, Role.LOOK),
    Page("/learners/{user}/link", learners.link, Role.ACT),
    Page("/viewers", viewers.viewers),
    Page("/viewers/{name}", viewers.viewer),
    Page("/workers", workers.workers),
    Page("/content", content.content),
    Page("/audit", records.audit),
    Page("/doctor", records.doctor),
)
ACTS: Final = (
    Act("/batches/{uuid}/void", batches.ask_void, batches.void),
    Act("/dead/replay", replays.ask_replay, replays.replay),
    Act("/dead/discard", replays.ask_discard, replays.discard),
    Act("/pause", workers.ask_pause, workers.pause),
    Act("/resume", workers.ask_resume, workers.resume),
    Act("/content/restore", content.ask_restore, content.restore),
    Act("/content/withdraw", content.ask_withdraw, content.withdraw),
    Act("/viewers/{name}/grant", viewers.ask_grant, viewers.grant),
    Act("/viewers/{name}/withdraw", viewers.ask_withdraw, viewers.withdraw),
    Act("/learners/{user}/share", learners.ask_share, learners.share),
)

_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_STATUS: Final = {
    AddressError: 400,
    NoBatch: 404,
    NoHistory: 404,
    BrokerAway: 503,
    DatabaseAway: 503,
    SchemaError: 503,
    TopologyError: 503,
    TransientFault: 503,
}
"""The HTTP status for errors; 409 for others, which say that something can't be done as it is."""
_CANCELLED: Final = "57014"
"""SQLSTATE of a statement that took too long."""


def application(console: state.Console) -> ASGIApp:
    """The console as an ASGI application."""
    app = Starlette(
        routes=[
            Route("/live", _live),
            Route("/sign-in", sign_in.sign_in, methods=["GET", "POST"]),
            Route("/sign-out", sign_in.sign_out, methods=["POST"]),
            *(Route(page.path, _guarded(page.handler, page.role)) for page in PAGES),
            *(Route(act.path, _acting(act), methods=["GET", "POST"]) for act in ACTS),
            Route("/reports/{sealed}", learners.shared),
            Route("/report.css", learners.style),
            Mount("/static", StaticFiles(directory=shown.HERE / "static")),
        ],
        exception_handlers={
            IngestError: _known,
            DBAPIError: _refused,
            HTTPException: _http,
            Exception: _unknown,
        },
    )
    app.state.console = console
    return _with_headers(app)


def _guarded(handler: Handler, role: Role) -> Handler:
    async def guarded(request: Request) -> Response:
        entrance = state.of(request).entrance
        person = entrance.person(request)
        if person is None:
            if entrance.is_proxy(request):
                return _error(request, 403, "The proxy names nobody who may enter.", "")
            back = (
                None if request.url.path == "/" else str(request.url.replace(netloc="", scheme=""))
            )
            return RedirectResponse(asked.address("/sign-in", next=back), 303)
        request.state.person = person
        if person.role < role:
            return _error(
                request,
                403,
                f"This needs the role {role.name.lower()}, and yours is"
                f" {person.role.name.lower()}.",
                "Ask whoever runs the console for it.",
            )
        return await handler(request)

    return guarded


def _acting(act: Act) -> Handler:
    async def acting(request: Request) -> Response:
        if request.method != "POST":
            question = await act.ask(request)
            return shown.page(request, "ask.html", question=question)
        fields = await asked.form(request)
        person, console = request.state.person, state.of(request)
        if not console.entrance.is_own_form(person, fields.get("seal", "")):
            return _error(
                request,
                403,
                "The form was not made by this console for you, or is too old.",
                "Go back, load the page again, and repeat it.",
            )
        by = By(person.actor, asked.reason(fields))
        done = await act.do(request, fields, by)
        console.outdate()
        _log.info("console.acted", act=act.path, actor=by.actor)
        response = RedirectResponse(done.address, 303)
        sign_in.set_cookie(request, response, shown.SAID, "said", done.said, seconds=60)
        return response

    return _guarded(acting, act.role)


async def _live(_: Request) -> Response:
    """For supervisors: that the process answers, and nothing about the servers."""
    return PlainTextResponse("alive\n")


def _error(request: Request, status: int, found: str, remedy: str) -> Response:
    return shown.page(request, "error.html", status, status=status, found=found, remedy=remedy)


async def _known(request: Request, error: Exception) -> Response:
    assert isinstance(error, IngestError)
    cause = error.__cause__
    if getattr(getattr(cause, "orig", cause), "sqlstate", None) == _CANCELLED:
        return _error(
            request,
            503,
            "The database did not answer this question in time.",
            "Ask for less: a shorter time, or one viewer or user.",
        )
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 409)
    remedy = error.remedy[:1].upper() + error.remedy[1:]
    return _error(request, status, f"{error.found.rstrip('.')}.", remedy)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, DBAPIError)
    code = getattr(error.orig, "sqlstate", None) or "unknown"
    _log.warning("console.refused", sqlstate=code)
    return _error(
        request,
        503,
        f"The database refused a statement (SQLSTATE {code}).",
        "The Doctor page looks for why.",
    )


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    request.state.person = state.of(request).entrance.person(request)
    found = {404: "There is no such page.", 405: "This page can't be used like this."}
    return _error(request, error.status_code, found.get(error.status_code, error.detail), "")


async def _unknown(request: Request, _: Exception) -> Response:
    # The server logs the error itself, which goes on to it.
    return _error(request, 500, "The console has failed, and its log says how.", "Try again.")


def _with_headers(app: ASGIApp) -> ASGIApp:
    """The application, whose every answer has the headers that protect it."""
    headers = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]

    async def protected(scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                cached = b"no-cache" if scope["path"].startswith("/static/") else b"no-store"
                message["headers"] = [
                    *message["headers"],
                    *headers,
                    (b"cache-control", cached),
                ]
            await send(message)

        await app(scope, receive, answer)

    return protected
