"""DICOM: series come in by C-STORE, their segmentations go out by C-STORE."""

from __future__ import annotations

import errno
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom import AE, AllStoragePresentationContexts, _config, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from medlight.deploy.bundle import Bundle
from medlight.deploy.runtime.clinic import predict_series
from medlight.deploy.runtime.predictor import Predictor
from medlight.deploy.serve.say import plain, say, short
from medlight.deploy.serve.sending import NotSentError, Peer, send
from medlight.deploy.serve.spool import OBJECTS, RESULT, Spool
from medlight.deploy.serve.turns import StoppedError, Turns
from medlight.errors import MedlightError, UsageError, fault
from medlight.scans.dicom.frames import Place
from medlight.scans.dicom.header import header_of, parse

_SYNTAXES = [  # those that are decoded here
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.5",
]
# PS3.4 B.2.3, Table B.2-1
_NO_ROOM, _MISMATCH, _NOT_UNDERSTOOD = 0xA700, 0xA900, 0xC000
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 300.0  # seconds between two tries to send
_LOOK = 0.2  # seconds between two looks at the spool
_MOST_PDU = 1 << 20  # bytes; data come in 64 KiB, as is negotiated, and requests for associations take less
_PATIENCE = 120.0  # seconds that nothing comes


def check_node(bundle: Bundle) -> None:
    """Raise UsageError, which says why, for a bundle that can predict no series that comes by itself as a DICOM-SEG."""
    if bundle.task != "segmentation":
        raise UsageError(f"--dicom: sends DICOM-SEGs, and this bundle is for {bundle.task}; use --http")
    if bundle.data["preparation"].get("frames") == "clip":
        why = "sends DICOM-SEGs, and this bundle has a label map for each frame of a clip (frames: clip)"
        raise UsageError(f"--dicom: {why}; use --http")
    # the channels of one image (colours, echoes) are called image:red, image:green, ..., and come in one series
    contrasts = dict.fromkeys(str(name).partition(":")[0] for name in bundle.data["channels"])
    if len(contrasts) > 1:
        why = f"predicts each series by itself, and this bundle takes several together ({', '.join(contrasts)})"
        raise UsageError(f"--dicom: {why}; use --http, or predict with a manifest")


