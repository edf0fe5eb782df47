"""The server set-up, as far as it can be checked without a Docker engine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "docker"
ROOT = FOLDER.parent


@pytest.fixture
def services() -> dict[str, dict]:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]


def test_every_service_can_be_built_or_pulled(services):
    targets = set(re.findall(r"^FROM \S+ AS (\w+)$", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE))
    assert set(services) == {"db", "tracking", "worker"}
    for service in services.values():
        if "build" in service:
            assert service["build"]["target"] in targets
            assert (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        for other in service.get("depends_on", {}):
            assert "healthcheck" in services[other]


def test_what_is_copied_or_mounted_is_there(services):
    for sources in re.findall(r"^COPY (.+) \S+$", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
    named = yaml.safe_load((FOLDER / "compose.yaml").read_text())["volumes"]
    for service in services.values():
        for mount in service.get("volumes", []):
            source = mount.rsplit(":ro", 1)[0].rsplit(":", 1)[0]
            assert source in named or source.startswith("${") or (FOLDER / source).exists(), source


def test_mlflow_knows_its_options(services):
    from mlflow.cli import cli

    program, command, *arguments = services["tracking"]["command"]
    assert program == "mlflow"
    context = cli.commands[command].make_context(command, list(arguments), resilient_parsing=False)
    assert context.params["allowed_hosts"].split(",")[0] == services["worker"]["environment"]["MLFLOW_TRACKING_URI"][7:]


def test_the_tracking_port_is_not_open_to_the_network(services):
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_the_extras_exist():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (installed,) = re.findall(r'"\.\[(.+)\]"', (FOLDER / "Dockerfile").read_text())
    assert set(installed.split(",")) <= set(extras)
