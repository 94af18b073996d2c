"""PostgreSQL from Debian's packages, of any suite on any Debian: it brings its own C library."""

from pathlib import Path

from devtools import debian, relinked

VERSIONS = {"bookworm": 15, "trixie": 17}
"""The suites, and PostgreSQL's version in each of them."""

# What its programs are linked with, in all suites. "a|b" are the names in a newer and an older one.
LIBRARIES = (
    "libc6 libgcc-s1 libstdc++6 zlib1g libzstd1 liblz4-1 liblzma5 libssl3t64|libssl3 libxml2"
    " libicu76|libicu72 libpam0g libaudit1 libcap-ng0 libgssapi-krb5-2 libkrb5-3 libk5crypto3"
    " libkrb5support0 libcom-err2 libkeyutils1 libldap2|libldap-2.5-0 libsasl2-2 libsystemd0"
    " libcap2 libgcrypt20 libgpg-error0 libpq5 libreadline8t64|libreadline8 libtinfo6"
)


def unpacked(suite: str) -> Path:
    """The folder of the programs of this suite's PostgreSQL, downloaded at the first call.

    Raises DevError if apt can't get them.
    """
    version = VERSIONS[suite]
    names = (f"postgresql-{version}", f"postgresql-client-{version}", *LIBRARIES.split())
    folder = f"usr/lib/postgresql/{version}"

    def finish(fresh: Path, root: Path) -> None:
        relinked.relink(
            fresh, root, [*(fresh / folder).glob("bin/*"), *fresh.glob(f"{folder}/lib/*")]
        )

    root = debian.unpacked(
        f"postgres-{suite}",
        f"PostgreSQL {version}",
        names,
        megabytes=40,
        on_disk=150,
        suite=suite,
        finish=finish,
    )
    return root / folder / "bin"
