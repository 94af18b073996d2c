"""The browser viewer in a headless Chromium, against RabbitMQ's web-MQTT plugin.

Answer offline, close the tab, reopen it without a network, come online, see the result; and the
same batch twice has one effect. The static server is really stopped and the broker is really out
of reach while the page is offline.
"""

import functools
import json
import os
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from devtools.rabbitmq import MANAGEMENT, RabbitMQ
from tests import factories
from tests.broker_fixtures import make_settings
from tests.chromium import Chromium, driven, driver
from tests.whole_worker import Login, Viewers, working
from worker.broker import topology
from worker.broker.accounts import Accounts
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest
from worker.operate.viewers import Access
from worker.settings import Settings

__all__ = ["driver"]

pytestmark = pytest.mark.broker

HERE = Path(__file__).parent
VIEWER = HERE.parents[1] / "examples/browser-viewer"
MQTT = "rabbitmq_mqtt"
WEB_MQTT = "rabbitmq_web_mqtt"


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitMQ]:
    """A broker of the test's own, with the plugin."""
    with RabbitMQ(plugins=(MANAGEMENT, MQTT, WEB_MQTT)) as running:
        yield running


@pytest.fixture
def settings(node: RabbitMQ) -> Settings:
    return make_settings(
        node.url,
        management_url=node.management_url,
        mqtt_exchange="amq.topic",
        require_user_id=True,
    )


@pytest.fixture
async def viewers(settings: Settings, engine: AsyncEngine) -> AsyncIterator[Viewers]:
    async with Accounts(settings) as accounts:
        await topology.apply(accounts, settings)
        await topology.check(accounts, settings)
        made = Viewers(accounts, engine, settings)
        yield made
        await made.remove_all()


class Site(SimpleHTTPRequestHandler):
    """The page's files."""

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True


