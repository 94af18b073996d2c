"""The steps of README and docs/viewers.md work as they stand, pasted in order into a shell.

Each page is walked in a copy of the checkout with an environment and servers of its own, by a
script that knows nothing but the page. At the end nothing of it runs any more.
"""

import re
from pathlib import Path

import pytest

from devtools import places
from tests.newcomer import Newcomer, needs_servers_of_its_own, newcomer

pytestmark = needs_servers_of_its_own


def paste(somebody: Newcomer, page: str) -> str:
    """All that the page's shell blocks print."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    program = "\n".join(text for language, text in blocks if language == "python")
    (somebody.checkout / "phone.py").write_text(program)
    steps = "\n".join(text for language, text in blocks if language == "sh")
    return somebody.run("bash", given=steps)


@pytest.mark.parametrize(
    ("page", "ends"),
    [
        ("README.md", [r'"status":"ingested"']),
        ("docs/viewers.md", [r"^ingested None$", r"^ingested$"]),
    ],
)
def test_a_page_pasted_in_order_ends_with_ingested_and_everything_stopped(
    tmp_path: Path, page: str, ends: list[str]
) -> None:
    with newcomer(tmp_path) as somebody:
        said = paste(somebody, (places.CHECKOUT / page).read_text())
        for end in ends:
            assert re.search(end, said, re.MULTILINE), said
        assert somebody.processes() == [], said
        assert (somebody.home / "pair").is_dir()
