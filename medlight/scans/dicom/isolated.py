"""Decoders in processes of their own: broken frames make GDCM abort, and others take hours over them.

It also lets them work side by side: none of those that run here lets another thread of its process on.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import pickle
import struct
import subprocess
import sys
import threading
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from medlight.scans.dicom.pixels import Layout

# Ten times what JPEG 2000 takes on a busy machine.
_SECONDS, _SECONDS_A_MEGAPIXEL = 4.0, 5.0
_READY = b"r"
_REPLY = struct.Struct("<?Q")
_CODE = "from medlight.scans.dicom.isolated import _serve; _serve()"


class _Decoder:
    """A process that decodes one frame at a time."""

    def __init__(self) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the libraries' own complaints
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )

    def start(self) -> None:
        """Wait until it is ready. Raises ValueError where it can't start."""
        assert self.process.stdout is not None
        if self.process.stdout.read(1) != _READY:
            self.close()
            raise ValueError("has compressed frames, and their decoders can't start; mend: install medlight again")

    def ask(self, part: bytes, found: Layout) -> bytes:
        """Return a frame's values as bytes. Raises ValueError where it can't be decoded, or takes too long."""
        limit = _SECONDS + _SECONDS_A_MEGAPIXEL * found.rows * found.columns / 1e6
        late = threading.Event()

        def stop() -> None:
            late.set()
            self.process.kill()

        clock = threading.Timer(limit, stop)
        clock.start()
        try:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            pickle.dump((part, found), self.process.stdin)
            self.process.stdin.flush()
            good, size = _REPLY.unpack(_exactly(self.process.stdout, _REPLY.size))
            payload = _exactly(self.process.stdout, size)
        except (OSError, EOFError):
            self.close()
            cause = f"takes longer than {limit:.0f} s to decode" if late.is_set() else "brings its decoder down"
            raise ValueError(f"has a compressed frame that {cause}: it is broken") from None
        finally:
            clock.cancel()
        if not good:
            raise ValueError(payload.decode())
        return payload

    @property
    def alive(self) -> bool:
        """Whether it can be asked again."""
        return self.process.poll() is None

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was not sent yet
                    pipe.close()


class _Pool:
    """Decoders that wait for work, of this process alone: a fork has its own."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.idle: list[_Decoder] = []
        # one for each core, but not for each of many processes that read at once
        most = 1 if multiprocessing.parent_process() else os.cpu_count() or 1
        self.free = threading.BoundedSemaphore(most)

    def decode(self, part: bytes, found: Layout) -> bytes:
        """Decode a frame by the next decoder that is free."""
        with self.free:
            decoder = self.idle.pop() if self.idle else None
            if decoder is None or not decoder.alive:
                if decoder is not None:
                    decoder.close()
                decoder = _Decoder()
                decoder.start()
            try:
                return decoder.ask(part, found)
            except ValueError:
                raise
            except BaseException:  # an interruption: its answer would be taken for that to the next question
                decoder.close()
                raise
            finally:
                if decoder.alive:
                    self.idle.append(decoder)

    def close(self) -> None:
        """End all of them."""
        if self.process == os.getpid():
            while self.idle:
                self.idle.pop().close()


_pool: _Pool | None = None
_making = threading.Lock()


def decoded(part: bytes, found: Layout) -> npt.NDArray[Any]:
    """Decode one compressed frame in another process, as ``pixels.decoded`` does in this one; for several threads.

    Raises ValueError where the frame can't be decoded, brings its decoder down or takes longer than any real one.
    """
    global _pool
    with _making:
        if _pool is None or _pool.process != os.getpid():
            _pool = _Pool()
            atexit.register(_pool.close)
    shape = (found.rows, found.columns, found.samples)[: 2 if found.samples == 1 else 3]
    return np.frombuffer(_pool.decode(part, found), found.dtype).reshape(shape)


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _serve() -> None:
    """Decode what comes in, until nothing does."""
    import warnings

    from medlight.scans.dicom.pixels import decoded as decode

    warnings.simplefilter("ignore")
    source, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(_READY)
    answers.flush()
    while True:
        try:
            part, found = pickle.load(source)
        except EOFError:
            return
        try:
            payload, good = np.ascontiguousarray(decode(part, found).astype(found.dtype, copy=False)).tobytes(), True
        except Exception as error:
            payload, good = (" ".join(str(error).split())[:300] or type(error).__name__).encode(), False
        answers.write(_REPLY.pack(good, len(payload)))
        answers.write(payload)
        answers.flush()
