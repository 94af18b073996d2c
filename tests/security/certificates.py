"""Certificates made for a test: an authority, and servers that it vouches for."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificate:
    """Files in PEM."""

    certificate: Path
    key: Path


class Authority:
    """An authority of the test's own, in `folder`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._authority = trustme.CA(organization_name=name)
        self.name = name
        self.own = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
        self._authority.cert_pem.write_to_path(self.own.certificate)
        self._authority.private_key_pem.write_to_path(self.own.key)

    def vouch(self, name: str, host: str, *, days: int = 1) -> Certificate:
        """A certificate for `host`, an address or a name; negative `days`: expired."""
        now = datetime.now(UTC)
        made = self._authority.issue_cert(
            host,
            common_name=name,
            not_before=now - timedelta(days=2),
            not_after=now + timedelta(days=days),
        )
        found = Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        made.cert_chain_pems[0].write_to_path(found.certificate)
        made.private_key_pem.write_to_path(found.key)
        return found
