"""Certificates made for a test by `openssl`: an authority, and servers that it vouches for."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Certificate:
    """Files in PEM."""

    certificate: Path
    key: Path


class Authority:
    """An authority of the test's own, in `folder`."""

    def __init__(self, folder: Path, name: str) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed")
        self._folder = folder
        self.name = name
        key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
        _openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", f"/CN={name}", "-keyout", key, "-out", certificate),
            *("-addext", "keyUsage=critical,keyCertSign"),
        )
        self.own = Certificate(certificate, key)

    def vouch(self, name: str, host: str, *, days: int = 1) -> Certificate:
        """A certificate for `host` ("IP:127.0.0.1", "DNS:..."); negative `days`: expired."""
        folder = self._folder
        key, request, certificate = (folder / f"{name}.{kind}" for kind in ("key", "csr", "pem"))
        extensions = folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={host}\n")
        _openssl(
            *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"),
            *("-keyout", key, "-out", request),
        )
        _openssl(
            *("x509", "-req", "-in", request, "-CA", self.own.certificate, "-CAkey", self.own.key),
            *("-CAcreateserial", "-days", str(days), "-extfile", extensions, "-out", certificate),
        )
        return Certificate(certificate, key)


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=30)
