"""How this machine reaches its package indexes, according to pip's configuration, translated for uv
and apt.

People behind a proxy, with their own certificate or with their own index have configured pip, and
need not configure anything else.
"""

import configparser
import os
import sys
from collections.abc import Mapping
from pathlib import Path

# pip's name: uv's, for what is passed on as it stands
_AS_IT_STANDS = {
    "index-url": "UV_DEFAULT_INDEX",
    "timeout": "UV_HTTP_TIMEOUT",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
}
# and for lists, which pip parts by spaces or lines
_LISTS = {
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
}


def pip_configuration(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The configuration for `pip install`, by pip's rules: files, then PIP_* variables.

    A file that is not readable counts as empty, because pip itself will complain about it.
    """
    found: dict[str, str] = {}
    for section in ("global", "install"):
        for file in _files(environ):
            parser = configparser.RawConfigParser()
            try:
                parser.read(file)
            except (OSError, UnicodeDecodeError, configparser.Error):
                continue
            if parser.has_section(section):
                found |= {name.replace("_", "-"): text for name, text in parser.items(section)}
    for name, text in environ.items():
        if name.startswith("PIP_"):
            found[name.removeprefix("PIP_").lower().replace("_", "-")] = text
    return {name: text.strip() for name, text in found.items() if text.strip()}


def says_yes(text: str) -> bool:
    """Whether pip interprets this value of a switch as "on"."""
    return text.lower() in ("1", "true", "yes", "on", "y", "t")


def for_uv(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment in which uv finds what pip would find. Settings for uv itself take
    precedence.
    """
    pip = pip_configuration(environ)
    said = {variable: pip[name] for name, variable in _AS_IT_STANDS.items() if name in pip}
    for name, (variable, separator) in _LISTS.items():
        if name in pip:
            said[variable] = separator.join(pip[name].split())
    if "proxy" in pip:
        said["ALL_PROXY"] = said["HTTP_PROXY"] = said["HTTPS_PROXY"] = pip["proxy"]
    # pip takes a package from whichever index has the version; here all are held to their hashes.
    said["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if any(name.startswith("UV_") and "INDEX" in name for name in environ):
        said = {name: text for name, text in said.items() if "INDEX" not in name}
    ours = {name: text for name, text in environ.items() if name != "VIRTUAL_ENV"}
    for proxy in ("all_proxy", "http_proxy", "https_proxy"):
        if proxy in ours or proxy.upper() in ours:
            said.pop(proxy.upper(), None)
    return {**said, **ours}


def for_apt(configured: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Settings for apt by name, for those not `configured` (as `apt-config dump` prints them)."""
    pip = pip_configuration(environ)
    said = {}
    for scheme in ("http", "https"):
        asked = (f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy")
        if "proxy" in pip and not any(map(environ.get, asked)):
            said[f"Acquire::{scheme}::Proxy"] = pip["proxy"]
    if "cert" in pip:
        said["Acquire::https::CAInfo"] = pip["cert"]
    there = configured.lower()
    return {name: text for name, text in said.items() if f"\n{name.lower()} " not in f"\n{there}"}


def _files(environ: Mapping[str, str]) -> list[Path]:
    """pip's configuration files. Later ones take precedence."""
    given = environ.get("PIP_CONFIG_FILE")
    if given == os.devnull:
        return []
    user = Path(environ.get("HOME") or "/")
    shared = (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
    own = Path(environ.get("XDG_CONFIG_HOME") or user / ".config")
    return [
        *(Path(folder, "pip/pip.conf") for folder in reversed(shared)),
        Path("/etc/pip.conf"),
        user / ".pip/pip.conf",
        own / "pip/pip.conf",
        Path(sys.prefix, "pip.conf"),
        *([Path(given)] if given else []),
    ]
