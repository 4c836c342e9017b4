"""Command-line behaviour of all programs: one line for each mistake, exit codes, and signals handled in good order."""

import argparse
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from snn import output
from snn.errors import InputError

LOST_PROCESS = r"\bgloo\b|\bNCCL\b|Connection (closed|reset) by peer"  # in the errors of torch.distributed


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises InputError for a wrong option. --help shows the first line of the module's docstring."""

    def __init__(self, *, description: str | None = None, **words: Any):
        super().__init__(description=(description or "").partition("\n")[0], **words)  # python -OO leaves None

    def error(self, message: str) -> NoReturn:
        raise InputError(f"command line: {message}; {self.prog} --help lists the options")


class Interruption:
    """A context that only records SIGINT and SIGTERM, in `number` (0: none came), so that work ends in good order.

    A second Ctrl-C ends the program at once with `advice`. Signals that the shell ignores stay ignored.
    """

    def __init__(self, advice: str):
        self.advice, self.number = advice, 0

    def __enter__(self) -> "Interruption":
        heard = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt(self.advice)
        self.number = number


class Interrupted(Exception):
    """An exception that ends the program because a signal of this number came; completed work is kept."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


def end_at_ctrl_c() -> None:
    """Let Ctrl-C end a program with one line and exit code 130 while it imports packages, until `run` takes over.

    Programs call it, so that a library user's Ctrl-C stays as it is. A Ctrl-C that the shell ignores stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(*_: object) -> None:
    os.write(2, b"interrupted\n")  # print may be at work already
    os._exit(130)  # packages catch, or take for their own, an exception that falls into their import


def _quiet_about_ctrl_c(unraisable: "sys.UnraisableHookArgs") -> None:
    """Do not report a Ctrl-C within a finaliser, out of which Python raises nothing."""
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)


def _quiet_about_files(failure: "threading.ExceptHookArgs") -> None:
    """Do not report a full disk twice: TensorBoard's thread raises the error again in `snn.runs.log`."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


def run(main: Callable[[], None]) -> None:
    """Run a program. Mistakes of the user and faults of the machine give one line and exit code 2; Ctrl-C gives 130.

    SIGTERM gives 143 in programs that use `Interruption`.
    """
    output.replace_closed_streams()
    output.take_any_character()
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.unraisablehook = _quiet_about_ctrl_c
    threading.excepthook = _quiet_about_files
    try:
        main()
    except InputError as error:
        message, code = f"error: {error}", 2
    except (MemoryError, RuntimeError) as error:
        if re.search(LOST_PROCESS, str(error)):
            message = (
                "error: another process of this training has ended or does not answer; its own message and torchrun's "
                "report say why, and the same command with --resume continues from the last checkpoint"
            )
        elif isinstance(error, MemoryError) or re.search("can't allocate memory|out of memory", str(error)):
            message = "error: out of memory; a smaller batch, T or network may fit"
        else:
            raise
        code = 2
    except BrokenPipeError:  # the reader of our output, `head` for example, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise  # the fault is ours and not in a file of the user
        message, code = f"error: {error.filename or 'writing'}: {error.strerror}", 2
    except Interrupted as interrupted:
        message, code = str(interrupted), 128 + interrupted.number
    except KeyboardInterrupt as interrupt:
        message, code = str(interrupt) or "interrupted", 130
    else:
        return
    print(" ".join(message.split()), file=sys.stderr)
    sys.exit(code)
