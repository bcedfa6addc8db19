"""How a command behaves in a shell: signals, pipes that close, full disks, terminals that cannot show everything, no
home folder.

Standard library only, and little of it: it has to be in force before anything else is imported, which takes a second
or more. A command line's `__main__` hands its command to `run`; the rest of it is for the code in between.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TextIO

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM."""
HUNG_UP = 129
"""Exit code after SIGHUP: the terminal was lost."""
BROKEN_PIPE = 141
"""Exit code where nobody read standard output or standard error to its end; the work itself was done."""
NOT_WRITTEN = 3
"""Exit code where standard output or standard error could not be written: the disk is full."""

_STOPPED = "interrupted; nothing half-written was left behind.\n"
_PATIENCE = 10.0  # seconds after a signal in which further ones change nothing
_AGAIN = 0.05  # seconds until a signal that was lost is sent again


class Hangup(KeyboardInterrupt):
    """The terminal was lost (SIGHUP). Unlike after Ctrl-C, what was finished is worth keeping: nobody chose to stop.

    Attributes:
        kept: a sentence about what was kept, if anything.
    """

    kept: str | None = None


_NUMBERS: dict[int, type[KeyboardInterrupt]] = {
    int(number): kind
    for name, kind in (("SIGINT", KeyboardInterrupt), ("SIGTERM", KeyboardInterrupt), ("SIGHUP", Hangup))
    if (number := getattr(signal, name, None)) is not None  # Windows has no SIGHUP
}


