"""The console in a headless Chromium, on real servers and a real process of its own."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests import factories as make
from tests.broker_fixtures import Broker
from tests.chromium import Chromium, driven, driver
from tests.factories import at, batch, right, wrong
from tests.security.test_identity import publish_as
from tests.whole_worker import Viewers, working
from tests.worker.console.conftest import TOKENS, with_people
from tests.worker.operate.conftest import Site
from tests.worker.operate.test_hostile_words import invite
from tests.worker_process import running
from worker.broker.accounts import Accounts
from worker.console.app import PAGES
from worker.console.who import Role
from worker.settings import Settings

__all__ = ["driver"]

pytestmark = pytest.mark.broker

LEARNER = 42
PICTURES = os.environ.get("SCREENSHOTS")

CONTRAST = """
const luminance = ([r, g, b]) => {
  const part = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
};
const color = (text) => text.match(/[\\d.]+/g).map(Number);
const behind = (element) => {
  for (let each = element; each; each = each.parentElement) {
    const found = color(getComputedStyle(each).backgroundColor);
    if (found.length === 3 || found[3] > 0) return found;
  }
  return [255, 255, 255];
};
const low = [];
for (const element of document.body.querySelectorAll("*")) {
  const style = getComputedStyle(element);
  const text = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data).join("");
  const box = element.getBoundingClientRect();
  if (!text.trim() || box.width < 2 || box.left < 0 || style.visibility === "hidden") continue;
  if (element.closest("svg, option")) continue;
  const pair = [luminance(color(style.color)), luminance(behind(element))].sort((a, b) => b - a);
  const size = parseFloat(style.fontSize);
  const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
  const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
  if (ratio < (large ? 3 : 4.5)) low.push(`${ratio.toFixed(2)} ${text.trim().slice(0, 40)}`);
}
return low;
"""
"""The texts whose contrast is lower than WCAG AA asks for."""


class Person(Chromium):
    """Somebody with a browser, who sees what is visible, and clicks it."""

    address = ""
    clicks = 0

    async def visit(self, path: str = "/") -> None:
        await self.do(f"await page.goto({json.dumps(self.address + path)})")

    async def sign_in(self, role: Role = Role.ACT) -> None:
        await self.visit()
        await self.fill("Token", TOKENS[role])
        await self.click("Sign in")

    async def fill(self, label: str, text: str) -> None:
        await self.do(
            f"await page.getByLabel({json.dumps(label)}, {{ exact: true }})"
            f".fill({json.dumps(text)})"
        )

    async def click(self, text: str) -> None:
        """Clicks the first link or button in the page with this visible text."""
        self.clicks += 1
        await self.do(
            f"const name = {json.dumps(text)}, exact = true;"
            "const found = (named) => page.getByRole('link', named)"
            ".or(page.getByRole('button', named)).first();"
            "await found({ name }).waitFor();"
            "const whole = found({ name, exact });"
            "await ((await whole.count()) ? whole : found({ name })).click();"
            "await page.waitForLoadState('load')"
        )

    async def reads(self, text: str) -> None:
        """Waits until the text is visible."""
        await self.do(f"await page.getByText({json.dumps(text)}).first().waitFor()")

    async def picture(self, name: str) -> None:
        if PICTURES:
            path = json.dumps(f"{PICTURES}/{name}.png")
            await self.do(f"await page.screenshot({{ path: {path}, fullPage: true }})")

    async def complaints(self) -> list[str]:
        """What the browser had to say: errors, warnings, and violations of the policy."""
        said = await self.do("return state.said")
        return [each for each in said if not each.startswith(("log:", "info:", "verbose:"))]


@pytest.fixture
async def person(driver: Path, tmp_path: Path) -> AsyncIterator[Person]:
    async with driven(driver, tmp_path / "profile") as process:
        yield Person(process)


async def serve(person: Person, settings: Settings) -> AsyncIterator[Person]:
    async with running(with_people(settings), "console", INGEST_CONSOLE_PORT="0") as process:
        person.address = (await process.logged("console.serving"))["address"].rstrip("/")
        yield person
        assert await person.complaints() == []


@pytest.fixture
async def visitor(person: Person, site: Site) -> AsyncIterator[Person]:
    """Somebody before the console of a site where identity is off."""
    async for each in serve(person, site.settings):
        yield each


async def test_a_learner_s_missing_session_is_found_repaired_and_counted(
    person: Person, broker: Broker, engine: AsyncEngine, database_url: str
) -> None:
    """It knows the console's address and the learner's name, and needs at most 15 clicks."""
    given: dict[str, Any] = {
        "require_user_id": True,
        "database_url": type(broker.settings.database_url)(database_url),
    }
    settings = broker.settings.model_copy(update=given)
    (question,) = await make.publish(engine, user_id=LEARNER)
    async with Accounts(settings) as accounts:
        viewers = Viewers(accounts, engine, settings)
        try:
            login = await viewers.add(name=f"ada-phone-{broker.vhost[-6:]}")
            await make.withdraw(engine, question)
            async with working(settings, engine) as worker:
                session = batch(right(question), wrong(question, at(1)))
                await publish_as(login, session.model_dump_json())
                assert await worker.changed.until(lambda: worker.counts["rejected"] == 1, 60)
                async for _ in serve(person, settings):
                    await _repair(person, session.client_session_uuid.hex[:8])
        finally:
            await viewers.remove_all()
    (row,) = await make.rows(engine, "SELECT user_id FROM ingest_inbox")
    assert row["user_id"] == LEARNER
    audit = await make.rows(engine, "SELECT actor, operation, reason FROM ingest_audit ORDER BY id")
    assert [row["operation"] for row in audit if row["actor"] == "ada (console)"] == [
        "content restore",
        "replay",
        "viewer grant",
        "replay",
    ]
    assert all(row["reason"] for row in audit if row["actor"] == "ada (console)")


async def _repair(person: Person, batch: str) -> None:
    await person.sign_in()
    person.clicks = 0
    await person.fill("User, viewer or batch", "ada")
    await person.click("Find")
    await person.click("1 dead letter")
    await person.click("Letter 1")
    await person.reads("One question is withdrawn")
    await person.picture("letter")
    await person.click("Publish it again")
    await person.fill("Reason, for the audit", "withdrawn by mistake")
    await person.click("Publish again")
    await person.click("Replay")
    await person.fill("Reason, for the audit", "the question is back")
    await person.click("Replay")
    await person.reads("principal_not_granted")
    await person.click("Letter 2")
    await person.reads("whose questions these are")
    await person.click(f"Grant user {LEARNER}")
    await person.fill("Reason, for the audit", "her new phone")
    await person.click(f"Grant user {LEARNER}")
    await person.click("Replay")
    await person.fill("Reason, for the audit", "granted")
    await person.click("Replay")
    await person.reads("Viewer told")
    await person.reads("ingested")
    await person.picture("counted")
    assert person.clicks <= 15
    assert batch in await person.do("return page.innerText('main')")


async def test_every_page_is_sound_in_two_widths_and_both_themes(
    visitor: Person, site: Site
) -> None:
    """Also with words in it that were made to break it: no errors, nothing cut off, and contrast
    as WCAG AA asks for.
    """
    await invite(site, f"eve <script>alert(1)</script>\u202e{'W' * 3_000}")
    (letter, *_) = await make.rows(site.engine, "SELECT id FROM ingest_dead_letters ORDER BY id")
    (batch_,) = await make.rows(site.engine, "SELECT client_session_uuid AS uuid FROM ingest_inbox")
    paths = [page.path for page in PAGES if "{" not in page.path and page.path != "/find"]
    paths += ["/find?q=eve", "/nothing", "/pause", "/dead/replay", "/content?topic=1"]
    paths += [f"/dead/letters/{letter['id']}", f"/batches/{batch_['uuid']}", "/learners/7"]
    paths += ["/learners/7/report", f"/dead/letters/{letter['id']}/rehearsal"]
    await visitor.sign_in()
    for scheme, width in (("light", 390), ("dark", 1920)):
        await visitor.do(f"await page.emulateMedia({{ colorScheme: '{scheme}' }})")
        await visitor.do(f"await page.setViewportSize({{ width: {width}, height: 900 }})")
        for path in paths:
            await visitor.visit(path)
            wide = await visitor.do(
                "return page.evaluate(() => document.documentElement.scrollWidth)"
            )
            assert wide <= width, (path, width)
            low = await visitor.do(f"return page.evaluate(() => {{ {CONTRAST} }})")
            assert low == [], (path, scheme)
            name = path.strip("/").partition("?")[0].replace("/", "-") or "overview"
            await visitor.picture(f"{scheme}-{width}-{name}")
    complaints = await visitor.complaints()
    # A page that does not exist is one, and it is asked for.
    assert all("404 (Not Found)" in each for each in complaints), complaints
    await visitor.do("state.said.length = 0")


async def test_an_act_needs_no_mouse(visitor: Person, site: Site) -> None:
    async def tab_to(name: str) -> None:
        for _ in range(60):
            await visitor.do("await page.keyboard.press('Tab')")
            seen = await visitor.do(
                "return page.evaluate(() => { const at = document.activeElement;"
                " return [at.innerText || at.name || '', getComputedStyle(at).outlineStyle] })"
            )
            if seen[0].strip() == name:
                assert seen[1] != "none", name  # where one is, is visible
                return
        pytest.fail(f"{name} can't be reached by Tab")

    async def press_enter() -> None:
        await visitor.do(
            "await page.keyboard.press('Enter'); await page.waitForTimeout(0);"
            " await page.waitForLoadState('load')"
        )

    await visitor.visit()
    await visitor.do(f"await page.keyboard.type({json.dumps(TOKENS[Role.ACT])})")
    await press_enter()
    await visitor.reads("What needs attention")
    await tab_to("Skip to the content")
    await tab_to("Workers")
    await press_enter()
    await visitor.reads("Queues")
    await tab_to("Pause ingest")
    await press_enter()
    await visitor.reads("Reason, for the audit")
    await visitor.do("await page.keyboard.type('by keyboard')")
    await press_enter()
    await visitor.reads("Ingest is paused.")
    (row,) = await make.rows(site.engine, "SELECT reason FROM ingest_pause")
    assert row["reason"] == "by keyboard"


async def test_a_page_stays_fresh_without_losing_one_s_place(visitor: Person, site: Site) -> None:
    await site.park(*(batch(right("nowhere")) for _ in range(30)))
    await visitor.sign_in()
    await visitor.visit("/dead/letters")
    await visitor.do(
        "await page.evaluate(() => { scrollTo(0, 600);"
        " [...document.querySelectorAll('#letters a')].at(-1).focus({ preventScroll: true }) })"
    )
    where = "return page.evaluate(() => [scrollY, document.activeElement.innerText])"
    before = await visitor.do(where)
    assert before[0] == 600
    await visitor.do(
        "await page.getByLabel('Viewer', { exact: true })"
        ".evaluate((it) => { it.value = 'half a na' })"
    )
    await site.park(batch(right("nowhere")))
    await visitor.reads("31 letters")
    assert await visitor.do(where) == before
    assert (
        await visitor.do("return page.getByLabel('Viewer', { exact: true }).inputValue()")
        == "half a na"
    )
