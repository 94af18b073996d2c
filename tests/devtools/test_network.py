"""uv and apt use the network settings of pip."""

from pathlib import Path

import pytest

from devtools import network

ENVIRON = {"HOME": "/nowhere", "XDG_CONFIG_DIRS": "/nowhere", "PIP_CONFIG_FILE": "/dev/null"}


def environ(folder: Path, configuration: str, **variables: str) -> dict[str, str]:
    """Of somebody who has this pip.conf at home."""
    file = folder / "pip/pip.conf"
    file.parent.mkdir(exist_ok=True)
    file.write_text(configuration)
    found = {"HOME": "/nowhere", "XDG_CONFIG_DIRS": "/nowhere", "XDG_CONFIG_HOME": str(folder)}
    return found | variables


def test_variables_win_over_files_and_install_over_global(tmp_path: Path) -> None:
    pip_conf = "[install]\ntimeout = 2\n[global]\ntimeout = 1\ncert = /a\nindex_url = one\n"
    found = network.pip_configuration(environ(tmp_path, pip_conf, PIP_INDEX_URL="two"))
    assert found["timeout"] == "2"
    assert found["cert"] == "/a"
    assert found["index-url"] == "two"


def test_a_file_that_makes_no_sense_counts_as_empty(tmp_path: Path) -> None:
    nonsense = environ(tmp_path, "timeout = 1\n")
    assert "timeout" not in network.pip_configuration(nonsense)


def test_uv_learns_of_certificate_proxy_indexes_and_hosts(tmp_path: Path) -> None:
    pip_conf = """[global]
index-url = https://index/simple
extra-index-url = https://one/simple
    https://two/simple
find-links = /wheels
trusted-host = one two
cert = /ca.pem
proxy = http://proxy:3128
"""
    said = network.for_uv(environ(tmp_path, pip_conf))
    assert said["UV_DEFAULT_INDEX"] == "https://index/simple"
    assert said["UV_INDEX"] == "https://one/simple https://two/simple"
    assert said["UV_FIND_LINKS"] == "/wheels"
    assert said["UV_INSECURE_HOST"] == "one two"
    assert said["SSL_CERT_FILE"] == "/ca.pem"
    assert said["HTTPS_PROXY"] == said["HTTP_PROXY"] == "http://proxy:3128"


def test_settings_for_uv_itself_take_precedence(tmp_path: Path) -> None:
    pip_conf = "[global]\nindex-url = pips\nextra-index-url = more\nproxy = pips\n"
    said = network.for_uv(
        environ(tmp_path, pip_conf, UV_INDEX_URL="uvs", https_proxy="uvs", VIRTUAL_ENV="/v")
    )
    assert said["UV_INDEX_URL"] == "uvs"
    assert not {"UV_DEFAULT_INDEX", "UV_INDEX", "HTTPS_PROXY", "VIRTUAL_ENV"} & set(said)


@pytest.mark.parametrize("name", ["Acquire::http::Proxy", "Acquire::https::Proxy"])
def test_apt_learns_of_the_proxy_unless_it_has_one(name: str) -> None:
    pip = ENVIRON | {"PIP_PROXY": "http://proxy", "PIP_CERT": "/ca.pem"}
    assert network.for_apt("", pip)[name] == "http://proxy"
    assert network.for_apt("", pip)["Acquire::https::CAInfo"] == "/ca.pem"
    assert name not in network.for_apt(f'APT "";\n{name.lower()} "http://own";\n', pip)
    variable = f"{name.split('::')[1]}_proxy"
    assert name not in network.for_apt("", pip | {variable: "http://own"})
