"""serve a bundle over HTTP and as a DICOM node."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import math
import os
import re
import signal
import socket
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlight.cli.mends import add_on, mends
from medlight.errors import MedlightError, UsageError, needs

if TYPE_CHECKING:
    from medlight.deploy.runtime import Predictor
    from medlight.deploy.serve.dicom import Listener
    from medlight.deploy.serve.http import HttpServer
    from medlight.deploy.serve.spool import Spool
    from medlight.deploy.serve.turns import Turns

EPILOG = """\
example:
  medlight serve hippocampus-bundle --http 8000
  curl -F file=@scan.nii.gz http://127.0.0.1:8000/predict -o label.nii.gz
  curl -F file=@series.zip 'http://127.0.0.1:8000/predict?format=json'

  MEDLIGHT_TOKEN=... medlight serve RUN_ID --http 8000 --host 0.0.0.0
  curl -H 'Authorization: Bearer ...' -F file=@series.zip http://HOST:8000/predict -o seg.dcm

  medlight serve RUN_ID --dicom 11112 --send-to ARCHIVE@10.0.0.5:104 --host 0.0.0.0 --allow-aet CT1
  storescu -aec MEDLIGHT +sd 127.0.0.1 11112 series

HTTP: POST /predict takes one scan (NIfTI, DICOM, a zip of one DICOM series, a picture), or a form with a file for each
contrast, its field called so, and answers with a DICOM-SEG for DICOM and a NIfTI label map for anything else;
?format=nifti, dicom-seg or json asks for one. GET /info tells what the bundle is, GET /health that the server is there.
Where other machines reach it a token is needed; it travels readably: put a proxy with TLS before it.

DICOM: a series is predicted when its association was released and nothing came for --quiet seconds; its DICOM-SEG is
sent to --send-to, again and again until that has it. Until then all is kept in --spool, over restarts too, and deleted
afterwards. What can't be predicted or sent lies in its folder failed, with the reason, for a week; a series whose
sender was cut off waits a day for the rest. DICOM has no passwords: --allow-aet and --host decide who may send.

Ctrl-C or SIGTERM ends it."""

_HTTP, _DICOM = ("fastapi", "uvicorn", "python_multipart"), ("pynetdicom", "filelock")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``medlight serve``."""
    parser.add_argument("model", metavar="BUNDLE|RUN", help="a bundle folder, or a run (or sweep) that was exported")
    parser.add_argument("--http", type=int, metavar="PORT", help="answer to HTTP here")
    parser.add_argument("--dicom", type=int, metavar="PORT", help="take C-STORE here (11112 is usual)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="HTTP's bearer token (or set MEDLIGHT_TOKEN)")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="another name that HTTP is reached by"
    )
    parser.add_argument("--max-upload", default="2GiB", metavar="SIZE", help="of one HTTP request (default: 2GiB)")
    parser.add_argument("--queue", type=int, default=8, metavar="N", help="HTTP requests that may wait (default: 8)")
    parser.add_argument("--aet", default="MEDLIGHT", help="own title as a DICOM node (default: MEDLIGHT)")
    parser.add_argument("--send-to", metavar="AET@HOST:PORT", help="where DICOM-SEGs are sent")
    parser.add_argument(
        "--allow-aet", action="append", default=[], metavar="AET", help="title that may send (default: every one)"
    )
    parser.add_argument("--quiet", type=float, default=5.0, metavar="SECONDS", help="until a series counts as complete")
    parser.add_argument("--spool", type=Path, metavar="FOLDER", help="what is in hand (default: in the user's state)")
    parser.add_argument("--max-spool", default="50GiB", metavar="SIZE", help="of the spool (default: 50GiB)")
    add_on(parser)
    parser.add_argument("--force", action="store_true", help="predict what does not fit, mend gaps and tilt, and warn")
    parser.add_argument(
        "--runtime", metavar="NAME", help="run this model of the bundle, as openvino-int8 (default: the fastest here)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU runtime (default: one a CPU)")


