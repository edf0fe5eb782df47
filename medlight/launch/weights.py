"""Where initial weights lie: a file, a run, a bundle, or an installed package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from medlight.config import Config, get_path, nearest, set_path
from medlight.errors import MedlightError, UsageError
from medlight.tasks import pretrained
from medlight.tasks.weight_files import SUFFIXES, sha256
from medlight.tracking import store


def resolve(config: Config) -> Config:
    """Return a configuration in which ``model.init_args.pretrained`` names a file and its digest.

    Written there: FILE; ``run:RUN_ID`` (the run's best checkpoint); a bundle's folder (that of the run which it was
    made of: a bundle holds only the exported graph, whose batch normalisation is folded into other weights);
    ``package:NAME`` (the one file of weights in an installed package, none of whose code is run).

    Raises: UsageError where there is no such thing, MedlightError where it was altered since its digest was recorded.
    """
    try:
        written = get_path(config, pretrained.KEY)
    except KeyError:
        return config
    if written is None:
        return config
    spec = pretrained.check(written)
    file = _file(spec["weights"])
    digest, expected = sha256(file), spec["sha256"]
    if expected not in (None, digest):
        raise MedlightError(
            f"{pretrained.KEY}: {spec['weights']} was altered since its digest was recorded "
            f"({expected[:12]}, now {digest[:12]}); mend: restore {file}, or train it again"
        )
    return set_path(config, pretrained.KEY, {**spec, "weights": str(file), "sha256": digest})


def digest(config: Config) -> str | None:
    """Return the sha256 of the initial weights as they are now; None where the configuration names none.

    Raises: as `resolve`.
    """
    try:
        found = get_path(resolve(config), pretrained.KEY)
    except KeyError:
        return None
    return None if found is None else str(found["sha256"])


def _file(text: str) -> Path:
    """The file that a reference means."""
    kind, _, name = text.partition(":")
    if kind == "run":
        return _of_run(name)
    if kind == "package":
        return _in_package(name)
    if kind == "variant":
        raise UsageError(
            f"{pretrained.KEY}: {text} means a run of a study; mend: medlight reproduce its folder, or write run:RUN_ID"
        )
    path = Path(text).expanduser()
    if path.is_dir():
        return _of_bundle(path)
    if not path.is_file():
        near = nearest(path.name, [entry.name for entry in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise UsageError(f"{pretrained.KEY}: {text}: no such file of weights{near}")
    return path.absolute()


def _of_run(name: str) -> Path:
    try:
        run = store.find_run(name)
    except UsageError as error:
        raise UsageError(f"{pretrained.KEY}: {error}") from error
    state = run.data.tags.get("medlight.state")
    if state not in ("complete", "pruned", None):
        raise UsageError(f"{pretrained.KEY}: run {name} is {state}; mend: finish it with --resume, or name another")
    try:
        return store.best_checkpoint(run.info.run_id)
    except MedlightError as error:
        raise type(error)(f"{pretrained.KEY}: {error}") from error


def _of_bundle(folder: Path) -> Path:
    from medlight.deploy.bundle import Bundle

    try:
        bundle = Bundle.load(folder)
    except MedlightError as error:
        raise type(error)(f"{pretrained.KEY}: {error}") from error
    if bundle.run_id is None:
        raise UsageError(
            f"{pretrained.KEY}: {folder} does not say which run it was made of; mend: name its checkpoint (.ckpt)"
        )
    try:
        store.find_run(bundle.run_id)
    except UsageError as error:
        raise UsageError(
            f"{pretrained.KEY}: {folder} was made of run {bundle.run_id}, which is not in this store; "
            "mend: set MLFLOW_TRACKING_URI to its store, or name its checkpoint (.ckpt)"
        ) from error
    return _of_run(bundle.run_id)


def _in_package(name: str) -> Path:
    top = name.replace("-", "_")
    spec = importlib.util.find_spec(top) if top.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"{pretrained.KEY}: package {name} is not installed; mend: pip install {name}")
    folders = [Path(place) for place in spec.submodule_search_locations]
    files = sorted(file for folder in folders for file in folder.rglob("*") if file.suffix in SUFFIXES)
    if len(files) != 1:
        listed = ", ".join(map(str, files[:5])) or "none"
        raise UsageError(f"{pretrained.KEY}: package {name}: expected one file of weights, found {listed}")
    return files[0]
