"""A bundle as MLflow's ``pyfunc`` loads it: a table of scans in, a table of results out. No torch, no MLflow here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlight.deploy.bundle import Bundle
from medlight.deploy.runtime.files import predict_item
from medlight.deploy.runtime.journal import Item, content_of
from medlight.deploy.runtime.predictor import Predictor
from medlight.deploy.runtime.studies import check_apart
from medlight.errors import MedlightError, UsageError, fault
from medlight.prepare.contents import sha256
from medlight.prepare.folders import name_of

if TYPE_CHECKING:
    import pandas as pd

OUTPUT = "predictions"  # folder, where the parameter ``output`` names none


class RegisteredBundle:
    """Predicts the scans of a table, one a row."""

    def __init__(self, bundle: Path) -> None:
        """Load a bundle's folder."""
        self._predictor = Predictor(bundle)

    def predict(self, table: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Predict each row; what can't be predicted has its reason under ``error`` and does not stop the others.

        table: ``image`` (a file, or a folder of DICOM), or a column for each contrast; perhaps ``id``, which names the
            files that are written.
        params: ``output``, the folder for label maps and pictures; ``force``, to predict what does not fit too.

        Returns ``id``, then ``label_map`` (its path) and ``LABEL_ml`` (volume in millilitres; missing for pictures), or
        the probability of each class; ``warnings``, what was mended or did not fit and was forced; and ``error``.
        """
        import pandas as pd

        params = params or {}
        output, force = Path(params.get("output") or OUTPUT), bool(params.get("force"))
        taken: set[str] = set()
        rows = [self._row(dict(row), output, force, taken) for row in table.to_dict("records")]
        return pd.DataFrame(rows, columns=columns(self._predictor.bundle))

    def _row(self, row: dict[str, Any], output: Path, force: bool, taken: set[str]) -> dict[str, Any]:
        found: dict[str, Any] = {"id": _text(row.get("id")), "warnings": "", "error": ""}
        item = None
        try:
            images = self._images(row)
            name = found["id"] or _name(next(iter(images.values())))
            found["id"] = name
            if Path(name).name != name:
                raise UsageError(f"id {name!r}: is no file's name")
            if name in taken:
                raise UsageError(f"{name}: another row has this name; mend: give the rows an id each")
            taken.add(name)
            item = Item(name, images, output / f"{name}.nii.gz")
            check_apart([item])
            return found | self._predicted(item, force)
        except (MedlightError, OSError) as error:
            text = " ".join(str(error).split())
            return found | {"error": item.nameless(text) if item else text}
        except MemoryError:
            return found | {"error": "needs more memory than there is; mend: predict it on a machine that has more"}
        except Exception as error:
            return found | {"error": fault(error)}

    def _predicted(self, item: Item, force: bool) -> dict[str, Any]:
        result = predict_item(self._predictor, item, force=force)
        warnings = {"warnings": "; ".join(result["warnings"])}
        if "probabilities" in result:
            return dict(result["probabilities"]) | warnings
        volumes = {f"{name}_ml": volume for name, volume in result.get("volumes_ml", {}).items()}
        return {"label_map": str(item.output), **volumes, **warnings}

    def _images(self, row: dict[str, Any]) -> dict[str, Path]:
        """Return the files of a row: one with all channels, or one for each contrast."""
        if single := _text(row.get("image")):
            return {"image": Path(single)}
        names = [str(channel) for channel in self._predictor.bundle.data["channels"]]
        found = {name: Path(text) for name in names if (text := _text(row.get(name)))}
        if len(found) != len(names):
            missing = ", ".join(name for name in names if name not in found)
            raise UsageError(f"no image and no {missing}; mend: name the scan in the column image")
        return found


def columns(bundle: Bundle) -> list[str]:
    """Return the columns of the answer."""
    if bundle.task == "classification":
        return ["id", *bundle.outputs, "warnings", "error"]
    volumes = (f"{label.name}_ml" for label in bundle.labels if label.value)
    return ["id", "label_map", *volumes, "warnings", "error"]


def _text(value: Any) -> str:
    """Return a cell as text; a missing one (None, NaN) is empty."""
    return "" if value is None or value != value else str(value).strip()


def _name(scan: Path) -> str:
    """What a scan is called: a file as it is, a folder of DICOM by its content (its name is often a patient's)."""
    return f"case-{sha256([['image', content_of(scan)]])[:10]}" if scan.is_dir() else name_of(scan)


def _load_pyfunc(path: str) -> RegisteredBundle:
    """Load a registered bundle; MLflow calls this by its name."""
    return RegisteredBundle(Path(path))
