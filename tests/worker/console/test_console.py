"""The console's answers on real servers: roles, forms, headers, others' words, servers away."""

import asyncio
import json
import re
from collections import Counter
from html.parser import HTMLParser
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from tests import factories as make
from tests.broker_fixtures import VIEWER, until
from tests.factories import batch, right, sent
from tests.worker.console.conftest import PEOPLE, TOKENS, Client, served
from tests.worker.operate.conftest import Site
from tests.worker.operate.test_hostile_words import invite
from worker.console import state
from worker.console.app import ACTS, PAGES
from worker.console.who import Role
from worker.domain.policy import Policy
from worker.ingest.transaction import Ingest

pytestmark = pytest.mark.broker

KNOWN = UUID(int=7)
FILLED = {
    "{uuid}": str(KNOWN),
    "{id:int}": "1",
    "{user}": "1",
    "{name}": VIEWER,
}


def address(path: str) -> str:
    """A path with values in it, and with the filters that acts need."""
    for name, value in FILLED.items():
        path = path.replace(name, value)
    filters = {"/content/": "?pub_id=nowhere", "/viewers/ada/": "?user=1"}
    return path + next((f for start, f in filters.items() if path.startswith(start)), "")


async def test_each_role_may_do_what_it_may_and_nothing_more(
    site: Site, clients: dict[Role | None, Client]
) -> None:
    """By address, with and without a form: nothing that is refused changes anything."""
    await site.park(batch(right("nowhere"), uuid=KNOWN))
    doors = [(page.path, page.role) for page in PAGES] + [(act.path, act.role) for act in ACTS]
    for path, needed in doors:
        where = address(path)
        for role, client in clients.items():
            for answer in (await client.get(where), await client.post(where, data={"reason": "x"})):
                if role is None and answer.request.method == "GET":
                    assert answer.status_code == 303, where
                    assert answer.headers["location"].startswith("/sign-in"), where
                elif role is not None and role >= needed and answer.request.method == "GET":
                    assert answer.status_code not in (403, 500), (where, role, answer.text)
                else:
                    assert answer.status_code in (303, 403, 405), (where, role, answer.text)
    assert await make.count(site.engine, "ingest_audit") == 0
    assert await site.letters() == 1
    assert await make.count(site.engine, "ingest_replays") == 0
    assert await make.count(site.engine, "ingest_pause") == 0


async def test_a_form_counts_only_with_its_own_seal_and_a_reason(
    site: Site, clients: dict[Role | None, Client]
) -> None:
    ada, bob = clients[Role.ACT], clients[Role.LOOK]
    theirs = (await bob.get("/")).text
    assert 'name="seal"' not in theirs  # nothing to act with
    for fields, status in (
        ({"reason": "x"}, 403),
        ({"reason": "x", "seal": "0" * 64}, 403),
        ({"reason": "x", "seal": ada.cookies["study-console"]}, 403),
    ):
        assert (await ada.post("/pause", data=fields)).status_code == status
    assert (await ada.act("/pause", reason=" ")).status_code == 400
    assert (await ada.act("/pause", reason="a\u202eb")).status_code == 400
    assert (await ada.act("/pause", reason="x" * 501)).status_code == 400
    too_long = await ada.post("/pause", data={"reason": "x" * 100_000})
    assert too_long.status_code == 400
    assert await make.count(site.engine, "ingest_pause") == 0

    assert "Pause ingest" in (await ada.get("/workers")).text
    assert (await ada.act("/pause", reason="moving the database")).status_code == 303
    (row,) = await make.rows(site.engine, "SELECT * FROM ingest_audit")
    assert (row["actor"], row["operation"]) == ("ada (console)", "pause")
    assert row["reason"] == "moving the database"
    paused = (await ada.get("/workers")).text
    assert "Ingest is paused." in paused
    assert "Resume ingest" in paused
    assert (await ada.act("/resume")).status_code == 303
    assert await make.count(site.engine, "ingest_pause") == 0


async def test_every_answer_forbids_what_a_page_could_be_made_to_load(
    clients: dict[Role | None, Client],
) -> None:
    paths = ("/", "/nothing", "/dead/letters/9", "/batches?user=x", "/static/live.js", "/live")
    for client in (clients[None], clients[Role.ACT]):
        for path in paths:
            answer = await client.get(path)
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
            assert "unsafe" not in policy
            assert answer.headers["x-frame-options"] == "DENY"
            assert answer.headers["cache-control"] in ("no-store", "no-cache")


async def test_a_session_begins_with_a_token_and_ends_when_asked(
    clients: dict[Role | None, Client],
) -> None:
    nobody = clients[None]
    wrong = await nobody.post("/sign-in", data={"token": "x" * 30})
    assert wrong.status_code == 403
    assert "Nobody has this token." in wrong.text
    for outside in ("https://evil", "//evil", "/\\evil"):
        answer = await nobody.post(
            "/sign-in", params={"next": outside}, data={"token": TOKENS[Role.WATCH]}
        )
        assert answer.headers["location"] == "/"
        assert "HttpOnly" in answer.headers["set-cookie"]
    back = await nobody.post(
        "/sign-in", params={"next": "/dead?reason=malformed"}, data={"token": TOKENS[Role.WATCH]}
    )
    assert back.headers["location"] == "/dead?reason=malformed"
    assert (await nobody.get("/dead")).status_code == 200
    await nobody.post("/sign-out")
    assert (await nobody.get("/dead")).status_code == 303


