"""The files of deploy/: they parse, agree with the server's flags and with each other."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from app.__main__ import command_line
from app.processes.console import EXIT_MODEL, EXIT_PORT, EXIT_USAGE
from app.processes.httpserver import OPEN_FILES
from app.settings.config import Config

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = (DEPLOY / "fastpath.service").read_text()


def unit(name: str) -> list[str]:
    """The values of one setting of the systemd unit."""
    return re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)


def parse(arguments: list[str]) -> Config:
    return command_line().parse(arguments, {})[0]


def test_every_yaml_and_json_file_parses() -> None:
    files = [path for path in DEPLOY.rglob("*") if path.suffix in (".yaml", ".yml", ".json")]
    assert len(files) >= 6
    for path in files:
        text = path.read_text()
        assert json.loads(text) if path.suffix == ".json" else yaml.safe_load(text), path


def test_the_unit_waits_for_the_drain_and_for_the_supervisor() -> None:
    (command,) = unit("ExecStart")
    config = parse(command.split()[3:])
    assert unit("Type") == ["notify"] and unit("Restart") == ["on-failure"]
    assert int(unit("TimeoutStopSec")[0]) == config.server.drain_timeout + 10
    from app.processes.supervisor import Patience

    assert int(unit("WatchdogSec")[0]) > Patience().hang, "the server mends a silent engine itself, first"
    assert int(unit("LimitNOFILE")[0]) == OPEN_FILES
    never = {int(code) for code in unit("RestartPreventExitStatus")[0].split()}
    assert never == {EXIT_USAGE, EXIT_MODEL, EXIT_PORT}


def test_the_unit_is_one() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    # The program is not installed here; whatever else is wrong is told.
    done = subprocess.run(
        ["systemd-analyze", "verify", DEPLOY / "fastpath.service"], capture_output=True, text=True, timeout=30
    )
    faults = [line for line in done.stderr.splitlines() if "is not executable" not in line]
    assert not [line for line in faults if "fastpath" in line], faults


def test_compose_agrees_with_the_server_and_prometheus() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    service = compose["fastpath"]
    config = parse(service["command"])
    assert int(service["stop_grace_period"].rstrip("s")) > config.server.drain_timeout
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert any(volume.endswith(":/models:ro") for volume in service["volumes"])
    (scrape,) = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert scrape["static_configs"][0]["targets"] == [f"fastpath:{config.server.metrics_port}"]
    names = {entry.env for entry in _settings()}
    assert set(service["environment"]) <= names
    for mounts in (compose["prometheus"]["volumes"], compose["grafana"]["volumes"]):
        for mount in mounts:
            if mount.startswith("./"):
                assert (DEPLOY / mount.split(":")[0]).exists(), mount


def _settings() -> list:  # type: ignore[type-arg]
    from app.settings.options import table

    return list(table(Config()))


def test_the_image_runs_as_nobody_in_particular() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"^USER (?!0|root)\d+", text, re.MULTILINE)
    assert "\nSTOPSIGNAL SIGTERM\n" in text and "/health" in text.split("HEALTHCHECK")[1]
    assert 'ENTRYPOINT ["tini", "--"' in text
    names = {entry.env for entry in _settings()}
    assert set(re.findall(r"\bAPP_\w+", text)) <= names
    copied = set(re.findall(r"^COPY (\w+) \w+$", text, re.MULTILINE))
    allowed = set(re.findall(r"^!(\w+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE))
    assert copied <= allowed
    packages = re.search(r"packages = \[(.*?)\]", (DEPLOY.parent / "pyproject.toml").read_text(), re.DOTALL)
    assert packages is not None
    assert {name.split(".")[0] for name in re.findall(r'"([\w.]+)"', packages[1])} == copied


def test_nginx_lets_streams_through() -> None:
    text = (DEPLOY / "nginx.conf").read_text()
    settings = Config().http_settings()
    for line in (
        "proxy_buffering off;",
        "proxy_http_version 1.1;",
        "proxy_set_header X-Request-Id $request_id;",
    ):
        assert line in text
    (patience,) = re.findall(r"proxy_read_timeout (\d+)s;", text)
    assert int(patience) >= settings.request_timeout
    (body,) = re.findall(r"client_max_body_size (\d+)m;", text)
    assert int(body) << 20 == settings.max_body_bytes
    assert text.count("{") == text.count("}")


def test_the_alert_rules_are_rules() -> None:
    path = DEPLOY / "prometheus/alerts.yml"
    for rule in yaml.safe_load(path.read_text())["groups"][0]["rules"]:
        assert {"alert", "expr", "for", "labels", "annotations"} <= rule.keys()
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed: the expressions are not parsed")
    subprocess.run(["promtool", "check", "rules", path], check=True, timeout=30)
