"""What the broker must prove of itself, by the words of its URL."""

import ssl
from base64 import b64decode
from collections.abc import Mapping

from worker.errors import SettingsError


def context(words: Mapping[str, str]) -> ssl.SSLContext:
    """A context that verifies the server, as the client makes one for AMQP.

    Raises `SettingsError` when a file that the URL names can't be used.
    """
    data = b64decode(words["cadata"]) if "cadata" in words else None
    named = " or ".join(
        word for word in ("cafile", "capath", "cadata", "certfile") if word in words
    )
    try:
        made = ssl.create_default_context(
            cafile=words.get("cafile"), capath=words.get("capath"), cadata=data
        )
        if "certfile" in words:
            # Never asks at a terminal, as the library would for a key with a password.
            made.load_cert_chain(words["certfile"], words.get("keyfile"), password="")
    except (OSError, ValueError) as error:  # the library's own errors are OSErrors
        why = (
            error.strerror
            if isinstance(error, OSError) and error.strerror
            else type(error).__name__
        )
        raise SettingsError(
            f"INGEST_AMQP_URL names a {named} that can't be used ({why})",
            "correct it.",
        ) from None
    return made