class Read(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def addresses(self) -> set[str]:
        found = (given.get("href") or given.get("action") for _, given in self.tags)
        return {each for each in found if each and each.startswith("/")}


MARKUP = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}</textarea>"
BIDI = "\u202egnp.exe\u2066\u200f"
HOSTILE = f"{MARKUP}{BIDI}{'W' * 10_000}"


async def test_nothing_that_a_viewer_writes_becomes_a_part_of_a_page(
    site: Site, ada: Client
) -> None:
    """Every page that can be reached by links is read, and none has a tag or an attribute that is
    not the console's, or a character that turns the direction of its text.
    """
    word = HOSTILE[:3_000]
    await invite(site, word)
    seen: set[str] = set()
    shapes: Counter[str] = Counter()
    ahead = {"/", "/find?q=script", "/viewers?name=script", f"/batches?viewer={MARKUP}"}
    shown = 0
    while ahead - seen:
        where = min(ahead - seen)
        seen.add(where)
        shape = re.sub(r"[0-9a-f-]{36}|\d+", "N", re.sub(r"=[^&]*", "", where))
        shapes[shape] += 1
        if shapes[shape] > 2:  # others of the same kind tell nothing new
            continue
        answer = await ada.get(where)
        assert answer.status_code != 500, where
        if answer.status_code >= 300 or "html" not in answer.headers["content-type"]:
            continue
        page = Read(answer.text)
        shown += "alert(1)" in page.text
        if not where.endswith("/report"):  # which is for the learner, in any script
            assert not {*page.text} & {*BIDI} - {*"gnp.exe"}, where
        for tag, given in page.tags:
            assert tag not in ("img", "iframe", "object", "style"), where
            assert not any(name.startswith("on") or name == "style" for name in given), where
            if tag == "script":
                assert given.get("src") == "/static/live.js", where
        ahead |= page.addresses()
    assert shown > 10


async def test_what_people_answered_is_for_those_who_may_look(
    site: Site, clients: dict[Role | None, Client]
) -> None:
    (question,) = await make.publish(site.engine, user_id=1)
    uuid = uuid4()
    await Ingest(site.engine, Policy())([sent(right(question), uuid=uuid)])
    await site.park(batch(right("nowhere"), uuid=KNOWN))
    (row,) = await make.rows(site.engine, "SELECT id FROM ingest_dead_letters")
    letter, batch_ = f"/dead/letters/{row['id']}", f"/batches/{uuid}"
    for role in (Role.WATCH, Role.LOOK):
        pages = [(await clients[role].get(path)).text for path in (letter, batch_)]
        assert ("selected_choice" in pages[0]) is (role is Role.LOOK)
        assert ("Right was" in pages[1]) is (role is Role.LOOK)
        assert "nothing_resolved" in pages[0]
        assert "ingested" in pages[1]


async def test_every_batch_is_on_a_page_that_links_lead_to(site: Site, ada: Client) -> None:
    """Groups have one moment for all of their batches, and a page may end within one."""
    (question,) = await make.publish(site.engine, user_id=1)
    ingest = Ingest(site.engine, Policy())
    uuids = [uuid4() for _ in range(150)]
    for group in (uuids[:60], uuids[60:120], uuids[120:]):
        await ingest([sent(right(question), uuid=uuid) for uuid in group])
    seen: set[str] = set()
    where: str | None = "/batches"
    pages = 0
    while where is not None:
        page = Read((await ada.get(where)).text)
        seen |= {each for each in page.addresses() if re.fullmatch(r"/batches/[0-9a-f-]{36}", each)}
        where = next((each for each in page.addresses() if "until=" in each), None)
        pages += 1
    assert seen == {f"/batches/{uuid}" for uuid in uuids}
    assert pages in (2, 3)


async def test_a_session_is_voided_by_who_may_act(site: Site, ada: Client) -> None:
    (question,) = await make.publish(site.engine, user_id=1)
    await Ingest(site.engine, Policy())([sent(right(question), uuid=KNOWN)])
    assert "Void this session" in (await ada.get(f"/batches/{KNOWN}")).text
    assert (await ada.act(f"/batches/{KNOWN}/void", reason="a test")).status_code == 303
    page = (await ada.get(f"/batches/{KNOWN}")).text
    assert "The answers of user 1 do not count any more: 1." in page
    assert "Void this session" not in page
    assert await make.count(site.engine, "study_question_progress") == 0
    (row,) = await make.rows(site.engine, "SELECT actor, operation FROM ingest_audit")
    assert (row["actor"], row["operation"]) == ("ada (console)", "void")
    missing = await ada.act(f"/batches/{uuid4()}/void")
    assert missing.status_code == 409
    assert "is on record" in missing.text


