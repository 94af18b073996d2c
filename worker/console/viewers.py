"""Viewers: all of them, and one with the users for whom it may write."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from schemas import amqp
from worker.console import asked, shown, state
from worker.console.acts import Done, Question
from worker.errors import AddressError
from worker.operate import viewers as operation
from worker.store.audit import By
from worker.store.engine import transaction
from worker.store.operate import dead, grants

_SHOWN: Final = 100
_GRANTS: Final = 200


async def viewers(request: Request) -> Response:
    """Viewers with a login or a grant, by name; if asked, those of which nothing was heard."""
    part = asked.text(request, "name") or ""
    silent = asked.one_of(request, "silent", asked.AGES)
    since = None if silent is None else datetime.now(UTC) - asked.AGES[silent]
    everybody = await state.of(request).viewers.get(state.PATIENCE)
    found = [each for each in everybody.found if part.lower() in each.name.lower()]
    if since is not None:
        found = [each for each in found if each.is_silent_since(since)]
    return shown.page(
        request,
        "viewers.html",
        name=part,
        silent=silent,
        found=found[:_SHOWN],
        count=len(found),
        away=everybody.away,
        most=_SHOWN,
    )


async def viewer(request: Request) -> Response:
    """One viewer."""
    name = _name(request)
    async with transaction(state.of(request).looking) as connection:
        users = await grants.of_viewer(connection, name, _GRANTS)
        letters = await dead.count(connection, dead.Wanted(viewers=frozenset({name})))
    everybody = await state.of(request).viewers.get(state.PATIENCE)
    known = next((each for each in everybody.found if each.name == name), None)
    return shown.page(
        request,
        "viewer.html",
        name=name,
        users=users,
        letters=letters,
        known=known,
        away=everybody.away,
        most=_GRANTS,
    )


async def ask_grant(request: Request) -> Question:
    """Asks whether the viewer may write for the user in the address."""
    name, user = _name(request), _user(request)
    return Question(
        f"May viewer {name} write for user {user}?",
        (
            f"What {name} publishes from now on can change the history of user {user}, and it can"
            " read that user's progress.",
            "Sessions that were rejected for want of this grant can be replayed.",
        ),
        f"Grant user {user}",
        _back(request),
    )


async def grant(request: Request, _: Mapping[str, str], by: By) -> Done:
    """Lets the viewer write for the user."""
    console, name, user = state.of(request), _name(request), _user(request)
    await operation.grant(console.broker, console.acting, name, [user], by)
    return Done(f"Viewer {name} may write for user {user}.", _back(request))


async def ask_withdraw(request: Request) -> Question:
    """Asks whether to take the grant for the user in the address back."""
    name, user = _name(request), _user(request)
    return Question(
        f"Take back the grant of {name} for user {user}?",
        (
            f"What {name} publishes for user {user} becomes a dead letter from now on.",
            "All that was counted stays.",
        ),
        "Take back",
        _back(request),
    )


async def withdraw(request: Request, _: Mapping[str, str], by: By) -> Done:
    """Takes a grant back."""
    name, user = _name(request), _user(request)
    await operation.withdraw(state.of(request).acting, name, [user], by)
    return Done(f"Viewer {name} may not write for user {user} any more.", _back(request))


def _name(request: Request) -> str:
    name = str(request.path_params["name"])
    if not amqp.is_viewer(name):
        raise AddressError(f"{name[:80]!r} can't name a viewer", "look for its name.")
    return name


def _user(request: Request) -> int:
    user = asked.number(request, "user")
    if user is None:
        raise AddressError("The address names no user", "add one.")
    return user


def _back(request: Request) -> str:
    given = asked.text(request, "back")
    return f"/viewers/{_name(request)}" if given is None else asked.own_path(given)
