"""start the MLflow UI on this folder's runs."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import IO, Any

from medlight.errors import MedlightError, UsageError

EPILOG = """\
example:
  medlight ui
  medlight ui --host 0.0.0.0 --port 8080      # seen from other machines, by everybody who can reach the port

Ctrl-C ends it. Where MLFLOW_TRACKING_URI names a server, its address is printed and nothing is started."""

DEFAULT_PORT = 5000
PATIENCE = 120.0  # seconds until the server must answer; 10 is usual, a busy machine takes longer
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_EVERYWHERE = ("0.0.0.0", "::")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``medlight ui``."""
    parser.add_argument("--port", type=int, help=f"default: {DEFAULT_PORT}, or a free one where that is taken")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")


def run(args: argparse.Namespace) -> None:
    """Serve the UI until Ctrl-C; a tracking server's own address is only printed."""
    from medlight.tracking.store import require_store, tracking_uri

    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        print(f"the runs are on a server of their own: {uri}")
        return
    require_store()
    port = _choose_port(args.host, args.port)
    near = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(args.host, args.host)
    url = f"http://{f'[{near}]' if ':' in near and near[0] != '[' else near}:{port}"
    with _server(uri, args.host, port) as (process, log):
        _wait_for(url, process, log)
        for line in _studies(url):
            print(line)
        print(f"MLflow UI: {url}   (Ctrl-C ends it; runs are under 'Model training', at the top left)", flush=True)
        process.wait()
        raise MedlightError(f"the MLflow server stopped by itself: {_last_words(log)}")


def _studies(url: str, most: int = 5) -> list[str]:
    """A line for each of the studies worked on last, with the address of its runs.

    Without the last part of the address MLflow opens on its pages for language models, where no run is seen.
    """
    from medlight.tracking.store import client, reached

    with reached():
        found = client().search_experiments(order_by=["last_update_time DESC"], max_results=most + 1)
    studies = [(study.name, study.experiment_id) for study in found if study.name != "Default"][:most]
    return [f"{name}: {url}/#/experiments/{key}/runs?workflowType=machine_learning" for name, key in studies]


def _choose_port(host: str, asked: int | None) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    def free(port: int) -> int | None:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except PermissionError:
                raise UsageError(f"--port {port}: not allowed here; choose one above 1023") from None
            except socket.gaierror:
                raise UsageError(f"--host {host}: no such address on this machine") from None
            except OverflowError:
                raise UsageError(f"--port {port}: choose one from 1024 to 65535") from None
            except OSError as error:
                if error.errno == 99:  # EADDRNOTAVAIL
                    raise UsageError(f"--host {host}: no such address on this machine") from None
                return None
            return int(probe.getsockname()[1])

    found = free(DEFAULT_PORT if asked is None else asked)
    if found is not None:
        return found
    if asked is not None:
        raise UsageError(f"--port {asked}: taken by another program; leave --port out to get a free one")
    other = free(0)
    if other is None:
        raise MedlightError(f"no free port on {host}")
    print(f"port {DEFAULT_PORT} is taken by another program: using {other}")
    return other


@contextmanager
def _server(uri: str, host: str, port: int) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """Run ``mlflow server`` as the leader of a process group, and end the whole group on the way out."""
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # job runners for language models: eight processes, 1 GB
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", host]
    command += ["--port", str(port), "--workers", "1", "--no-serve-artifacts"]
    command += _allowed(host, port)
    with tempfile.TemporaryFile() as log, _signals_as_interrupt():
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process, log
        except KeyboardInterrupt:
            print("\nMLflow UI ended", flush=True)
        finally:
            _end_group(process)


def _allowed(host: str, port: int) -> list[str]:
    """Host headers and origins to answer to: this machine's names and addresses, and no other site's.

    MLflow's defaults do where only this machine can reach the port; who set MLflow's own variables is obeyed.
    """
    if host in _LOOPBACK or "MLFLOW_SERVER_ALLOWED_HOSTS" in os.environ:
        return []
    import psutil

    addresses = [entry.address.split("%")[0] for card in psutil.net_if_addrs().values() for entry in card]
    names = ["localhost", socket.gethostname(), socket.getfqdn(), host]
    names += [a for a in addresses if a.count(".") == 3] + [f"[{a}]" for a in addresses if "::" in a]
    known = [f"{name}:{port}" for name in dict.fromkeys(names) if name not in _EVERYWHERE]
    origins = [f"http://{name}" for name in known]
    return ["--allowed-hosts", ",".join(known), "--cors-allowed-origins", ",".join(origins)]


@contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end the server as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before: dict[int, Any] = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_group(process: subprocess.Popen[bytes], patience: float = 5.0) -> None:
    """End every process of the server's group: politely, then by force."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and _group_lives(process):
            time.sleep(0.05)
    process.wait()


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # reaps the leader, which else stays in the group as a zombie
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_for(url: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with opener.open(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise MedlightError(f"the MLflow server does not answer at {url}: {_last_words(log)}")


def _last_words(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["it said nothing"])[-1]
