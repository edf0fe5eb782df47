"""what this machine can do, and what is missing."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

from medlight.cli.machine import NEEDED, Facts, clash, data_root, extras, folders, git, hardware, interpreter, version
from medlight.cli.output import ready, write_json
from medlight.cli.probe import GROUPS

EPILOG = """\
example:
  medlight doctor
  medlight doctor --json -

Exit code 0: a fit can run here; 1: it can't, and the lines marked !! say why."""

_PATIENCE = 8.0  # seconds for all imports together
_LATE = "import not finished in time"
_NAMES = {"tensorrt_rtx": "tensorrt-rtx"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``medlight doctor``."""
    parser.add_argument("--json", metavar="FILE", help="write what was found as JSON ('-': standard output, no text)")


def run(args: argparse.Namespace) -> int:
    """Look, report, and say whether a fit can run."""
    ready(args.json)
    facts = examine()
    write_json(args.json, facts)
    if args.json != "-":
        print("\n".join(report(facts)))
    return 0 if facts["can_fit"] else 1


def examine() -> Facts:
    """Everything that was found; ``problems`` keep a fit from running, ``warnings`` do not."""
    processes = {group: _probe(group) for group in GROUPS}
    facts: Facts = {"medlight": version("medlight"), "python": interpreter(), **hardware(), **folders()}
    facts |= {"data": data_root(), "git": git(), "packages": {}, "gpus": [], "providers": {}, "notes": []}
    deadline = time.monotonic() + _PATIENCE
    for group, process in processes.items():
        _collect(facts, group, process, deadline)
    facts["extras_missing"] = extras(bool(facts["gpus"]) or facts["nvidia_driver"])
    facts["problems"], facts["warnings"] = _problems(facts), _warnings(facts)
    facts["can_fit"] = not facts["problems"]
    return facts


def _probe(group: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return subprocess.Popen(
        [sys.executable, "-m", "medlight.cli.probe", group],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _collect(facts: Facts, group: str, process: subprocess.Popen[str], deadline: float) -> None:
    """Take what a probe says until the deadline; what it did not come to is marked so."""
    try:
        said, _ = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
        left = {"state": "broken", "error": f"the import ends Python (exit code {process.returncode})"}
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        left = {"state": _LATE}
    for line in said.splitlines():
        found = json.loads(line) if line.startswith("{") else {}
        if "import" in found:
            facts["packages"][found.pop("import")] = found
            continue
        facts["notes"] += [found.pop("problem")] if "problem" in found else []
        facts |= found
    for name in GROUPS[group]:
        installed = version(_NAMES.get(name, name))
        package = facts["packages"].setdefault(name, dict(left) if installed else {"state": "absent"})
        package["version"] = installed
        if package["state"] == "broken":
            left = {"state": _LATE}  # of those behind the one that ended Python nothing is known


def _problems(facts: Facts) -> list[str]:
    found = []
    for name in NEEDED:
        package = facts["packages"][name]
        if package["state"] == "absent":
            found.append(f"{name} is not installed; mend: pip install medlight")
        elif package["state"] == "broken":
            found.append(f"{name} does not import ({package['error']})")
    if not facts["writable"]:
        found.append(f"{facts['working_folder']}: can't be written to; runs are kept in its folder mlruns")
    tracking = facts.get("tracking", {})
    if tracking.get("state") == "broken":
        found.append(f"tracking store {tracking['uri']}: {tracking['error']}".replace("store :", "store:"))
    return found


def _warnings(facts: Facts) -> list[str]:
    found = list(facts["notes"])
    late = [name for name, package in facts["packages"].items() if package["state"] == _LATE]
    if late:
        found.append(
            f"not known within {_PATIENCE:.0f} s, the machine is busy: whether {', '.join(late)} can be imported"
        )
    vision = facts["packages"]["torchvision"]
    if vision["state"] == "broken":
        found.append(
            f"torchvision {vision['version']} does not fit this torch, and where it is there torchmetrics, and so "
            "Lightning, fail; nothing here needs it; mend: pip uninstall torchvision"
        )
    found += [said] if (said := clash()) else []
    if facts["nvidia_driver"] and not facts["gpus"]:
        build = facts["packages"]["torch"]["version"]
        found.append(f"an NVIDIA driver is here, but torch {build} sees no GPU (CUDA build: {facts.get('cuda_build')})")
    data = facts["data"]
    if data["set"] and not data["exists"]:
        found.append(f"MEDLIGHT_DATA={data['path']}: no such folder")
    if facts["free_gb"] < 5:
        found.append(f"only {facts['free_gb']} GB free for runs and the prepared store")
    return found


def report(facts: Facts) -> list[str]:
    """The lines that a person reads."""
    python, memory = facts["python"], f"{facts['memory_gb']} GB, {facts['memory_free_gb']} GB free"
    data, tracking, repository = facts["data"], facts.get("tracking", {}), facts["git"]
    known = f"{data['path']}: {', '.join(data['folders']) or 'empty'}" if data.get("exists") else data.get("path")
    lines = [
        _line("medlight", str(facts["medlight"] or "not installed as a package")),
        _line("python", f"{python['version']} ({python['path']})"),
        _line("processor", f"{facts['processor']}, {facts['cores']} cores, {facts['threads_allowed']} threads allowed"),
        _line("instructions", ", ".join(facts["instructions"]) or "none of those that matter"),
        _line("memory", memory),
        *[_line("gpu", f"{g['name']}, {g['memory_gb']} GB, {', '.join(g['precisions'])}") for g in facts["gpus"]],
        *([] if facts["gpus"] else [_line("gpu", "Apple (mps)" if facts.get("mps") else "none: fits run on the CPU")]),
        _line("disk", f"{facts['free_gb']} GB free in {facts['working_folder']}"),
        _line("prepared store", f"{facts['store_files']} files, {facts['store_gb']} GB in {facts['store']}"),
        _line("MEDLIGHT_DATA", known or "not set: relative data paths start at the current folder"),
        _line("tracking", f"{tracking['uri']}: {tracking['state']}" if tracking else "not asked in time"),
        _line("git", repository["version"] or "not installed: runs record no commit"),
    ]
    lines += ["", "packages"]
    lines += [_line(f"  {name}", _package(found)) for name, found in facts["packages"].items() if name in NEEDED]
    lines += ["", "runtimes of exported models"]
    lines += [_line(f"  {name}", _runtime(name, facts)) for name in GROUPS["run"]]
    if facts["extras_missing"]:
        lines += ["", "optional, not installed"]
    lines += [
        _line(f"  {extra}", f"pip install 'medlight[{extra}]'   ({', '.join(names)})")
        for extra, names in facts["extras_missing"].items()
    ]
    lines += [""] + [f"!  {text}" for text in facts["warnings"]] + [f"!! {text}" for text in facts["problems"]]
    device = facts["gpus"][0]["name"] if facts["gpus"] else f"CPU, {facts['threads_allowed']} threads"
    verdict = f"A fit can run here ({device})." if facts["can_fit"] else "A fit can't run here yet: see !! above."
    return [*lines, verdict]


def _line(name: str, value: str) -> str:
    return f"{name:<16} {value}"


def _package(found: Facts) -> str:
    if found["state"] == "ok":
        return str(found["version"] or "there")
    return "absent" if found["state"] == "absent" else f"{found['version']}: {found.get('error', found['state'])}"


def _runtime(name: str, facts: Facts) -> str:
    text = _package(facts["packages"][name])
    if name == "onnxruntime" and facts["providers"]:
        runs = [p.removesuffix("ExecutionProvider") for p, works in facts["providers"].items() if works]
        fails = [p.removesuffix("ExecutionProvider") for p, works in facts["providers"].items() if not works]
        text += f" (runs on {', '.join(runs)}{'; built with, but not running: ' + ', '.join(fails) if fails else ''})"
    if name == "openvino" and facts.get("openvino_devices"):
        text += f" (devices: {', '.join(facts['openvino_devices'])})"
    return text
