"""Finds the usual causes of a failed step in its output, each with what to do about it.

It knows the messages of pip, uv, apt and the kernel.
"""

import errno
import os
import re
from pathlib import Path

DISK_FULL = "the disk is full: free 1 GB where this checkout lies, and run ./dev again."

# The first match counts, so causes that lead to others come first.
_CAUSES = (
    (
        r"certificate.verify.failed|UnknownIssuer|invalid peer certificate"
        r"|certificate verification failed|certificate is NOT trusted|CA certificate bundle",
        "the server's certificate can't be trusted",
        "tell pip the authority's file (pip config set global.cert FILE), and run ./dev again",
    ),
    (
        r"ProxyError|tunnel connection failed|proxy authentication required|unsuccessful tunnel",
        "the proxy refuses",
        "correct the proxy in pip's configuration or in https_proxy, and run ./dev again",
    ),
    (
        r"name resolution|name or service not known|failed to lookup address|dns error"
        r"|(could not|failure) resolv|network is unreachable|no route to host",
        "there is no network",
        "see that this machine is online, and run ./dev again",
    ),
    (
        r"permission denied|read-only file system",
        "a folder can't be written to",
        "make it writable for this user, and run ./dev again",
    ),
    (
        r"connection refused|could not connect|unable to connect|timed out|timeout"
        r"|connection (was )?reset|error sending request|\b(40[0-9]|50[0-9])\b",
        "the index or mirror doesn't answer",
        "see that pip (or apt-get update) reaches it on this machine, and run ./dev again",
    ),
    (
        r"no matching distribution|not found in the package registry|no solution found"
        r"|unable to locate package|do not match the hashes|hash mismatch",
        "the index or mirror has something else",
        "name one that has the public packages in pip's (or apt's) configuration",
    ),
)


def is_disk_full(output: str) -> bool:
    """Whether a step failed because the disk is full."""
    return "No space left on device" in output or os.strerror(errno.EDQUOT) in output


def failure(name: str, output: str, otherwise: str, log: Path) -> str:
    """The sentence for a failed step: the cause, its own words, what to do, and the log.

    `otherwise` says what to do if the cause is not a usual one.
    """
    if is_disk_full(output):
        return DISK_FULL
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for pattern, cause, remedy in _CAUSES:
        found = [match for line in lines if (match := re.search(pattern, line, re.IGNORECASE))]
        if found:
            return f"{name} failed: {cause} ({_around(found[-1])}): {remedy} (log: {log})."
    telling = [line for line in lines if line.lower().startswith(("error", "e:", "fatal"))]
    last = (telling or lines or ["it said nothing"])[-1]
    return f"{name} failed ({last[:200]}): {otherwise} (log: {log})."


def _around(match: re.Match[str]) -> str:
    """The words that were found, with what stands beside them in their line."""
    start, end = max(0, match.start() - 80), match.end() + 80
    before, after = "..." if start else "", "..." if end < len(match.string) else ""
    return f"{before}{match.string[start:end]}{after}"