class Listener:
    """Receives series, has them predicted in their turn, and sends the results until they have arrived."""

    def __init__(
        self,
        predictor: Predictor,
        turns: Turns,
        spool: Spool,
        peer: Peer,
        *,
        title: str = "MEDLIGHT",
        callers: Sequence[str] = (),
        force: bool = False,
    ) -> None:
        """title: its own. callers: titles that may call; with none, all may. force: as in `predict_series`."""
        self._predictor, self._turns, self._spool, self._peer = predictor, turns, spool, peer
        self._title, self._force = title, force
        self._ended = threading.Event()
        self._bytes: dict[Any, int] = {}  # of the object that comes by an association just now
        self._next: dict[str, tuple[float, float]] = {}  # when a result is tried again, and the pause before
        self._entity = _entity(title, callers)
        self._server: Any = None
        self._temporary = tempfile.tempdir
        turn_takers = (self._predict_all, self._send_all)
        self._threads = [threading.Thread(target=self._again, args=(turn,), daemon=True) for turn in turn_takers]

    def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises UsageError where it is taken."""
        handlers: list[Any] = [
            (evt.EVT_CONN_OPEN, _bound),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_DATA_RECV, self._count),
            (evt.EVT_RELEASED, partial(self._gone, whole=True)),
            (evt.EVT_ABORTED, partial(self._gone, whole=False)),
            (evt.EVT_CONN_CLOSE, partial(self._gone, whole=False)),
            (evt.EVT_REJECTED, lambda event: say("DICOM: an association is rejected")),
        ]
        _config.STORE_RECV_CHUNKED_DATASET = True  # to a file, and not to memory
        tempfile.tempdir = str(self._spool.receiving)  # which is where pynetdicom makes that file
        try:
            self._server = self._entity.start_server((host, port), block=False, evt_handlers=handlers)
        except (OSError, OverflowError) as error:
            tempfile.tempdir = self._temporary
            said = getattr(error, "strerror", None) or "from 1 to 65535"
            raise UsageError(f"--dicom {port}: can't be listened on ({said}); choose another") from None
        for thread in self._threads:
            thread.start()
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """End all associations; what is not done yet waits in the spool."""
        self._ended.set()
        self._entity.shutdown()
        for thread in self._threads:
            thread.join(35)
        tempfile.tempdir = self._temporary
        self._spool.close()

    def _store(self, event: Any) -> Dataset:
        """Take one object in. Success is said when it is on the disk."""
        self._bytes.pop(event.assoc, None)
        file = Path(event.dataset_path)
        try:
            if self._spool.room() <= 0:
                return _status(_NO_ROOM, "the spool is full; send it later")
            dataset = parse(Place(file))
            header = header_of(dataset)
            if str(dataset.get("SOPClassUID", "")) not in ("", str(event.request.AffectedSOPClassUID)):
                return _status(_MISMATCH, "another SOP class than was said")
            if header.kind != "image" or not header.series_uid:
                return _status(_NOT_UNDERSTOOD, "no image of a series")
            name = short(str(event.request.AffectedSOPInstanceUID))
            self._spool.add(file, short(header.series_uid), name, event.assoc)
            return _status(0, "")
        except MedlightError:
            return _status(_NOT_UNDERSTOOD, "damaged, or no image")
        except OSError:
            return _status(_NO_ROOM, "can't be written; send it later")
        finally:
            file.unlink(missing_ok=True)

    def _count(self, event: Any) -> None:
        """End an association whose object would take more than there is room for, on the disk or in memory."""
        taken = self._bytes.get(event.assoc, 0)
        self._bytes[event.assoc] = now = taken + len(event.data)
        in_memory = getattr(event.assoc.dimse.message, "_data_set_file", self) is None  # an object goes to a file
        too_big = now >> 24 != taken >> 24 and now > self._spool.room()  # asked every 16 MiB
        if too_big or (in_memory and now > _MOST_PDU):
            say("DICOM: an association is ended: what it sends takes more than there is room for")
            event.assoc.abort()

    def _gone(self, event: Any, whole: bool) -> None:
        self._bytes.pop(event.assoc, None)
        half = getattr(event.assoc.dimse.message, "_data_set_path", None)  # of an object that was cut off
        if half is not None:
            Path(half).unlink(missing_ok=True)
        for series in self._spool.done(event.assoc, whole):
            say(f"{series}: {'received' if whole else 'cut off; it waits for the rest'}")

    def _again(self, turn: Callable[[], None]) -> None:
        """Take turns until the end, whatever one of them meets."""
        while not self._ended.wait(_LOOK):
            try:
                turn()
            except Exception as error:
                say(f"DICOM: {fault(error)}; it goes on")
                self._ended.wait(_FIRST_PAUSE)

    def _predict_all(self) -> None:
        for work in self._spool.complete():
            say(f"{work.name}: complete, {len(list((work / OBJECTS).iterdir()))} objects")
        for series in self._spool.tidied():
            say(f"{series}: dropped; its sender was cut off and did not come again")
        for work in self._spool.waiting():
            todo = not (work / RESULT).exists() and (work / OBJECTS).is_dir()  # in this order: it may just be deleted
            if todo and not self._ended.is_set():
                self._predict(work)

    def _predict(self, work: Path) -> None:
        start, making = time.monotonic(), work / "making"
        if not self._spool.begin(work):
            self._fail(work, "the server ended three times while it was predicted")
            return
        shutil.rmtree(making, ignore_errors=True)
        task = partial(predict_series, self._predictor, work / OBJECTS, making, force=self._force)
        try:
            result = self._turns.submit(lambda progress: task(progress=progress)).future.result()
            if not list(making.glob("*.dcm")):
                raise MedlightError("there is no DICOM object to send")
            self._spool.predicted(work, making)
        except StoppedError:
            self._spool.not_begun(work)
        except MedlightError as error:
            self._fail(work, plain(str(error), str(work / OBJECTS), str(work)))
        except Exception as error:
            self._fail(work, f"{fault(error)}")
        else:
            said = "".join(f"; {warning}" for warning in result.get("warnings", ()))
            say(f"{work.name}: predicted in {time.monotonic() - start:.1f} s{said}")

    def _fail(self, work: Path, reason: str) -> None:
        shutil.rmtree(work / "making", ignore_errors=True)
        self._spool.fail(work, reason)
        say(f"{work.name}: not predicted: {reason}")

    def _send_all(self) -> None:
        for work in self._spool.waiting():
            due, pause = self._next.get(work.name, (0.0, 0.0))
            if (work / RESULT).is_dir() and time.monotonic() >= due and not self._ended.is_set():
                self._send(work, pause)

    def _send(self, work: Path, pause: float) -> None:
        try:
            send(sorted((work / RESULT).glob("*.dcm")), self._peer, self._title)
        except (NotSentError, OSError, MemoryError) as error:
            pause = self._later(work, pause)
            reason = str(error) if isinstance(error, NotSentError) else getattr(error, "strerror", None)
            say(f"{work.name}: not sent to {self._peer}: {reason or type(error).__name__}; again in {pause:.0f} s")
        except Exception as error:  # neither the peer's fault nor the disk's: the next time would be no better
            self._later(work, pause)  # should it not be put aside either
            reason = f"the result can't be sent: {fault(error)}; send the series again"
            self._spool.fail(work, f"predicted, but {reason}")
            self._next.pop(work.name, None)
            say(f"{work.name}: put aside in failed: {reason}")
        else:
            self._next.pop(work.name, None)
            self._spool.sent(work)
            say(f"{work.name}: sent to {self._peer}")

    def _later(self, work: Path, pause: float) -> float:
        """Have a result wait twice as long as before until it is tried again; returns how long, in seconds."""
        pause = min(max(_FIRST_PAUSE, 2 * pause), _LONGEST_PAUSE)
        self._next[work.name] = (time.monotonic() + pause, pause)
        return pause


def _entity(title: str, callers: Sequence[str]) -> AE:
    """An application entity that takes images and C-ECHO, and nothing else: what is refused is not lost unseen."""
    for name in ("pynetdicom", "pydicom", "highdicom"):  # they quote what they stumble over: patients' names
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    entity = AE(ae_title=title)
    entity.maximum_pdu_size = 1 << 16
    entity.network_timeout = _PATIENCE
    entity.require_calling_aet = list(callers)
    entity.add_supported_context(Verification)
    for context in AllStoragePresentationContexts:
        name = UID(str(context.abstract_syntax)).name
        if "Image Storage" in name and "Video" not in name:
            entity.add_supported_context(str(context.abstract_syntax), _SYNTAXES)
    return entity


def _bound(event: Any) -> None:
    """Let a connection neither hang in the middle of a message nor make one take all the memory by its length."""
    connection = event.assoc.dul.socket
    connection.socket.settimeout(_PATIENCE)
    receive = connection.recv

    def bounded(count: int) -> bytearray:
        if count > _MOST_PDU:
            raise OSError(errno.EMSGSIZE, "a message that is too long")
        return bytearray(receive(count))

    connection.recv = bounded


def _status(code: int, comment: str) -> Dataset:
    made = Dataset()
    made.Status = code
    if comment:
        made.ErrorComment = comment
    return made
