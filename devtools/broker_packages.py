"""RabbitMQ and its Erlang from Debian's packages: which ones, and how they run from any folder.

It needs neither root nor an installed RabbitMQ.
"""

from pathlib import Path

from devtools import debian, relinked

ERLANG = (
    "asn1 base crypto eldap inets mnesia os-mon parsetools public-key runtime-tools ssl "
    "syntax-tools tools xmerl"
)
# What Erlang of a newer suite is linked with, and an older suite has in too old a version.
LIBRARIES = "libc6 libstdc++6 libgcc-s1 libtinfo6 libssl3t64 zlib1g libzstd1 libsystemd0 libcap2"


def unpacked(suite: str) -> Path:
    """The root folder of RabbitMQ and Erlang of this suite, which are downloaded at the first call.

    Raises DevError if apt can't get them.
    """
    newer = debian.is_newer(suite)
    packages = ["rabbitmq-server", *(f"erlang-{part}" for part in ERLANG.split())]
    if newer:
        packages += LIBRARIES.split()
    elif not any(Path("/usr/lib").glob("*/libcrypto.so.3")):
        packages.append("libssl3t64|libssl3")

    def finish(fresh: Path, root: Path) -> None:
        _relocate(fresh, root)
        if newer:
            erlang = fresh / "usr/lib/erlang"
            files = [*erlang.glob("erts-*/bin/*"), *erlang.glob("lib/*/priv/*/*")]
            relinked.relink(fresh, root, files)

    name = f"rabbitmq-{suite}"
    return debian.unpacked(
        name, "RabbitMQ", packages, megabytes=50, on_disk=190, suite=suite, finish=finish
    )


def _relocate(fresh: Path, root: Path) -> None:
    """Writes the final folder into Debian's `erl`, which contains the path of its own folder."""
    erlang = fresh / "usr/lib/erlang"
    for script in (*erlang.glob("bin/*"), *erlang.glob("erts-*/bin/*")):
        content = script.read_bytes()
        if content.startswith(b"#!") and not script.is_symlink():
            script.write_bytes(content.replace(b"/usr/lib/erlang", bytes(root / "usr/lib/erlang")))