@contextmanager
def served(folder: Path, port: int = 0) -> Iterator[int]:
    """Serves the folder on the loopback while the block runs; gives the port."""
    server = Server(("127.0.0.1", port), functools.partial(Site, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Browser(Chromium):
    """The page in a browser."""

    async def open(self, port: int) -> None:
        await self.do(
            "state.page = await context.newPage();"
            f"await state.page.goto('http://127.0.0.1:{port}/');"
            "await state.page.waitForSelector('#quiz button')"
        )

    async def close_tab(self) -> None:
        await self.do("await page.close()")

    async def answer(self, *choices: int | None) -> None:
        """A whole session; None is "not sure"."""
        await self.do("await page.click('text=Start a session')")
        for choice in choices:
            which = "input[name=unsure]" if choice is None else f"input[value='{choice}']"
            await self.do(f"await page.check(\"{which}\"); await page.click('form button')")

    async def states(self) -> list[str]:
        """What the page says of its sessions, latest first."""
        found = await self.do(
            "return page.$$eval('#sessions > li', (l) => l.map((i) => i.dataset.state))"
        )
        return list(found)

    async def until(self, state: str, count: int = 1) -> str:
        """Waits until so many sessions are in the state; the page's words on the first."""
        await self.do(
            f"await page.waitForFunction(() => document.querySelectorAll("
            f"'#sessions li[data-state={state}]').length === {count})"
        )
        return str(await self.do("return page.innerText('#sessions li')"))

    async def log_in(self, node: RabbitMQ, login: Login) -> None:
        url = f"ws://127.0.0.1:{node.port_of(WEB_MQTT)}/ws"
        fields = {"url": url, "vhost": "/", "viewer": login.name, "password": login.password}
        for name, value in fields.items():
            await self.do(f"await page.fill('#login input[name={name}]', {json.dumps(value)})")
        await self.do("await page.click('#login button')")


@pytest.fixture
async def browser(driver: Path, tmp_path: Path) -> AsyncIterator[Browser]:
    async with driven(driver, tmp_path / "profile") as process:
        yield Browser(process)


@pytest.fixture
async def site(engine: AsyncEngine, tmp_path: Path) -> Path:
    """The page with three questions that are published, and one that never was."""
    folder = tmp_path / "site"
    shutil.copytree(VIEWER, folder)
    published = await factories.publish(engine, 3, user_id=42)
    pub_ids = [*(each.pub_id for each in published), "never-published"]
    questions = [
        {"pub_id": pub_id, "text": f"Question {n}?", "choices": ["no", "yes", "maybe"]}
        for n, pub_id in enumerate(pub_ids)
    ]
    (folder / "questions.json").write_text(json.dumps(questions))
    return folder


async def test_answered_offline_closed_reopened_and_told(
    node: RabbitMQ,
    viewers: Viewers,
    settings: Settings,
    engine: AsyncEngine,
    browser: Browser,
    site: Path,
) -> None:
    login = await viewers.add(42, access=Access(mqtt="amq.topic"))
    with served(site) as port:
        await browser.open(port)
        await browser.log_in(node, login)
        await browser.do("await page.evaluate(() => navigator.serviceWorker.ready)")
        await browser.do("""await page.waitForSelector('#connection:text-is("online")')""")
        await browser.do("await context.setOffline(true)")
        await browser.answer(1, 2, None, 1)
        await browser.until("waiting")
        await browser.close_tab()

    # Nobody serves the page any more: it opens out of what was kept.
    await browser.open(port)
    await browser.until("waiting")

    # Online, but no worker: it is with the broker, and a new tab sends it again.
    await browser.do("await context.setOffline(false)")
    await browser.until("sent")
    await browser.close_tab()
    await browser.open(port)
    async with working(settings, engine) as worker:
        said = await browser.until("ingested")
        assert await worker.changed.until(lambda: worker.counts["duplicate"] >= 1, 30)
        assert worker.counts["ingested"] == 1

    assert "1 correct, 1 wrong, 1 unsure; 1 newly correct." in said
    assert said.count("Due again on") == 3
    assert "Left out: unknown publication." in said
    rows = await factories.rows(engine, "SELECT position FROM study_question_attempts")
    assert len(rows) == 3
    (inbox,) = await factories.rows(engine, "SELECT viewer FROM ingest_inbox")
    assert inbox["viewer"] == login.name
    picture = os.environ.get("SCREENSHOTS")
    if picture:
        await browser.do(
            f"await page.screenshot({{path: '{picture}/browser.png', fullPage: true}})"
        )
        await browser.do("await page.setViewportSize({width: 375, height: 800})")
        await browser.do("await page.emulateMedia({colorScheme: 'dark'})")
        await browser.do("await page.click('text=Start a session')")
        await browser.do(f"await page.screenshot({{path: '{picture}/phone.png', fullPage: true}})")
    wide = await browser.do(
        "await page.setViewportSize({width: 375, height: 800});"
        " return page.evaluate(() => document.documentElement.scrollWidth)"
    )
    assert wide <= 375


async def test_what_is_due_on_one_device_is_due_in_the_browser_too(
    node: RabbitMQ,
    viewers: Viewers,
    settings: Settings,
    engine: AsyncEngine,
    browser: Browser,
    site: Path,
) -> None:
    """It was answered elsewhere; the page asks for it, and knows it without a network as well."""
    pub_ids = [each["pub_id"] for each in json.loads((site / "questions.json").read_text())]
    long_ago = datetime.now(UTC) - timedelta(days=30)
    elsewhere = [factories.right(pub_id, long_ago) for pub_id in pub_ids[:2]]
    await Ingest(engine, Policy())([factories.sent(*elsewhere)])
    login = await viewers.add(42, access=Access(mqtt="amq.topic"))

    async def until_due(*expected: str) -> None:
        await browser.do(
            f"await page.waitForFunction((ids) => JSON.stringify([...document.querySelectorAll("
            f"'#due li')].map((item) => item.dataset.pubId).sort()) === ids,"
            f" {json.dumps(json.dumps(sorted(expected), separators=(',', ':')))})"
        )

    with served(site) as port:
        async with working(settings, engine):
            await browser.open(port)
            await until_due()
            await browser.log_in(node, login)
            await until_due(*pub_ids[:2])
            await browser.do("await page.evaluate(() => navigator.serviceWorker.ready)")
            if picture := os.environ.get("SCREENSHOTS"):
                await browser.do(
                    f"await page.screenshot({{path: '{picture}/due.png', fullPage: true}})"
                )
        await browser.do("await context.setOffline(true)")
        await browser.close_tab()
    await browser.open(port)
    await until_due(*pub_ids[:2])
    await browser.answer(1, 2, None, 1)
    await until_due()  # answered now, on this device, whatever will become of it


async def test_a_viewer_by_mqtt_reaches_nothing_of_another(
    node: RabbitMQ,
    viewers: Viewers,
    settings: Settings,
    engine: AsyncEngine,
    browser: Browser,
    site: Path,
) -> None:
    """With the page's own client, under a login of its own: another's topics are refused."""
    login = await viewers.add(42, access=Access(mqtt="amq.topic"))
    other = await viewers.add(42, access=Access(mqtt="amq.topic"))
    url = f"ws://127.0.0.1:{node.port_of(WEB_MQTT)}/ws"
    batch = factories.batch(factories.right("x"), uuid=uuid4()).model_dump_json()

    async def tried(what: str, client_id: str = login.name) -> str:
        options = {"url": url, "clientId": client_id, "username": f"/:{login.name}"}
        work = (
            "const { connect } = await import('./mqtt.js');"
            f"const client = await connect({{...{json.dumps(options)},"
            f" password: {json.dumps(login.password)}, onMessage: () => {{}}}});"
            f"try {{ await client.{what}; return 'done'; }} catch (error) {{ return 'refused'; }}"
            " finally { client.close(); }"
        )
        return str(await browser.do(f"return page.evaluate(async () => {{ {work} }})"))

    with served(site) as port:
        await browser.open(port)
        body = json.dumps(batch)
        assert await tried(f"subscribe('result/{login.name}')") == "done"
        assert await tried(f"publish('attempts/v1/{login.name}', {body})") == "done"
        assert await tried(f"subscribe('result/{other.name}')") == "refused"
        assert await tried("subscribe('result/+')") == "refused"
        assert await tried("subscribe('#')") == "refused"
        assert await tried(f"publish('attempts/v1/{other.name}', {body})") == "refused"
        assert await tried(f"publish('result/{other.name}', '{{}}')") == "refused"
        assert await tried(f"subscribe('result/{login.name}')", other.name) == "refused"
    async with working(settings, engine) as worker:
        assert await worker.changed.until(lambda: worker.counts["rejected"] == 1, 30)
        assert worker.counts.total() == 1
