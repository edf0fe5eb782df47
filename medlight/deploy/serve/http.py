"""HTTP: a scan is posted, its label map or figures come back."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from medlight.deploy.runtime.fit_for import checks_modality
from medlight.deploy.runtime.predictor import Predictor
from medlight.deploy.serve.access import Application, Guard
from medlight.deploy.serve.answer import FORMS, Answer, answer, asked, forms
from medlight.deploy.serve.say import plain, say
from medlight.deploy.serve.turns import BusyError, Job, StoppedError, Turns
from medlight.deploy.serve.upload import Limits, RefusedError, receive
from medlight.errors import MedlightError, fault

_LOOK = 0.2  # seconds between two looks at whether the client is still there
_CONNECTIONS = 64
_WARNINGS = 16


def application(
    predictor: Predictor,
    turns: Turns,
    *,
    names: frozenset[str],
    token: str | None = None,
    limits: Limits | None = None,
    force: bool = False,
) -> Application:
    """Make the application: POST /predict, GET /health, GET /info.

    names: what the server may be called in a Host header. token: what a client must give. force: a scan that does not
    fit the bundle is predicted all the same, with a warning.
    """
    limits = limits or Limits()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # its pages are drawn by scripts of another site
    facts, folder = _facts(predictor, limits), tempfile.gettempdir()

    @app.get("/health")
    async def health() -> Response:
        return _json(200, {"status": "ok"})

    @app.get("/info")
    async def info() -> Response:
        return _json(200, {**facts, "in_hand": turns.taken})

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        start = time.monotonic()
        response = await _predict(request, predictor, turns, limits, force, folder)
        say(f"HTTP predict: {response.status_code} in {time.monotonic() - start:.1f} s")
        return response

    @app.exception_handler(HTTPException)
    async def not_so(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        reason = "ask POST /predict, GET /info or GET /health"
        return _json(error.status_code, {"error": reason}, dict(error.headers or {}))

    return Guard(app, names=names, token=token)


def _facts(predictor: Predictor, limits: Limits) -> dict[str, Any]:
    """What the bundle is, with no path and no name of a case."""
    bundle = predictor.bundle
    flat = bundle.data["spatial_dims"] == 2
    return {
        "task": bundle.task,
        "channels": [str(name) for name in bundle.data["channels"]],
        "dimensions": bundle.data["spatial_dims"],
        "outputs": bundle.outputs,
        "labels": [{"value": label.value, "name": label.name} for label in bundle.labels],
        "runtime": plain(predictor.runtime, str(bundle.root)),
        "checked": bundle.checked,
        "modality_checked": checks_modality(bundle.data),
        "run_id": bundle.run_id,
        "takes": ["NIfTI", "zip of one DICOM series", "DICOM", *(["PNG, JPEG, TIFF"] if flat else [])],
        "gives": list(forms(predictor)),
        "largest_upload": limits.upload,
    }


async def _predict(
    request: Request, predictor: Predictor, turns: Turns, limits: Limits, force: bool, root: str
) -> Response:
    """Take an upload, wait for its turn, answer; every failure is one line. root: where temporary folders go."""
    folder = ""
    try:
        form = _form(request)
        with turns.place(), tempfile.TemporaryDirectory(prefix="medlight-", dir=root) as folder:
            files = await receive(request, Path(folder), limits)
            upload = await asyncio.to_thread(asked, predictor, files, form, limits)  # garbage waits for no turn
            return _sent(await _waited(turns.submit(partial(answer, predictor, upload, force)), request))
    except BusyError:
        return _json(503, {"error": "busy: as many scans wait as may; try again later"}, {"Retry-After": "30"})
    except (StoppedError, ClientDisconnect):
        return _json(503, {"error": "stopped before it was done"})
    except RefusedError as error:
        return _json(error.status, {"error": str(error)})
    except MedlightError as error:
        return _json(422, {"error": _reason(error, folder)})
    except Exception as error:
        say(f"HTTP predict: {fault(error)}")
        return _json(500, {"error": "the prediction failed; see the server's log"})


def _form(request: Request) -> Any:
    form = request.query_params.get("format")
    if form not in (None, *FORMS):
        raise RefusedError(400, f"format: one of {', '.join(FORMS)}")
    return form


async def _waited(job: Job, request: Request) -> Answer:
    """Wait for a job, and stop it where the client goes away; returns when nothing touches its files any more."""
    future = asyncio.wrap_future(job.future)
    try:
        while not (await asyncio.wait({future}, timeout=_LOOK))[0]:
            if await request.is_disconnected():
                job.stop()
        return future.result()
    finally:
        job.stop()
        while not job.future.done():
            await asyncio.sleep(0.01)


def _sent(made: Answer) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{made.name}"'} if made.name else {}
    few = [warning[:200] for warning in made.warnings[:_WARNINGS]]  # of a header only some kilobytes are taken
    headers |= {"Medlight-Warnings": json.dumps(few)} if few else {}
    return Response(made.content, media_type=made.media_type, headers=headers)


def _reason(error: MedlightError, folder: str) -> str:
    """What an error says, with no path of this machine, and whose options it names."""
    said = re.sub(r"[^\s:]*/(?=upload\d)", "", plain(str(error), folder))
    said = re.sub(r"\bupload\d+(?:-unpacked|\.nii\.gz|\.[a-z]{2,4})?(?!\w)", "the upload", said)
    return re.sub(r"(?<![\w-])(?=--(?:on|force)\b)", "the server's ", said)


def _json(status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(content) + "\n", status, headers, "application/json")


class HttpServer:
    """The application on a socket, in a thread of its own."""

    def __init__(self, app: Application, listening: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=10,
            lifespan="off",
            ws="none",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="http", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Take no more requests, and wait until those at hand are answered."""
        self._server.should_exit = True
        self._thread.join(20)
