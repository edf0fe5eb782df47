"""Objects that can't be read: the error says of them what is known."""

from __future__ import annotations

from pydicom import Dataset

from medlight.errors import MedlightError
from medlight.scans.dicom.elements import TAG, text
from medlight.scans.dicom.frames import Place

# PS3.3 C.7.3.1.1.1, those that make images and those beside them; any other word may be anything, and is not repeated.
# fmt: off
MODALITIES = (
    "AR", "ASMT", "AU", "BDUS", "BI", "BMD", "CFM", "CR", "CT", "CTPROTOCOL", "DG", "DMS", "DOC", "DX", "ECG", "EEG",
    "EMG", "EOG", "EPS", "ES", "FID", "GM", "HC", "HD", "IO", "IOL", "IVOCT", "IVUS", "KER", "KO", "LEN", "LS", "M3D",
    "MG", "MR", "NM", "OAM", "OCT", "OP", "OPM", "OPR", "OPT", "OPTBSV", "OPTENF", "OPV", "OSS", "OT", "PA", "PLAN",
    "POS", "PR", "PT", "PX", "REG", "RESP", "RF", "RG", "RTDOSE", "RTIMAGE", "RTINTENT", "RTPLAN", "RTRAD", "RTRECORD",
    "RTSEGANN", "RTSTRUCT", "RWV", "SEG", "SM", "SMR", "SR", "SRF", "STAIN", "TEXTUREMAP", "TG", "US", "VA", "XA",
    "XAPROTOCOL", "XC",
)
# fmt: on


class UnreadableError(MedlightError):
    """An object that can't be read, with what it says of the series it belongs to: that series lacks a slice."""

    place: Place
    cause: str = ""
    series_uid: str = ""
    sop_uid: str = ""
    modality: str = ""


def unreadable(place: Place, cause: str, dataset: Dataset | None = None) -> UnreadableError:
    """The error for an object, which names the file; ``dataset``: what was read of it."""
    error = UnreadableError(f"{place.title}: {cause}")
    error.place, error.cause = place, cause
    if dataset is not None:
        error.series_uid, error.modality = text(dataset, TAG.SeriesInstanceUID), modality(dataset)
        error.sop_uid = text(dataset, TAG.SOPInstanceUID)
    return error


def modality(dataset: Dataset) -> str:
    """An object's modality, empty where it isn't a term of the standard."""
    said = text(dataset, TAG.Modality).upper()
    return said if said in MODALITIES else ""
