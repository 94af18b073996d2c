"""A viewer that uses AMQP 1.0, which RabbitMQ 4 supports by default: a real client, in Node.

A worker receives what it publishes by AMQP 0-9-1, which can't carry all of it.
"""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from devtools.places import in_home
from devtools.state import locked
from schemas import amqp

_SCRIPT: Final = Path(__file__).with_suffix(".mjs")
_CLIENT: Final = "rhea@^3.0.5"
_INSTALL: Final = ("npm", "install", "--no-audit", "--no-fund", "--no-package-lock", _CLIENT)
_PATIENCE: Final = 120.0

Message = Mapping[str, Any]
"""A message in the form that the script takes."""


def client() -> Path | None:
    """The folder with the client, which is installed once. None without Node or a network."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return None
    folder = in_home("amqp10")
    with locked(in_home() / "amqp10.lock"):
        if not (folder / "node_modules" / "rhea").exists():
            (folder / "package.json").write_text('{"private": true}\n')
            done = subprocess.run(  # noqa: S603  # a constant command
                _INSTALL, cwd=folder, capture_output=True, check=False
            )
            if done.returncode:
                return None
        shutil.copyfile(_SCRIPT, folder / _SCRIPT.name)
    return folder


def speaks(version: str) -> bool:
    """Whether a RabbitMQ of this version supports it without configuration."""
    return int(version.partition(".")[0]) >= 4


async def publish(
    folder: Path, url: str, viewer: str, messages: Sequence[Message]
) -> tuple[list[str], str]:
    """Publishes batches of `viewer` at an AMQP URL. Returns the outcomes, and the client's
    complaints.

    An outcome is `accepted`, `rejected`, `released`, `modified` or `unanswered`.
    """
    at = urlsplit(url)
    key = quote(amqp.attempts_key(viewer), safe="")
    asked = {
        "connection": {
            "host": at.hostname,
            "port": at.port,
            "username": unquote(at.username or "guest"),
            "password": unquote(at.password or "guest"),
            "hostname": f"vhost:{unquote(at.path[1:]) or '/'}",
        },
        "address": f"/exchanges/{amqp.INGEST_EXCHANGE}/{key}",
        "messages": list(messages),
    }
    process = await asyncio.create_subprocess_exec(
        "node",
        _SCRIPT.name,
        cwd=folder,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_PATIENCE):
            said, complaints = await process.communicate(json.dumps(asked).encode())
    except BaseException:
        process.kill()
        await process.wait()
        raise
    outcomes: list[str] = json.loads(said or "[]") or ["unanswered"] * len(messages)
    return outcomes, complaints.decode(errors="replace").strip()
