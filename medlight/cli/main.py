"""The command line: chooses the command, and imports only that one."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import importlib
import io
import logging
import os
import re
import sys
from collections.abc import Sequence

from medlight import __version__
from medlight.errors import MedlightError

COMMANDS = {
    "doctor": "what this machine can do, and what is missing",
    "data": "check, convert, de-identify and prepare scans, download public data sets",
    "fit": "train one experiment",
    "validate": "measure a checkpoint on the validation cases",
    "test": "measure a checkpoint on the test cases",
    "sweep": "search architectures and hyper-parameters, one process a trial",
    "rerun": "run a recorded run once more, and say whether it comes out the same",
    "reproduce": "run a study of published results, and say whether they came out",
    "compare": "compare runs or a sweep: table, paired tests, HTML page",
    "export": "turn a run's best checkpoint into a checked bundle",
    "predict": "run a bundle on scans",
    "serve": "serve a bundle over HTTP and as a DICOM node",
    "ui": "start the MLflow UI on this folder's runs",
}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
EXAMPLE = """\
example:
  medlight doctor
  medlight fit -c experiments/hippocampus/fit.yaml
  medlight compare RUN_ID RUN_ID

`medlight COMMAND --help` shows a command's arguments with an example.
Exit codes: 0 fine, 1 the work failed, 2 the call was wrong."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with exit code 2."""

    def error(self, message: str) -> None:  # type: ignore[override]
        message += self._nearest(message)
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)

    def _nearest(self, message: str) -> str:
        """What was meant by a word that is none of the choices."""
        from medlight.config import nearest

        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        return nearest(choice[1], re.findall(r"[\w-]+", choice[2])) if choice else ""


def options(parser: argparse.ArgumentParser) -> set[str]:
    """The flags of a parser and of its actions."""
    flags = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            flags |= set().union(*map(options, action.choices.values()))
    return flags


def _asked(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the action that is asked for, where the command has actions."""
    word = next((text for text in arguments if not text.startswith("-")), "")
    actions = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return next((action.choices[word] for action in actions if word in action.choices), parser)


def misspelled(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> str | None:
    """What is wrong with a flag that is nearly one of the parser's, before it is taken for a key of a configuration."""
    parser = _asked(parser, arguments)
    known = options(parser)
    for name in (text.split("=")[0] for text in arguments if text.startswith("--")):
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        if close and name not in known and "." not in name:
            return f"{name}: no such option (did you mean {close[0]!r}?); see {parser.prog} --help"
    return None


def root_parser() -> argparse.ArgumentParser:
    """The parser of ``medlight`` itself; a command's own parser is made once it is chosen."""
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parser = _Parser(
        prog="medlight",
        description="Launch experiment sweeps on medical scans, compare the runs in MLflow, reproduce papers.\n\n"
        f"commands:\n{listing}",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"medlight {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def command_parser(name: str) -> tuple[argparse.ArgumentParser, object]:
    """The parser and the module of one command."""
    module = importlib.import_module(f"medlight.cli.{'fit' if name in ('validate', 'test') else name}")
    parser = _Parser(
        prog=f"medlight {name}",
        description=COMMANDS[name],
        epilog=getattr(module, "EPILOG", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    module.add_arguments(parser)
    return parser, module


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``medlight``; returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # what is told may hold a file's name that is no UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    split = next((i for i, text in enumerate(arguments) if not text.startswith("-")), len(arguments))
    root = root_parser()
    chosen = root.parse_args(arguments[: split + 1])
    if chosen.command is None:
        root.print_help()
        return 0
    if chosen.command not in COMMANDS:
        from medlight.config import nearest

        print(f"medlight: no command {chosen.command!r}{nearest(chosen.command, COMMANDS)}", file=sys.stderr)
        return 2
    parser, module = command_parser(chosen.command)
    parser.set_defaults(command=chosen.command, debug=chosen.debug)
    wrong = misspelled(parser, arguments[split + 1 :])
    if wrong:
        print(f"{_asked(parser, arguments[split + 1 :]).prog}: {wrong}", file=sys.stderr)
        return 2
    args, overrides = parser.parse_known_args(arguments[split + 1 :])
    if overrides and not getattr(module, "TAKES_OVERRIDES", False):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    args.overrides = overrides
    # what goes on after an error, as a fit does, shows its traceback by this
    logging.getLogger("medlight").setLevel(logging.DEBUG if args.debug else logging.NOTSET)
    return _run(module, args)


def _run(module: object, args: argparse.Namespace) -> int:
    try:
        code = module.run(args)  # type: ignore[attr-defined]
        sys.stdout.flush()  # else a full disk is met at the very end, with a traceback
    except MedlightError as error:
        if args.debug:
            raise
        print(f"medlight {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        _drop_output()
        return 1
    except KeyboardInterrupt:
        print(f"medlight {args.command}: interrupted", file=sys.stderr)
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            _drop_output()
        if args.debug:
            raise
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            where = error.filename or "the output"
            text = f"{where}: can't be written ({error.strerror}); make room, or write elsewhere"
        elif isinstance(error, OSError) and error.errno in _NOT_ALLOWED and error.filename:
            text = f"{error.filename}: {error.strerror}; mend: change its permissions, or work in another folder"
        else:
            text = " ".join(f"{type(error).__name__}: {error}".split()) + " (--debug shows where)"
        print(f"medlight {args.command}: {text}", file=sys.stderr)
        return 1
    return int(code or 0)


def _drop_output() -> None:
    """What is left of standard output goes nowhere: else Python tries to write it once more as it ends."""
    with contextlib.suppress(OSError, ValueError):  # a test's stream is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    raise SystemExit(main())
