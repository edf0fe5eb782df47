"""From the user's YAML to a whole, checked configuration, before anything starts."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any, Literal

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from medlight.config import Config, arguments, check_inside, is_spec, load_yaml, merge, nearest, set_path
from medlight.errors import CaseError, UsageError
from medlight.launch.blame import bad_value, explain, hints_of

TOP_LEVEL = ("study", "name", "seed_everything", "precision", "channels_last", "model", "data", "trainer")
DEFAULTS = {"num_sanity_val_steps": 0, "log_every_n_steps": 10}
_UNSUITABLE = re.compile(r"^-|[/\\\x00-\x1f]")
_LONGEST = 120
NETWORK_PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
TOP_HINTS = {
    "study": str | None,
    "name": str | None,
    "seed_everything": int,
    "precision": Literal["auto", "32-true", "bf16-mixed", "16-mixed"],
    "channels_last": Literal["auto", True, False],
}


class ConfigCLI(LightningCLI):
    """LightningCLI over a dictionary; classes are built only by :meth:`build`."""

    def __init__(self, config: Config) -> None:
        self.written = copy.deepcopy(config)  # parsing changes what it is given
        super().__init__(
            L.LightningModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            trainer_defaults=DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False},
            auto_configure_optimizers=False,
            run=False,
            args=copy.deepcopy(config),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The keys that Lightning does not have."""
        parser.add_argument("--study", type=str | None, default=None, help="the experiment's name in MLflow")
        parser.add_argument("--name", type=str | None, default=None, help="the run's name")
        parser.add_argument("--precision", type=str, default="auto", help="one of " + ", ".join(NETWORK_PRECISIONS))
        parser.add_argument("--channels_last", type=bool | str, default="auto", help="auto, true or false")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Read the dictionary; the command line was merged into it before."""
        self.config = parser.parse_object(args)
        self.config.pop("config", None)  # LightningCLI's own --config, which a resolved configuration can't hold

    def _set_seed(self) -> None:
        """Left to the launcher: a configuration that is only read draws nothing."""

    def instantiate_classes(self) -> None:
        """Nothing is built while a configuration is read."""

    def build(self) -> tuple[L.LightningModule, L.LightningDataModule, dict[str, Any]]:
        """Build the task and the data module; returns them with the Trainer's arguments (callbacks built).

        Raises: UsageError, one line that names the class that refuses its arguments.
        """
        try:
            self.config_init = self.parser.instantiate_classes(self.config)
        except (UsageError, CaseError):
            raise
        except Exception as error:
            raise _refused(self.written, error) from (error if os.environ.get("MEDLIGHT_DEBUG") else None)
        trainer = dict(self.config_init["trainer"])
        return self.config_init["model"], self.config_init["data"], trainer


def read(files: list[str], overrides: list[tuple[str, Any]]) -> Config:
    """Merge configuration files, later over earlier, then the command line's dotted values.

    Raises: UsageError where a file is missing or no mapping.
    """
    config: Config = {}
    for file in files:
        config = merge(config, load_yaml(file))
    if files:
        config.setdefault("study", Path(files[0]).resolve().parent.name or None)
    for path, value in overrides:
        _check_override(config, path)
        config = set_path(config, path, value)
    return config


def _check_override(config: Config, path: str) -> None:
    head = path.split(".")[0]
    if head not in TOP_LEVEL:
        raise UsageError(f"--{path}: no such key{nearest(head, TOP_LEVEL)}")
    if head in ("model", "data") and head not in config:
        raise UsageError(f"--{path}: the configuration has no {head!r} section; give one with -c FILE")


def check(config: Config) -> None:
    """Refuse unknown keys, classes and arguments, each in one line with the nearest valid name."""
    for key in config:
        if key not in TOP_LEVEL:
            raise UsageError(f"{key}: no such key{nearest(key, TOP_LEVEL)}")
    for key in ("model", "data"):
        if not is_spec(config.get(key)):
            raise UsageError(f"{key}: missing; write {key}: {{class_path: ..., init_args: {{...}}}}")
    said = bad_value({key: config[key] for key in TOP_HINTS if key in config}, TOP_HINTS)
    if said:
        raise UsageError(said)
    seed = config.get("seed_everything", 0)
    if not 0 <= seed < 2**32:
        raise UsageError(f"seed_everything: {seed} is no seed; write a whole number from 0 to {2**32 - 1}")
    _check_trainer(config.get("trainer") or {})
    check_inside(config, "config")


def check_names(config: Config) -> None:
    """Raise UsageError where the name of a new run or its study can't name a folder too, as that of its bundle."""
    for key in ("study", "name"):
        name = config.get(key)
        if name is not None and (_UNSUITABLE.search(name) or not name.strip(". ") or len(name.encode()) > _LONGEST):
            shown = name if len(name) <= 40 else f"{name[:37]}..."
            raise UsageError(f"{key}: {shown!r} can't name a folder; write 1 to {_LONGEST} bytes, without slashes")


