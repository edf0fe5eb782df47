"""How a script of several gloo processes ends."""

from __future__ import annotations

import os

from torch import distributed


def end_together() -> None:
    """End this process when all ranks have come here. What it has to say is written by then.

    gloo's threads may abort a process whose partner is gone, or that the interpreter takes down in order: on a loaded
    machine one process in some hundreds ended by a signal after its work was done.
    """
    if distributed.is_initialized():
        distributed.barrier()
        os._exit(0)
