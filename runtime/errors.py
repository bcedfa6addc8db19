"""The errors of vsr-trt: one small hierarchy.

Every message is a sentence or two for the person at the terminal: what was wrong, what was expected
and, where there is one, the command that fixes it. The command lines print the message and exit
with `exit_code`; library users catch `VsrError` or one of its kinds.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""What an OSError's `errno` is where the disk, or the user's share of it, is full."""


class VsrError(Exception):
    """Anything that this project refuses. `exit_code` is what a command line exits with."""

    exit_code = 1


class InputError(VsrError):
    """The input clip, picture or option value cannot be used."""

    exit_code = 2


class OutputError(VsrError):
    """The output cannot be written: it exists, its folder is missing, the disk is full."""

    exit_code = 3


class BundleError(VsrError):
    """The bundle is not one, lost or changed a file, or has another schema version."""

    exit_code = 4


class CheckpointError(VsrError):
    """Weights of another layout, a missing key, a wrong shape, a damaged or unsafe file."""

    exit_code = 5


class ExportError(VsrError):
    """A network could not be exported, or its graph disagrees with torch."""

    exit_code = 6


class DeviceError(VsrError):
    """No usable inference library, not enough memory, or a network failed while running."""

    exit_code = 7


class FrameError(DeviceError):
    """A frame could not be restored.

    Attributes:
        frame: running number of the frame in its clip, from 0.
        stage: in which it failed.
        results: of earlier frames, in order, that were finished and not returned yet.
    """

    def __init__(self, message: str, frame: int, stage: str, results: Sequence[Any]) -> None:
        super().__init__(message)
        self.frame, self.stage, self.results = frame, stage, list(results)


class VerificationError(VsrError):
    """Results differ more than the documented thresholds allow, or are not finite."""

    exit_code = 9


class EngineError(VsrError):
    """An engine cannot be built, or does not fit this machine or library version."""

    exit_code = 10


class TruncatedInputError(InputError):
    """The clip ended in damaged data; what was readable has been restored.

    `partial` is the path under which the restored part was kept.
    """

    exit_code = 8

    def __init__(self, message: str, partial: str | None = None) -> None:
        super().__init__(message)
        self.partial = partial