def _check_trainer(trainer: Config) -> None:
    if not isinstance(trainer, dict):
        raise UsageError(f"trainer: expected keys and values, as max_epochs: 10, found {trainer!r}")
    names, _ = arguments(L.Trainer)
    for key in trainer:
        if key not in names:
            raise UsageError(f"trainer.{key}: Trainer has no argument {key!r}{nearest(key, names)}")
    if trainer.get("precision") is not None:
        raise UsageError("trainer.precision: write it at the top of the file, as precision: (auto, 32-true, ...)")
    hints = hints_of(L.Trainer.__init__)
    said = bad_value({key: value for key, value in trainer.items() if key != "callbacks" and value}, hints, "trainer.")
    if said:
        raise UsageError(said)
    if trainer.get("overfit_batches"):
        raise UsageError("trainer.overfit_batches: each step draws new samples here; mend: a split with few cases")
    for key in ("val_check_interval", "check_val_every_n_epoch"):
        if trainer.get(key) == 0:
            raise UsageError(f"trainer.{key}: 0 validates nothing; write 1 or more")
    clip = trainer.get("gradient_clip_val")
    if clip is not None and clip < 0:
        raise UsageError(f"trainer.gradient_clip_val: {clip} clips nothing; write a number above 0, or null")
    for key in ("max_epochs", "max_steps", "limit_train_batches", "accumulate_grad_batches"):
        value = trainer.get(key)
        endless = value == -1 and key.startswith("max")
        if value is not None and value <= 0 and not endless:
            raise UsageError(f"trainer.{key}: {value} trains nothing; write {'1.0' if 'limit' in key else '1'} or more")


def parse(config: Config) -> ConfigCLI:
    """Check a configuration and fill in every default.

    Raises: UsageError, one line that names the key.
    """
    try:
        check(config)
    except UsageError as error:
        raise UsageError(str(error).removeprefix("config.")) from None
    try:
        return ConfigCLI(config)
    except UsageError:
        raise
    except Exception as error:
        raise _refused(config, error) from (error if os.environ.get("MEDLIGHT_DEBUG") else None)


def _refused(config: Config, error: Exception) -> UsageError:
    """What jsonargparse could not read or build, in one line."""
    sections: Config = {name: config[name] for name in ("data", "model")}
    callbacks = (config.get("trainer") or {}).get("callbacks")
    if callbacks:
        sections["trainer.callbacks"] = callbacks
    hints = {"data": L.LightningDataModule, "model": L.LightningModule, "trainer.callbacks": list[L.Callback]}
    return UsageError(explain(sections, hints, error))


def plain(value: Any) -> Any:
    """A parsed configuration as plain dictionaries, lists and scalars."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def resolve(config: Config) -> Config:
    """Return the configuration with every default filled in; nothing is built or started.

    Raises: UsageError, one line that names the key and the nearest valid name.
    """
    return dict(plain(parse(config).config))
