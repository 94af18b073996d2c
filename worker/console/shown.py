"""How values are shown: the templates, and what they need to show others' words safely."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse

from worker import __version__
from worker.console.asked import AGE_WORDS, address
from worker.console.who import Role
from worker.operate.status.facts import sized

HERE: Final = Path(__file__).parent
SAID: Final = "study-console-said"
"""The cookie with one sentence about what was done, for the next page."""
_LONG: Final = 240
_PRETTY: Final = 200_000
_KEPT: Final = "\n\t"

NAVIGATION: Final = (
    ("/", "Overview"),
    ("/batches", "Batches"),
    ("/dead", "Dead letters"),
    ("/learners", "Learners"),
    ("/viewers", "Viewers"),
    ("/workers", "Workers"),
    ("/content", "Content"),
    ("/audit", "Audit"),
    ("/doctor", "Doctor"),
)


def told(given: object, longest: int = _LONG) -> str:
    """Somebody else's text in one line: cut, and without characters that could disguise it."""
    whole = str(given)
    shown = "".join(map(_visible, whole[:longest]))
    return shown if len(whole) <= longest else f"{shown}… ({len(whole):,} characters)"


def body(given: str, longest: int = 20_000) -> str:
    """Somebody else's text in its lines; see `told`."""
    shown = "".join(c if c in _KEPT else _visible(c) for c in given[:longest])
    return shown if len(given) <= longest else f"{shown}… ({len(given):,} characters)"


def _visible(c: str) -> str:
    return c if c.isprintable() else c.encode("unicode_escape").decode("ascii")


def when(at: datetime | None) -> Markup:
    """A moment, with the time since."""
    if at is None:
        return Markup("&ndash;")
    at = at.astimezone(UTC)
    full = Markup('<time datetime="{}">{}</time> <span class="soft">· {}</span>')
    now = datetime.now(UTC)
    since = f"in {duration((at - now).total_seconds())}" if at > now else f"{ago(at)} ago"
    return full.format(at.isoformat(), f"{at:%Y-%m-%d %H:%M:%S}", since)


def ago(at: datetime) -> str:
    """The time since a moment, in one unit."""
    return duration((datetime.now(UTC) - at).total_seconds())


def duration(seconds: float) -> str:
    """A time in one unit."""
    whole = max(int(seconds), 0)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if whole >= size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its word."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def sentence(given: str) -> Markup:
    """A sentence of the program's own with others' words in it: commands in it are set as code."""
    parts = told(given, 600).split("`")
    if len(parts) % 2 == 0:
        return escape("`".join(parts))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else escape(part)
        for place, part in enumerate(parts)
    )


def pretty(text: str) -> str:
    """A JSON text in lines, or the text as it is, also where it is long."""
    if len(text) > _PRETTY:
        return text
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


def bars(values: Iterable[float]) -> Markup:
    """A column for each value, as shapes that stretch with the page."""
    heights = [*values]
    most = max([*heights, 1e-9])
    rects = Markup("").join(
        Markup('<rect x="{}" y="{:.2f}" width="0.8" height="{:.2f}"/>').format(
            place + 0.1, 100 * (1 - value / most), 100 * value / most
        )
        for place, value in enumerate(heights)
        if value
    )
    return Markup(
        '<svg class="chart" viewBox="0 0 {} 100" preserveAspectRatio="none" aria-hidden="true">'
        "{}</svg>"
    ).format(max(len(heights), 1), rects)


_templates: Final = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    auto_reload=False,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters |= {
    "told": told,
    "body": body,
    "when": when,
    "ago": ago,
    "duration": duration,
    "pretty": pretty,
    "sentence": sentence,
    "sized": sized,
}
_templates.globals |= {
    "address": address,
    "ages": AGE_WORDS,
    "bars": bars,
    "counted": counted,
    "navigation": NAVIGATION,
    "version": __version__,
    "Role": Role,
}


def page(request: Request, template: str, code: int = 200, /, **values: Any) -> HTMLResponse:
    """A page for the person who asks, if anybody is signed in, with this HTTP status."""
    console = request.app.state.console
    person = getattr(request.state, "person", None)
    said = console.entrance.unseal("said", request.cookies.get(SAID, ""))
    values |= {
        "person": person,
        "form_seal": "" if person is None else console.entrance.form_seal(person),
        "said": said,
        "path": request.url.path,
        "here": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
        "now": datetime.now(UTC),
    }
    response = HTMLResponse(_templates.get_template(template).render(values), code)
    if said is not None:
        response.delete_cookie(SAID)
    return response
