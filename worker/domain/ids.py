"""Ids that are derived from a name, so that the same thing always gets the same id."""

from hashlib import sha1
from uuid import UUID

from asyncpg.pgproto.pgproto import UUID as DriverUuid


def derived_id(namespace: UUID, name: str) -> UUID:
    """The UUID version 5 (RFC 9562) of a name. It equals `uuid.uuid5`.

    It has the type of the database driver, because the standard library's UUID takes four times as
    long to create and to write, and a batch creates about ten of them.
    """
    digest = bytearray(sha1(namespace.bytes + name.encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    derived: UUID = DriverUuid(bytes(digest))
    return derived
