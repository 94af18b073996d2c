"""`due`: which questions it lists, in which order, at which time."""

from datetime import UTC, datetime, timedelta

import pytest

from tests import factories as make
from tests.factories import right, sent, unsure, wrong
from tests.worker.operate.commands import invoke
from tests.worker.operate.conftest import Site
from tests.worker.operate.test_answers import one
from worker.domain.policy import Policy
from worker.errors import NoHistory
from worker.ingest.transaction import Ingest

pytestmark = pytest.mark.broker

USER = 42


async def test_it_lists_what_is_due_most_forgotten_first(site: Site) -> None:
    forgotten, shaky, fresh, withdrawn = await make.publish(site.engine, 4, user_id=USER)
    now = datetime.now(UTC)
    long_ago = now - timedelta(days=30)
    await Ingest(site.engine, Policy())(
        [
            sent(wrong(forgotten, long_ago), unsure(shaky, long_ago), wrong(withdrawn, long_ago)),
            sent(right(fresh, now - timedelta(minutes=1))),
        ]
    )
    await make.withdraw(site.engine, withdrawn)

    result = await invoke(site, "due", "--user", "42", "--json")
    said = one("due", result.stdout)
    assert said["count"] == 2
    assert [each["pub_ids"] for each in said["due"]] == [[forgotten.pub_id], [shaky.pub_id]]
    assert said["due"][0]["retrievability"] < said["due"][1]["retrievability"] < 1

    result = await invoke(site, "due", "--user", "42", "--limit", "1")
    assert forgotten.pub_id in result.stdout and shaky.pub_id not in result.stdout
    assert result.stdout.endswith("2 questions are due for user 42.\n")

    later = (now + timedelta(days=60)).isoformat()
    said = one("due", (await invoke(site, "due", "--user", "42", "--at", later, "--json")).stdout)
    assert said["count"] == 3
    earlier = (long_ago - timedelta(days=1)).isoformat()
    result = await invoke(site, "due", "--user", "42", "--at", earlier, "--json")
    assert one("due", result.stdout)["count"] == 0


async def test_an_unknown_user_and_a_time_that_is_none_are_errors(site: Site) -> None:
    result = await invoke(site, "due", "--user", "42")
    assert isinstance(result.exception, NoHistory)
    for time in ("yesterday", "7d", "2026-13-01", "0001-01-01T00:00+14:00"):
        result = await invoke(site, "due", "--user", "42", "--at", time)
        assert result.exit_code == 2 and "2026-11-28T09:00" in result.output, time
