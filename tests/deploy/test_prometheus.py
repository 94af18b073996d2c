"""The alerts fire when they should, and every metric in alerts and dashboard exists."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import prometheus_client
import pytest

from devtools import debian
from devtools.errors import DevError
from devtools.rabbitmq import RabbitMQ
from worker.telemetry import metrics

CHECKOUT = Path(__file__).parents[2]
ALERTS = CHECKOUT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = CHECKOUT / "deploy" / "grafana" / "dashboards" / "study-ingest.json"
RUNBOOK = (CHECKOUT / "docs" / "operators.md").read_text()
NAMES = re.findall(r"- alert: (\w+)", ALERTS.read_text())


@pytest.fixture(scope="module")
def promtool() -> str:
    """On PATH, else out of Debian's package, kept with the other tools."""
    if found := shutil.which("promtool"):
        return found
    suite = debian.own_suite()
    if suite is None:
        pytest.skip("promtool is not installed, and this is no Debian to take it from")
    packages = ["promtool|prometheus"]  # a package of its own since Debian 13
    root = debian.unpacked("promtool", "promtool", packages, suite=suite, megabytes=40, on_disk=200)
    return str(root / "usr/bin/promtool")


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def expressions() -> list[str]:
    """Every expression of the dashboard, as Prometheus gets it."""
    dashboard = json.loads(DASHBOARD.read_text())
    shown = [target for panel in dashboard["panels"] for target in panel.get("targets", ())]
    values = [
        re.fullmatch(r"label_values\((.+), \w+\)", each["definition"])
        for each in dashboard["templating"]["list"]
        if each["type"] == "query"
    ]
    return [
        *(
            each["expr"].replace("$__rate_interval", "5m").replace("$viewer", "phone-3f2a")
            for each in (*shown, *dashboard["annotations"]["list"])
        ),
        *(each[1] for each in values if each),
    ]


def test_the_dashboard_leads_to_the_runbook_and_says_what_is_bad() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    links = [link["url"] for each in (dashboard, *panels) for link in each.get("links", ())]
    anchors = {heading.lower() for heading in re.findall(r"^#+ (\w+)$", RUNBOOK, re.MULTILINE)}
    for link in links:
        document, _, anchor = link.partition("#")
        assert document.startswith("${console}/") or (
            document == "${docs}/operators.md" and anchor in anchors
        ), link
    for panel in panels:
        if panel["type"] == "stat":
            assert len(panel["fieldConfig"]["defaults"]["thresholds"]["steps"]) > 1, panel["title"]
            assert panel["links"], panel["title"]
    # No two panels lie on each other.
    places = [
        (x, y)
        for each in panels
        for x in range(each["gridPos"]["x"], each["gridPos"]["x"] + each["gridPos"]["w"])
        for y in range(each["gridPos"]["y"], each["gridPos"]["y"] + each["gridPos"]["h"])
    ]
    assert len(places) == len(set(places))
    assert len({each["id"] for each in panels}) == len(panels)


def test_each_alert_rings_for_its_cause_and_none_on_an_ordinary_day(promtool: str) -> None:
    run(promtool, "check", "config", ALERTS.with_name("prometheus.yml"))
    run(promtool, "test", "rules", "alerts_test.yml")
    tested = (Path(__file__).parent / "alerts_test.yml").read_text()
    for name in NAMES:
        assert f"- name: {name}\n" in tested and f"alertname: {name}, exp_alerts: []" in tested


def test_the_dashboard_s_expressions_can_be_read(promtool: str, tmp_path: Path) -> None:
    rules = [{"record": f"panel:{n}", "expr": expr} for n, expr in enumerate(expressions())]
    file = tmp_path / "rules.yml"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    run(promtool, "check", "rules", file)


def test_our_metrics_pass_prometheus_own_lint(promtool: str) -> None:
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=_own_exposition(),
        capture_output=True,
    )
    found = [line for line in done.stderr.decode().splitlines() if "study_ingest" in line]
    assert found == []


def _own_exposition() -> bytes:
    metrics.STAGE.labels("read")
    return b"".join(
        line + b"\n"
        for line in prometheus_client.generate_latest().splitlines()
        if b"_created" not in line
    )


@pytest.mark.parametrize("name", NAMES)
def test_each_alert_has_its_entry_in_the_runbook(name: str) -> None:
    assert re.search(rf"^#+ {name}$", RUNBOOK, re.MULTILINE)
    assert f"docs/operators.md#{name.lower()}\n" in ALERTS.read_text()


def named() -> set[str]:
    """Every metric that an alert or the dashboard asks for."""
    rules = re.sub(r"annotations:.*?runbook:", "", ALERTS.read_text(), flags=re.DOTALL)
    asked = " ".join([*re.findall(r"expr: \|\n +(.+)", rules), *expressions()])
    return set(
        re.findall(r"\b(?:study_ingest|rabbitmq|process)_\w+", re.sub(r'"[^"]*"', "", asked))
    )


def ours() -> Iterator[str]:
    for family in prometheus_client.REGISTRY.collect():
        for suffix in ("", "_total", "_bucket", "_sum", "_count"):
            yield family.name + suffix


def test_every_metric_of_ours_that_is_asked_for_exists() -> None:
    asked = {name for name in named() if not name.startswith("rabbitmq")}
    assert asked and asked <= set(ours())


@pytest.mark.broker
def test_every_metric_of_the_broker_s_that_is_asked_for_exists() -> None:
    try:
        node = RabbitMQ(plugins=("rabbitmq_management", "rabbitmq_prometheus"))
    except DevError as error:
        pytest.skip(str(error))
    with node:
        port = node.port_of("rabbitmq_prometheus")
        api = f"http://guest:guest@127.0.0.1:{node.port_of('rabbitmq_management')}/api"
        with httpx.Client(trust_env=False, timeout=30) as http:
            queue = {"durable": True, "arguments": {"x-queue-type": "quorum"}}
            http.put(f"{api}/queues/%2F/study.attempts", json=queue).raise_for_status()
            plain = http.get(f"http://127.0.0.1:{port}/metrics").text
            configured = ALERTS.with_name("prometheus.yml").read_text()
            families = re.search(r"family: \[(.+)\]", configured)
            assert families is not None
            query = [("vhost", "/"), *(("family", name) for name in families[1].split(", "))]
            detailed = http.get(f"http://127.0.0.1:{port}/metrics/detailed", params=query).text
    there = set(re.findall(r"^# TYPE (\w+)", plain + "\n" + detailed, re.MULTILINE))
    asked = {name for name in named() if name.startswith("rabbitmq")}
    assert asked and asked <= there
