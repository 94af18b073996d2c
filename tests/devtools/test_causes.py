"""The cause of a failed step is found in the lines that pip, uv, apt and the kernel write."""

from pathlib import Path

import pytest

from devtools.causes import failure

LOG = Path("/log")


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError("
            "'...: Failed to establish a new connection: [Errno -3] Temporary failure in name "
            "resolution')': /simple/uv/\nERROR: No matching distribution found for uv==1",
            "there is no network",
        ),
        (
            "error: Failed to fetch: `https://index/simple/ruff/`\n"
            "  Caused by: error sending request for url (https://index/simple/ruff/)\n"
            "  Caused by: dns error: failed to lookup address information: Try again",
            "there is no network",
        ),
        (
            "Err:1 http://mirror bookworm InRelease\n  Temporary failure resolving 'mirror'",
            "there is no network",
        ),
        (
            "WARNING: Retrying after connection broken by 'SSLError(SSLCertVerificationError(1, "
            "'[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local "
            "issuer certificate'))'\nERROR: No matching distribution found for uv==1",
            "the server's certificate can't be trusted",
        ),
        (
            "  Caused by: client error (Connect)\n  Caused by: invalid peer certificate: Unknown"
            "Issuer",
            "the server's certificate can't be trusted",
        ),
        (
            "E: Failed to fetch https://m/x.deb  Certificate verification failed: The certificate "
            "is NOT trusted.",
            "the server's certificate can't be trusted",
        ),
        (
            "ERROR: Could not install packages due to an OSError: Could not find a suitable TLS CA "
            "certificate bundle, invalid path: /ca.pem",
            "the server's certificate can't be trusted",
        ),
        ("ProxyError('Cannot connect to proxy.', OSError('... 407'))", "the proxy refuses"),
        ("  Caused by: tcp connect error: Connection refused (os error 111)", "doesn't answer"),
        ("W: Failed to fetch http://m/InRelease  404  Not Found [IP: 1.2.3.4 80]", "t answer"),
        ("error: HTTP status client error (403 Forbidden) for url (https://i)", "t answer"),
        ("ERROR: Could not find a version\nERROR: No matching distribution found for x", "else"),
        ("mkdir: cannot create directory '/x': Permission denied", "can't be written to"),
        ("error: failed to open file `/x`: Read-only file system (os error 30)", "written to"),
    ],
)
def test_the_cause_is_named(output: str, cause: str) -> None:
    said = failure("fetching", output, "never mind", LOG)
    assert cause in said
    assert "never mind" not in said
    assert said.endswith(" (log: /log).") and "\n" not in said


def test_another_cause_is_told_in_its_own_words() -> None:
    said = failure("apt", "fine\nE: no such package\nbye\n", "look at it", LOG)
    assert said == "apt failed (E: no such package): look at it (log: /log)."
