"""A console on the servers of the test, and people in each role who ask it for pages."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from pydantic import SecretStr

from tests.worker.operate.conftest import Site, site
from worker.console.app import application
from worker.console.state import Console, running
from worker.console.who import Entrance, Role
from worker.settings import Settings

__all__ = ["site"]

TOKENS = {role: f"{role.name.lower()}-0123456789-0123456789" for role in Role}
PEOPLE = {Role.WATCH: "eve", Role.LOOK: "bob", Role.ACT: "ada"}
FORM = {"content-type": "application/x-www-form-urlencoded"}


def with_people(settings: Settings) -> Settings:
    """Settings with one person in each role."""
    people = ",".join(f"{name}:{role.name.lower()}:{TOKENS[role]}" for role, name in PEOPLE.items())
    return settings.model_copy(update={"console_tokens": SecretStr(people)})


class Client(httpx.AsyncClient):
    """Somebody's browser, as far as requests go."""

    async def act(self, path: str, reason: str = "a test", **fields: str) -> httpx.Response:
        """Opens the question of an act and answers it with its own form."""
        question = await self.get(path)
        assert question.status_code == 200, question.text
        hidden = re.findall(r'name="(\w+)" (?:type="number"[^>]*?)?value="([^"]*)"', question.text)
        return await self.post(path, data=dict(hidden) | {"reason": reason} | fields)


@asynccontextmanager
async def served(settings: Settings) -> AsyncIterator[tuple[Console, dict[Role | None, Client]]]:
    """A console, and a client for each role; for None, one who is not signed in."""
    settings = with_people(settings)
    async with AsyncExitStack() as stack:
        console = await stack.enter_async_context(running(settings, Entrance(settings, "root")))
        transport = httpx.ASGITransport(application(console), raise_app_exceptions=False)
        clients: dict[Role | None, Client] = {}
        for role in (None, *Role):
            made = Client(transport=transport, base_url="http://console")
            clients[role] = await stack.enter_async_context(made)
            if role is not None:
                answer = await made.post("/sign-in", data={"token": TOKENS[role]})
                assert answer.status_code == 303
        yield console, clients


@pytest.fixture
async def clients(site: Site) -> AsyncIterator[dict[Role | None, Client]]:
    async with served(site.settings) as (_, clients):
        yield clients


@pytest.fixture
def ada(clients: dict[Role | None, Client]) -> Client:
    """Who may act."""
    return clients[Role.ACT]
