"""A result on its way: C-STORE to the place that was named at the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association

from medlight.errors import UsageError

_SECONDS = 30.0  # for a connection, and for each answer
_WARNINGS = range(0xB000, 0xC000)  # stored, but not quite as it was sent (PS3.4 B.2.3)


class NotSentError(Exception):
    """Why a result could not be sent this time."""


@dataclass(frozen=True)
class Peer:
    """Where results go: the application entity's title, its host and its port."""

    title: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Peer:
        """Read ``AET@HOST:PORT``; UsageError where it is something else."""
        title, _, place = text.partition("@")
        host, _, port = place.rpartition(":")
        if not (host.strip("[]") and port.isdecimal() and 0 < int(port) < 65536):
            raise UsageError(f"--send-to {text}: is not AET@HOST:PORT, as ARCHIVE@10.0.0.5:104")
        return cls(check_title("--send-to", title), host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"{self.title}@{self.host}:{self.port}"


def check_title(where: str, title: str) -> str:
    """Return the title of an application entity; UsageError where it is none (PS3.5 6.2, AE)."""
    if not 0 < len(title) <= 16 or not (title.isascii() and title.isprintable()) or "\\" in title or not title.strip():
        raise UsageError(f"{where} {title}: a title of an application entity is 1 to 16 characters of ASCII")
    return title


def send(files: Sequence[Path], peer: Peer, own_title: str) -> None:
    """Send objects by C-STORE. Raises NotSentError unless the peer has confirmed every one.

    An object that is damaged, so that it can't be read, or decompressed for a peer that wants it so, raises whatever
    the libraries do.
    """
    objects = [dcmread(file) for file in files]
    entity = AE(ae_title=own_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = _SECONDS
    for sop_class in {str(one.SOPClassUID) for one in objects}:
        for syntax in {str(one.file_meta.TransferSyntaxUID) for one in objects if one.SOPClassUID == sop_class}:
            entity.add_requested_context(sop_class, syntax)
        entity.add_requested_context(sop_class, ExplicitVRLittleEndian)
        entity.add_requested_context(sop_class, ImplicitVRLittleEndian)
    association = entity.associate(peer.host, peer.port, ae_title=peer.title)
    if not association.is_established:
        rejected = association.is_rejected
        raise NotSentError("it rejects the association" if rejected else "no association (not there, or not DICOM)")
    try:
        for one in objects:
            _store(association, one)
    finally:
        if association.is_established:
            association.release()


def _store(association: Association, one: Dataset) -> None:
    accepted = {
        str(context.transfer_syntax[0])
        for context in association.accepted_contexts
        if context.abstract_syntax == one.SOPClassUID and context.transfer_syntax
    }
    if not accepted:
        raise NotSentError(f"it does not take {one.SOPClassUID.name}")
    if str(one.file_meta.TransferSyntaxUID) not in accepted and one.file_meta.TransferSyntaxUID.is_compressed:
        one.decompress()
    try:
        status = association.send_c_store(one)
    except (ValueError, RuntimeError) as error:
        raise NotSentError(f"{type(error).__name__} while sending") from None
    code = status.get("Status")
    if code is None:
        raise NotSentError("the connection broke, or it did not answer")
    if code != 0 and code not in _WARNINGS:
        raise NotSentError(f"it answers with status 0x{code:04X}")