async def test_letters_are_replayed_and_discarded_as_they_were_seen(
    site: Site, ada: Client
) -> None:
    """A letter that came after the question stays."""
    await site.park(*(batch(right("nowhere")) for _ in range(3)))
    question = await ada.get("/dead/discard?reason=nothing_resolved")
    assert "Discard 3 dead letters?" in question.text
    await site.park(batch(right("nowhere")))
    seal, newest = (
        question.text.split(f'name="{name}" value="')[1].split('"')[0]
        for name in ("seal", "newest")
    )
    fields = {"seal": seal, "newest": newest, "amount": "3", "reason": "a test"}
    done = await ada.post("/dead/discard?reason=nothing_resolved", data=fields)
    assert done.headers["location"] == "/dead"
    assert "3 letters are discarded." in (await ada.get("/dead")).text
    assert await site.letters() == 1

    await site.park(batch(right("nowhere")))
    done = await ada.act("/dead/replay?reason=nothing_resolved")
    async with site.working():

        async def outcome() -> str:
            return (await ada.get(done.headers["location"])).text

        assert "rejected: nothing_resolved again" in await until(
            outcome, lambda text: "All are decided." in text
        )
    assert done.headers["location"] in (await ada.get("/dead")).text
    rows = await make.rows(site.engine, "SELECT operation, effect FROM ingest_audit ORDER BY id")
    assert [(row["operation"], row["effect"]) for row in rows] == [
        ("discard", {"nothing_resolved": 3}),
        ("replay", {"nothing_resolved": 2}),
    ]


async def test_a_link_to_a_report_needs_no_sign_in_and_is_in_the_audit(
    site: Site, clients: dict[Role | None, Client]
) -> None:
    (question,) = await make.publish(site.engine, user_id=1)
    await Ingest(site.engine, Policy())([sent(right(question))])
    ada, nobody = clients[Role.ACT], clients[None]
    made = await ada.act("/learners/1/share", reason="her teacher asked")
    page = await ada.get(made.headers["location"])
    link = page.text.split('readonly value="')[1].split('"')[0]
    report = await nobody.get(link)
    assert "Study report for user 1" in report.text
    assert "<style" not in report.text
    assert (await nobody.get(link[:-1])).status_code == 404
    assert (await nobody.get("/learners/1/report")).status_code == 303
    (row,) = await make.rows(site.engine, "SELECT * FROM ingest_audit")
    assert (row["operation"], row["subject"]) == ("report link", "user 1")


async def test_a_server_that_is_away_is_shown_with_what_is_still_known(
    site: Site, clients: dict[Role | None, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere: dict[str, Any] = {
        "database_url": "postgresql://u:secret-word@127.0.0.1:1/none",
        "amqp_url": "amqp://u:secret-word@127.0.0.1:1/none",
        "management_url": "http://u:secret-word@127.0.0.1:1",
    }
    for away in (("database_url",), ("amqp_url", "management_url"), tuple(nowhere)):
        update = {name: type(getattr(site.settings, name))(nowhere[name]) for name in away}
        async with served(site.settings.model_copy(update=update)) as (_, others):
            for page in (page for page in PAGES if "{" not in page.path):
                answer = await others[Role.ACT].get(page.path)
                assert answer.status_code in (200, 303, 400, 503), (page.path, answer.text)
                assert "secret-word" not in answer.text
            overview = (await others[Role.ACT].get("/")).text
            assert "<strong>away</strong>" in overview
            assert "be reached" in overview

    monkeypatch.setattr(state, "_FRESH", 0.0)
    async with served(site.settings) as (console, others):
        assert "away" not in (await others[Role.WATCH].get("/workers")).text
        await console.broker.http.aclose()
        console.broker.http = httpx.AsyncClient(base_url="http://127.0.0.1:1")
        page = await until(
            lambda: _text(others[Role.WATCH], "/workers"), lambda text: "RabbitMQ is away" in text
        )
        assert "study.attempts" in page


async def _text(client: Client, path: str) -> str:
    await asyncio.sleep(0)
    return (await client.get(path)).text


async def test_a_wrong_value_in_an_address_is_a_plain_sentence(ada: Client) -> None:
    for path, said in (
        ("/batches?user=abc", "&#39;abc&#39; is not a whole number."),
        (f"/batches?user={'9' * 30}", "does not fit into 64 bits."),
        ("/batches?since=3y", "&#39;3y&#39; is not known."),
        ("/batches/not-a-uuid", "&#39;not-a-uuid&#39; is no uuid."),
        ("/dead?reason=none", "&#39;none&#39; is not known."),
        ("/dead/letters/99999999999999999999999", "There is no dead letter"),
        ("/learners/x", "is not a whole number."),
        ("/find?q=", "Nothing was entered."),
        ("/viewers/a%20b", "name a viewer."),
    ):
        answer = await ada.get(path)
        assert answer.status_code in (400, 404), path
        assert said in answer.text, (path, answer.text)


def test_everybody_has_a_name_of_its_own() -> None:
    assert len({*PEOPLE.values()}) == len(Role)
    assert json.dumps([*TOKENS.values()]).count("0123456789-") == len(Role)