class _Signals:
    """What a signal does, which depends on how far the command is.

    - Before the work: nothing was begun. A sentence, and the process ends. (An exception could be lost in an import.)
    - In the work: an exception, KeyboardInterrupt or Hangup; inside of a `shield` once that has ended.
    - While that is on its way, and files are cleaned up: nothing. Only seconds later, an exception again: libraries do
      lose exceptions.
    - After the work: the process ends with the exit code that it would have ended with.

    Signals that are ignored when the process starts, as SIGHUP under nohup and SIGINT in the background of a shell
    script, stay ignored.
    """

    def __init__(self) -> None:
        self._phase = "starting"
        self._raised: int | None = None  # the signal
        self._when = 0.0
        self._shields = 0
        self._waiting: int | None = None
        self._code = 0

    @property
    def raised(self) -> int | None:
        """The signal that became an exception since the work began."""
        return self._raised

    def install(self) -> dict[int, Any]:
        """Takes over the signals; what was in force, to be given to `restore`."""
        before = {}
        for number in _NUMBERS:
            try:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    before[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: the host application's business
                break
        return before

    @staticmethod
    def restore(before: dict[int, Any]) -> None:
        """Puts back what `install` returned."""
        for number, handler in before.items():
            signal.signal(number, handler)

    def enter(self, phase: str, code: int = 0) -> str:
        """Goes on to `working`, `closing` (nothing interrupts) or `ended` (with an exit code); the phase before."""
        before, self._phase, self._code = self._phase, phase, code
        if phase == "working":
            self._raised = self._waiting = None
        return before

    @contextlib.contextmanager
    def shield(self) -> Iterator[None]:
        """Signals wait until the block has ended, if it is the main thread that is in it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
            number = self._waiting
            if number is not None and not self._shields:
                self._waiting = None
                self._handle(number, None)

    def lost(self, kind: type[BaseException] | None) -> None:
        """Told of an exception that nobody got to see: raised in a destructor, for example."""
        if kind is not None and issubclass(kind, KeyboardInterrupt) and self._phase == "stopping":
            self._phase = "working"
            threading.Thread(target=self._send_again, daemon=True).start()

    def _send_again(self) -> None:
        time.sleep(_AGAIN)
        if self._phase == "working" and self._raised is not None:
            if hasattr(signal, "pthread_kill"):
                main = threading.main_thread().ident
                signal.pthread_kill(main or 0, self._raised)  # wakes the thread that has to hear of it
            else:
                signal.raise_signal(self._raised)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._phase == "starting":
            _write_plainly(_STOPPED)
            os._exit(code_of(number))
        if self._phase == "ended":
            os._exit(self._code)
        if self._phase == "closing":
            return
        if self._shields:
            self._waiting = self._waiting or number
            return
        now = time.monotonic()
        if self._phase == "stopping" and now - self._when < _PATIENCE:
            return
        self._phase, self._raised, self._when = "stopping", number, now
        raise _NUMBERS[number]


_signals = _Signals()
shield = _signals.shield
"""A context in which signals wait until it ends: for steps that belong together, and take no time."""


def code_of(number: int) -> int:
    """The exit code after a signal."""
    return HUNG_UP if _NUMBERS.get(number) is Hangup else INTERRUPTED


def interrupted_by() -> int | None:
    """The signal that ended the work, None where none did."""
    return _signals.raised


@contextlib.contextmanager
def working() -> Iterator[None]:
    """The work: signals raise KeyboardInterrupt (SIGINT, SIGTERM) or Hangup (SIGHUP) in it."""
    handlers = _signals.install()
    hook = sys.unraisablehook

    def unraisable(lost: Any) -> None:
        _signals.lost(lost.exc_type)
        if not issubclass(lost.exc_type or Exception, KeyboardInterrupt):
            hook(lost)

    sys.unraisablehook = unraisable
    before = _signals.enter("working")
    try:
        yield
    finally:
        _signals.enter(before)
        sys.unraisablehook = hook
        _signals.restore(handlers)


@contextlib.contextmanager
def closing() -> Iterator[None]:
    """The end of the work, where the last is cleaned up and said: signals change nothing."""
    before = _signals.enter("closing")
    try:
        yield
    finally:
        _signals.enter(before)


def begin() -> None:
    """To be called first by a command line: from here on, signals, streams and HOME are as this module says."""
    _signals.install()
    _open_missing()
    codecs.register_error(_HANDLER, _shown)
    sys.stdout, sys.stderr = _tolerant(1, sys.stdout), _tolerant(2, sys.stderr)
    if os.name == "posix":
        os.environ["HOME"] = home()
    columns = os.environ.get("COLUMNS", "")
    if not (columns.isascii() and columns.isdigit() and 0 < int(columns[:9]) <= _MOST_COLUMNS):
        os.environ.pop("COLUMNS", None)  # 0 stands for unknown, and rich would show nothing


def run(command: Callable[[], int]) -> int:
    """Runs a command to its end, whatever that is; for `sys.exit(run(...))`.

    Args:
        command: imports what it needs, and returns an exit code.

    Returns:
        The exit code: the command's, or BROKEN_PIPE or NOT_WRITTEN where it is 0 and what was printed did not arrive.
    """
    begin()
    return end(command)


def end(command: Callable[[], int]) -> int:
    """As `run`, after `begin`."""
    try:
        code = command()
    except SystemExit as stop:  # of argparse
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        _write_plainly(_STOPPED)
        code = INTERRUPTED
    except Exception:
        sys.excepthook(*sys.exc_info())
        code = 1
    _signals.enter("ended", code or INTERRUPTED)
    code = _delivered(code)
    _signals.enter("ended", code)
    return code


def _delivered(code: int) -> int:
    """Whether everything that was printed arrived; the exit code that says so."""
    failed = []
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
        raw = getattr(getattr(stream, "buffer", None), "raw", None)
        if isinstance(raw, _Tolerant) and raw.failure is not None:
            failed.append(raw)
            if raw.fileno() == 1 and not raw.unread:
                _say_incomplete(raw.failure)
    if code or not failed:
        return code
    return BROKEN_PIPE if all(raw.unread for raw in failed) else NOT_WRITTEN


def _say_incomplete(failure: OSError) -> None:
    full = failure.errno in (errno.ENOSPC, errno.EDQUOT)
    _write_plainly(
        f"error: standard output cannot be written: {failure.strerror}. What was printed is not complete; "
        f"{'free some space, or write' if full else 'write'} to another place.\n"
    )


# -- streams -----------------------------------------------------------------------------------------------


class _Tolerant(io.FileIO):
    """A stream that never fails: after the first error, what is written goes nowhere.

    Progress and reports are not worth the work that they tell of. `failure` is the error, for the end.
    """

    failure: OSError | None = None

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._terminal = self.isatty()

    @property
    def unread(self) -> bool:
        """Whether it failed because the other side has gone."""
        gone = isinstance(self.failure, (BrokenPipeError, ConnectionResetError))
        return gone or (self.failure is not None and self.failure.errno == errno.EIO and self._terminal)

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        while self.failure is None:
            try:
                written = super().write(data)
            except OSError as error:
                self.failure = error
                break
            if written is not None:
                return written
            self._wait()  # somebody else made the pipe one that does not wait
        return size

    def _wait(self) -> None:
        import select

        select.select([], [self.fileno()], [])


def _tolerant(descriptor: int, stream: TextIO | None) -> TextIO:
    """The same stream with errors kept, and with characters replaced that its encoding does not have."""
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(_Tolerant(descriptor)),
        encoding=encoding,
        errors=_HANDLER,
        line_buffering=descriptor == 2 or getattr(stream, "line_buffering", False),
        write_through=getattr(stream, "write_through", False),
    )


def _open_missing() -> None:
    """Descriptors 0, 1 and 2 that were closed (`>&-`): else the next file that is opened gets such a number, and what
    a library prints ends up in it. Standard output stays one that cannot be written."""
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError as error:
            if error.errno == errno.EBADF:
                os.set_inheritable(os.open(os.devnull, mode), True)  # the lowest free number is this one


_MOST_COLUMNS = 10_000
_HANDLER = "vsr-trt.shown"
_PLAIN = {
    "…": "...", "–": "-", "—": "-", "×": "x", "•": "*", "·": "-", "→": "->", "≤": "<=", "≥": ">=", "±": "+-",
    "‘": "'", "’": "'", "“": '"', "”": '"',
}  # fmt: skip
_RANGES = ((0x2500, 0x257F, "-"), (0x2580, 0x259F, "|"), (0x2800, 0x28FF, "*"))  # lines, blocks, spinners


def _shown(error: UnicodeError) -> tuple[str, int]:
    """What is shown instead of characters that a terminal's encoding does not have."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_replaced, error.object[error.start : error.end])), error.end


def _replaced(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is no text
        return f"\\x{code - 0xDC00:02x}"
    for first, last, plain in _RANGES:
        if first <= code <= last:
            return plain
    return character.encode("ascii", "backslashreplace").decode()


def _write_plainly(text: str) -> None:
    """To standard error, without any of Python's layers, which may be in the midst of something."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode("ascii", "backslashreplace"))


# -- home --------------------------------------------------------------------------------------------------


def home() -> str:
    """The user's home folder, where libraries keep caches. Where there is none, a folder that only the user may read,
    in the system's temporary one: else libraries make a folder named ~ in the working directory, or fail."""
    if os.name != "posix":
        return os.path.expanduser("~")  # noqa: PTH111
    given = os.environ.get("HOME", "")
    if os.path.isabs(given):  # noqa: PTH117  (pathlib is not imported yet)
        return given
    try:
        import pwd

        given = pwd.getpwuid(os.getuid()).pw_dir
    except (ImportError, KeyError, AttributeError):
        given = ""
    if os.path.isabs(given) and os.access(given, os.W_OK | os.X_OK):  # noqa: PTH117
        return given
    return _private_folder()


def _private_folder() -> str:
    import atexit
    import stat
    import tempfile

    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = os.path.join(tempfile.gettempdir(), f"vsr-trt-home-{user}")  # noqa: PTH118
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)  # noqa: PTH102
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o077:
        folder = tempfile.mkdtemp(prefix="vsr-trt-home-")  # the name is somebody else's

    def remove() -> None:
        with contextlib.suppress(OSError):  # it holds caches
            os.rmdir(folder)  # noqa: PTH106

    atexit.register(remove)
    return folder