def run(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    from medlight.cli.bundles import bundle_of, check_runtime, check_threads

    if args.http is None and args.dicom is None:
        raise UsageError("nothing to listen on; give --http PORT, --dicom PORT, or both")
    check_threads(args.threads)
    _check(args)
    bundle = bundle_of(args.model)
    check_runtime(bundle, args.runtime)
    if args.dicom is not None:
        from medlight.deploy.serve.dicom import check_node

        check_node(bundle)
    from medlight.deploy.runtime import Predictor
    from medlight.deploy.runtime.fit_for import UNCHECKED, checks_modality
    from medlight.deploy.serve.turns import Turns
    from medlight.scans.files import apart

    if args.spool:
        apart(bundle.root, args.spool)
    warnings.simplefilter("ignore")  # libraries quote what they stumble over: patients' names
    end = threading.Event()

    def stop(*_: Any) -> None:
        if end.is_set():  # the second time it is meant
            raise KeyboardInterrupt
        end.set()

    with contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            stack.callback(signal.signal, number, signal.signal(number, stop))
        listening = None if args.http is None else stack.enter_context(_bound(args.host.strip("[]"), args.http))
        spool = None if args.dicom is None else _spool(args)
        predictor, turns = Predictor(bundle, args.threads, model=args.runtime), Turns(args.queue)
        own = predictor.preparation
        predictor.preparation = replace(own, on={**own.on, **mends(args.on)})
        print(predictor.runtime)
        if not bundle.checked:
            print(f"unchecked: {bundle.root} tells of no comparison with the trained network")
        if not checks_modality(bundle.data):
            print(UNCHECKED)
        server = _http(args, predictor, turns, stack, listening) if listening else None
        if spool:
            stack.callback(_dicom(args, predictor, turns, spool).stop)
        stack.callback(turns.end)
        print("Ctrl-C ends it", flush=True)
        while not end.wait(0.5) and (server is None or server.alive):
            pass
        if not end.is_set():
            raise MedlightError("HTTP stopped by itself; start it again")
        print("ending", flush=True)


def _check(args: argparse.Namespace) -> None:
    """Refuse what can't be before anything is loaded."""
    for port, name in ((args.http, "--http"), (args.dicom, "--dicom")):
        if port is not None and not 0 <= port < 65536:
            raise UsageError(f"{name} {port}: choose a port from 1024 to 65535")
    for name, number in (("--queue", args.queue), ("--quiet", args.quiet)):
        if not 0 <= number < math.inf:
            raise UsageError(f"{name} {number:g}: give a number of at least 0")
    given = {"--dicom": args.dicom, "--http": args.http}
    needing = {"--send-to": "--dicom", "--allow-aet": "--dicom", "--spool": "--dicom"}
    needing |= {"--token-file": "--http", "--allow-host": "--http"}
    for name, door in needing.items():
        if getattr(args, name[2:].replace("-", "_")) and given[door] is None:
            raise UsageError(f"{name}: is for {door}, which is not given; add {door} PORT, or leave {name} out")
    args.max_upload, args.max_spool = (
        size_of("--max-upload", args.max_upload),
        size_of("--max-spool", args.max_spool),
    )
    wanted = [*(_HTTP if args.http is not None else ()), *(_DICOM if args.dicom is not None else ())]
    for module in wanted:
        if importlib.util.find_spec(module) is None:
            raise needs("serve", module)
    try:
        socket.getaddrinfo(args.host.strip("[]"), None)
    except (OSError, UnicodeError):
        raise UsageError(f"--host {args.host}: no such name or address; give one of this machine's") from None
    if args.http is not None:
        from medlight.deploy.serve.access import check_open, read_token

        args.token = read_token(args.token_file)
        check_open(args.host, args.token)
    if args.dicom is not None:
        if not args.send_to:
            raise UsageError("--dicom: give --send-to AET@HOST:PORT, where the results go")
        from medlight.deploy.serve.sending import Peer, check_title

        args.peer = Peer.parse(args.send_to)
        check_title("--aet", args.aet)
        for title in args.allow_aet:
            check_title("--allow-aet", title)


def size_of(name: str, text: str) -> int:
    """Read a size such as ``2GiB``, ``500MB`` or ``4096``; UsageError where it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B?|B)?", text.strip(), re.IGNORECASE)
    size = 0
    if found:
        power = "KMGT".index(found[2].upper()) + 1 if found[2] else 0
        size = int(float(found[1]) * (1024 if found[3] else 1000) ** power)
    if size <= 0:
        raise UsageError(f"{name} {text}: is no size; give one such as 2GiB")
    return size


def _http(
    args: argparse.Namespace,
    predictor: Predictor,
    turns: Turns,
    stack: contextlib.ExitStack,
    listening: socket.socket,
) -> HttpServer:
    from medlight.deploy.serve.access import own_names
    from medlight.deploy.serve.http import HttpServer, application
    from medlight.deploy.serve.upload import Limits

    host = args.host.strip("[]")
    limits = Limits(args.max_upload, 4 * args.max_upload)
    names = own_names(host, args.allow_host)
    app = application(predictor, turns, names=names, token=args.token, limits=limits, force=args.force)
    server = HttpServer(app, listening)
    server.start()
    stack.callback(server.stop)
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    shown = f"[{near}]" if ":" in near else near
    asked = "with the token" if args.token else "no token asked for"
    print(f"HTTP: http://{shown}:{listening.getsockname()[1]} ({asked})", flush=True)
    return server


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UsageError(f"--http {port} on {host}: can't be listened on ({reason}); choose another") from None


def _spool(args: argparse.Namespace) -> Spool:
    from medlight.deploy.serve.spool import Spool

    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return Spool(args.spool or state / "medlight" / "spool", args.max_spool, args.quiet)


def _dicom(args: argparse.Namespace, predictor: Predictor, turns: Turns, spool: Spool) -> Listener:
    from medlight.deploy.serve.dicom import Listener

    options: dict[str, Any] = {"title": args.aet, "callers": args.allow_aet, "force": args.force}
    listener = Listener(predictor, turns, spool, args.peer, **options)
    port = listener.start(args.host.strip("[]"), args.dicom)
    print(f"DICOM: {args.aet}@{args.host}:{port}, results to {args.peer}; spool {spool.root}", flush=True)
    return listener
