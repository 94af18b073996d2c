"""docs/integrate.md, run as it stands: into the quiz application, and out of it again.

The application has an environment of its own, in which nothing of ours is installed but what the
page installs. Where this machine has a browser, its pages are also looked at in that.
"""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote
from uuid import UUID

import asyncpg
import httpx
import pytest

from devtools import environment, places
from devtools.state import free_ports
from schemas import amqp
from tests.broker_fixtures import PATIENCE, Broker, until
from tests.database_fixtures import administer
from tests.examples.test_browser_viewer import Browser, browser, driver
from worker.broker.accounts import Accounts

pytestmark = pytest.mark.broker

__all__ = ["browser", "driver"]

PAGE = (places.CHECKOUT / "docs" / "integrate.md").read_text()
APPLICATION = places.CHECKOUT / "examples" / "quiz-app"
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
BLOCK = re.compile(r"^```(\w*) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
VIEWER = "quiz-app"
JOB = "study.review_requested.v1"
USER, IN_A_BROWSER = "user01", "user02"
"""Two of those with old answers."""


def test_every_code_block_is_of_a_kind_that_is_run() -> None:
    kinds = {(kind, bool(path)) for kind, path, _ in BLOCK.findall(PAGE)}
    assert kinds == {("sh", False), ("python", True), ("diff", False)}


def script(section: str) -> str:
    """What a reader does in a section: saves files, applies changes, types commands."""
    steps = ["set -e"]
    for kind, path, text in BLOCK.findall(SECTIONS[section]):
        if kind == "sh":
            steps.append(text)
        elif kind == "diff":
            steps.append(f"git apply <<'END_OF_BLOCK'\n{text}END_OF_BLOCK")
        else:
            steps.append(f"cat > {path} <<'END_OF_BLOCK'\n{text}END_OF_BLOCK")
    return "\n".join(steps)


class Reader:
    """A shell in which the sections are typed, one after another."""

    def __init__(self, shell: subprocess.Popen[str], folder: Path, url: str) -> None:
        self._shell = shell
        self.folder = folder
        self.url = url

    async def follow(self, section: str) -> str:
        """Does all of a section. Returns what it printed."""
        file = self.folder.parent / "section.sh"
        file.write_text(script(section))
        return await asyncio.wait_for(asyncio.to_thread(self._typed, file, section), 3 * PATIENCE)

    def _typed(self, file: Path, section: str) -> str:
        assert self._shell.stdin is not None and self._shell.stdout is not None
        self._shell.stdin.write(f". {file} </dev/null 2>&1\necho end-of-section\n")
        self._shell.stdin.flush()
        said: list[str] = []
        for line in self._shell.stdout:
            if line == "end-of-section\n":
                return "".join(said)
            said.append(line)
        logs = [f"{log.name}: {log.read_text()[-2000:]}" for log in self.folder.glob("*.log")]
        pytest.fail(f"{section}:\n{''.join(said)}\n{chr(10).join(logs)}")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the application's programs. `pip` installs there, and `study-ingest` is as if
    it were installed elsewhere.
    """
    folder = tmp_path_factory.mktemp("application")
    uv = environment.ensure_uv()
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    bin_folder = folder / "bin"
    environment.install_locked(bin_folder / "python", APPLICATION / "requirements.txt")
    pip = bin_folder / "pip"
    pip.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(places.CHECKOUT)!r})\n"
        "from devtools import environment\nfrom pathlib import Path\n"
        f"environment.install({str(bin_folder / 'python')!r}, *sys.argv[2:])\n"
    )
    pip.chmod(0o755)
    (bin_folder / "study-ingest").symlink_to(environment.bin_folder() / "study-ingest")
    return bin_folder


@pytest.fixture
async def databases(empty_database_url: str) -> AsyncIterator[tuple[str, str]]:
    """The application's database, and that of its tests."""
    tests = f"{empty_database_url}_tests"
    await administer(f"CREATE DATABASE {tests.rpartition('/')[2]}")
    yield empty_database_url, tests
    await administer(f"DROP DATABASE {tests.rpartition('/')[2]} WITH (FORCE)")


@pytest.fixture
async def reader(
    programs: Path, databases: tuple[str, str], bare_broker: Broker, tmp_path: Path
) -> AsyncIterator[Reader]:
    folder = tmp_path / "quiz-app"
    caches = shutil.ignore_patterns("__pycache__", ".*_cache")
    shutil.copytree(APPLICATION, folder, ignore=caches)
    (port,) = free_ports(1)
    outside = [part for part in os.environ["PATH"].split(":") if ".venv" not in part]
    quiz, tests = (url.replace("postgresql:", "postgresql+asyncpg:") for url in databases)
    theirs = {name: text for name, text in os.environ.items() if not name.startswith("INGEST_")}
    theirs.pop("PYTHONPATH", None)
    shell = subprocess.Popen(  # noqa: ASYNC220  # it starts at once
        ["bash"],
        cwd=folder,
        env=theirs
        | {
            "PATH": ":".join([str(programs), *outside]),
            "HOME": str(tmp_path),
            "STUDY_INGEST": str(places.CHECKOUT),
            "QUIZ_DATABASE_URL": quiz,
            "QUIZ_TEST_DATABASE_URL": tests,
            "INGEST_AMQP_URL": bare_broker.settings.amqp_url.get_secret_value(),
            "INGEST_MANAGEMENT_URL": os.environ["INGEST_MANAGEMENT_URL"],
            "UVICORN_PORT": str(port),
            "GIT_AUTHOR_NAME": "a reader",
            "GIT_AUTHOR_EMAIL": "reader@example.org",
            "GIT_COMMITTER_NAME": "a reader",
            "GIT_COMMITTER_EMAIL": "reader@example.org",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert shell.stdin is not None
    shell.stdin.write(
        "git init --quiet; printf '__pycache__/\\n*.log\\n*.csv\\n.pytest_cache/\\n' > .gitignore\n"
        "git add --all; git commit --quiet --message 'The application'\n"
    )
    yield Reader(shell, folder, f"http://127.0.0.1:{port}")
    with suppress(ProcessLookupError):
        os.killpg(shell.pid, signal.SIGKILL)
    shell.communicate()
    async with Accounts(bare_broker.settings) as accounts:
        if VIEWER in await accounts.users():
            await accounts.delete_user(VIEWER)


@pytest.fixture
async def stored(databases: tuple[str, str]) -> AsyncIterator[asyncpg.Connection]:
    """The application's database."""
    connection = await asyncpg.connect(databases[0])
    yield connection
    await connection.close()


@pytest.fixture
def eyes(request: pytest.FixtureRequest) -> Browser | None:
    """A real browser, where this machine has one."""
    try:
        found: Browser = request.getfixturevalue("browser")
    except pytest.skip.Exception:
        return None
    return found


class User:
    """Somebody who plays, with a browser without JavaScript."""

    def __init__(self, url: str, stored: asyncpg.Connection) -> None:
        self.http = httpx.AsyncClient(base_url=url, follow_redirects=True, trust_env=False)
        self._stored = stored

    async def sign_in(self, name: str) -> None:
        async with asyncio.timeout(PATIENCE):
            while True:  # until the application has started
                with suppress(httpx.TransportError):
                    await self.http.post("/sign-in", data={"name": name})
                    return
                await asyncio.sleep(0.05)

    async def home(self) -> str:
        return (await self.http.get("/")).raise_for_status().text

    async def play(self, slug: str, *, right: bool) -> None:
        page = (await self.http.get(f"/topics/{slug}")).text
        asked = dict.fromkeys(re.findall(r'name="([0-9a-f-]{36})"', page))
        answers = {
            str(row["id"]): str(row["answer"]) if right else ""
            for row in await self._stored.fetch(
                "SELECT id, answer FROM questions WHERE id = ANY($1::uuid[])", [*map(UUID, asked)]
            )
        }
        done = await self.http.post(f"/topics/{slug}", data=answers)
        assert f"{5 * right} of 5 are right" in done.text


@pytest.fixture
async def user(reader: Reader, stored: asyncpg.Connection) -> AsyncIterator[User]:
    found = User(reader.url, stored)
    yield found
    await found.http.aclose()


async def test_the_page_from_its_beginning_to_its_end(
    reader: Reader,
    user: User,
    stored: asyncpg.Connection,
    bare_broker: Broker,
    eyes: Browser | None,
) -> None:
    async def count(query: str) -> int:
        return int(await stored.fetchval(query))

    said = await reader.follow("Before you begin")
    assert "7 passed" in said, said
    before = await relations(stored)
    await user.sign_in(USER)
    first = await user.home()
    assert "Due today" not in first and first.count('class="number"') == 2 + 2 * 3
    await look(eyes, reader, "before")

    for section in ("1. Map your ids", "2. Create the tables and the queues"):
        said = await reader.follow(section)
    assert "Nothing in the content" in said, said
    assert await relations(stored) == before  # all of it is elsewhere
    assert await stored.fetchval("SELECT version_num FROM alembic_version") == "0004"

    await reader.follow("3. Record what users answer")
    await user.sign_in("nina")  # who is new
    await user.play("sums", right=True)
    history = "SELECT count(*) FROM study.study_history"
    await until(lambda: count(history), (5).__eq__)

    said = await reader.follow("4. Bring in the old answers")
    assert "The file has 2005 answers of 21 users in 401 sessions." in said, said
    assert "Added 400 sessions. 1 were already there" in said, said
    assert await count(history) == await count("SELECT count(*) FROM answers") == 2_005
    assert await count("SELECT count(*) FROM study.ingest_dead_letters") == 0
    assert await count("SELECT count(*) FROM study.outbox WHERE exchange = 'study.followups'") == 0

    await reader.follow("5. Show what is due, and what is known")
    await user.sign_in(USER)
    shown = await user.home()
    due = await stored.fetch(
        "SELECT prompt FROM study.study_due JOIN study.numbers AS mine ON mine.id = user_id"
        " JOIN users ON users.id = mine.uuid AND users.name = $1"
        " JOIN study.numbers AS its ON its.id = study_question_id"
        " JOIN questions ON questions.id = its.uuid ORDER BY retrievability, its.id LIMIT 10",
        USER,
    )
    assert len(due) > 3
    assert re.findall(r'<a href="/topics/[a-z-]+">(What[^<]*)</a>', shown) == [
        row["prompt"] for row in due
    ]
    assert "What you know" in shown and shown.count("<meter") == 3
    await look(eyes, reader, "after")

    await reader.follow("6. Take the jobs")
    unreadable = [("[", JOB), ('{"user_id": "?", "questions": []}', JOB), ("{}", f"{JOB}2")]
    for body, kind in unreadable:
        await bare_broker.publish(
            body, exchange=amqp.FOLLOWUPS_EXCHANGE, routing_key="review.requested", type=kind
        )
    await until(lambda: count("SELECT count(*) FROM unreadable_jobs"), (len(unreadable)).__eq__)
    kept = await stored.fetch("SELECT convert_from(body, 'UTF8'), type FROM unreadable_jobs")
    assert sorted(map(tuple, kept)) == sorted(unreadable)
    await user.sign_in("nina")
    for right in (True, True, True, False):  # each question once, and then wrong
        await user.play("sums", right=right)
    await until(lambda: count("SELECT count(*) FROM reviews"), (1).__eq__)
    (review,) = await stored.fetch("SELECT name, questions FROM reviews JOIN users ON id = user_id")
    assert review["name"] == "nina" and review["questions"].count("-") == 5 * 4

    said = await reader.follow("7. Run your tests")
    assert "7 passed" in said, said

    said = await reader.follow("Back out again")
    assert "7 passed" in said, said
    assert await relations(stored) == before
    assert await count("SELECT count(*) FROM pg_namespace WHERE nspname = 'study'") == 0
    assert await count("SELECT count(*) FROM answers") == 2_025 + 5 * (eyes is not None)
    await user.sign_in(USER)
    assert await user.home() == first
    await look(eyes, reader, "backed-out")


async def relations(stored: asyncpg.Connection) -> list[tuple[str, ...]]:
    """All that is in the schema of the application."""
    found = await stored.fetch(
        "SELECT relname, relkind::text, coalesce(attname, '') AS attname, coalesce(tgname, '')"
        " AS tgname FROM pg_class LEFT JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0"
        " AND NOT attisdropped LEFT JOIN pg_trigger ON tgrelid = pg_class.oid AND NOT tgisinternal"
        " AND tgname <> 'give_number' WHERE relnamespace = 'public'::regnamespace"
        " ORDER BY 1, 2, 3, 4"
    )
    return [tuple(row) for row in found]


async def look(eyes: Browser | None, reader: Reader, name: str) -> None:
    """Signs in with a real browser, and plays a round there once something is due."""
    if eyes is None:
        return
    pictures = os.environ.get("SCREENSHOTS")
    home = "http://127.0.0.1:" + reader.url.rpartition(":")[2]
    await eyes.do(
        f"state.page ??= await context.newPage(); await state.page.goto('{home}/sign-in');"
        f"await state.page.fill('input[name=name]', '{IN_A_BROWSER}');"
        "await state.page.click('button');"
        "await state.page.waitForSelector('#topics')"
    )
    headings = await eyes.do("return page.$$eval('h2', (all) => all.map((h) => h.innerText))")
    if name == "after":
        assert headings == ["Due today", "What you know", "Topics"]
        widths = "page.$$eval('meter', (all) => all.map((m) => m.getBoundingClientRect().width))"
        assert min(await eyes.do(f"return {widths}")) > 20
        assert await eyes.do("return page.$$eval('#due li', (all) => all.length)") > 3
    else:
        assert headings == ["Topics"]
    if pictures:
        await eyes.do(f"await page.screenshot({{path: '{pictures}/quiz-{quote(name)}.png'}})")
    if name == "after":
        await eyes.do(
            "await page.click('#due a'); await page.click('form button');"
            "await page.waitForSelector('h1:text(\"of 5 are right\")')"
        )
