"""Who may come in: tokens, proxies, roles, and seals that nobody can make or keep for ever."""

import httpx
import pytest
from pydantic import SecretStr
from starlette.requests import Request

from tests.broker_fixtures import make_settings
from tests.worker.console.conftest import TOKENS, with_people
from worker.console.who import COOKIE, Entrance, Role
from worker.errors import SettingsError
from worker.settings import Settings


def settings(**changed: object) -> Settings:
    return make_settings("amqp://unused", **changed)


def request(address: str = "127.0.0.1", cookie: str = "", **headers: str) -> Request:
    given = httpx.Headers({"cookie": f"{COOKIE}={cookie}"} | headers, encoding="utf-8")
    scope = {"type": "http", "client": (address, 1), "headers": given.raw, "method": "GET"}
    return Request(scope)


BEHIND = settings(
    console_proxy="10.0.0.0/8",
    console_proxy_header="x-user",
    console_proxy_roles="ada:act,bob:look",
)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"console_host": "0.0.0.0"}, "CONSOLE_HOST"),
        ({"console_host": "::"}, "CONSOLE_HOST"),
        ({"console_tokens": "ada:act:short"}, "CONSOLE_TOKENS"),
        ({"console_tokens": f"ada:king:{TOKENS[Role.ACT]}"}, "'king'"),
        ({"console_tokens": f"a b:act:{TOKENS[Role.ACT]}"}, "'a b'"),
        ({"console_tokens": f"a:act:{TOKENS[Role.ACT]},b:act:{TOKENS[Role.ACT]}"}, "twice"),
        ({"console_proxy": "10.0.0.1/8"}, "CONSOLE_PROXY"),
        ({"console_proxy": "10.0.0.0/8", "console_proxy_roles": "ada"}, "PROXY_ROLES"),
    ],
)
def test_a_setting_that_lets_nobody_or_anybody_in_is_refused(
    changed: dict[str, str], word: str
) -> None:
    with pytest.raises(SettingsError, match=word) as refused:
        Entrance(settings(**changed), "root")
    assert TOKENS[Role.ACT] not in str(refused.value)


def test_without_settings_the_owner_signs_in_with_a_token_of_this_process() -> None:
    entrance = Entrance(settings(), "root")
    assert entrance.made_token is not None
    session = entrance.sign_in(entrance.made_token)
    person = entrance.person(request(cookie=session or ""))
    assert person is not None
    assert (person.name, person.role) == ("root", Role.ACT)
    assert entrance.sign_in("") is None
    assert Entrance(settings(), "root").person(request(cookie=session or "")) is None


def test_a_session_ends_by_time_and_with_any_change_of_a_token() -> None:
    now = [1_000.0]
    entrance = Entrance(with_people(settings()), "root", clock=lambda: now[0])
    session = entrance.sign_in(TOKENS[Role.LOOK]) or ""
    person = entrance.person(request(cookie=session))
    assert person is not None
    assert person.role is Role.LOOK
    others = settings(console_tokens=SecretStr(f"bob:look:{TOKENS[Role.LOOK]}"))
    assert Entrance(others, "root", clock=lambda: now[0]).person(request(cookie=session)) is None
    for forged in (session[:-1], f"x{session}", session.replace(".", ""), ".", "", "é.é"):
        assert entrance.person(request(cookie=forged)) is None
    assert entrance.person(request(cookie=entrance.seal("said", "ada", 60))) is None
    now[0] += 12 * 3600
    assert entrance.person(request(cookie=session)) is None


@pytest.mark.parametrize(
    ("address", "headers", "role"),
    [
        ("10.1.2.3", {"x-user": "ada"}, Role.ACT),
        ("::ffff:10.1.2.3", {"x-user": "ada"}, Role.ACT),
        ("10.1.2.3", {"x-user": "bob"}, Role.LOOK),
        ("10.1.2.3", {"x-user": "eve"}, None),
        ("10.1.2.3", {}, None),
        ("127.0.0.1", {"x-user": "ada"}, None),
        ("11.1.2.3", {"x-user": "ada", "x-forwarded-for": "10.1.2.3"}, None),
    ],
)
def test_only_the_proxy_is_believed(address: str, headers: dict[str, str], role: Role) -> None:
    person = Entrance(BEHIND, "root").person(request(address, **headers))
    assert (person and person.role) == role


def test_a_header_that_came_twice_names_nobody() -> None:
    given = httpx.Headers([("x-user", "bob"), ("x-user", "ada")])
    twice = Request({"type": "http", "client": ("10.1.2.3", 1), "headers": given.raw})
    assert Entrance(BEHIND, "root").person(twice) is None
