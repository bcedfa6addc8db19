"""The command `vsr-build`."""

import sys

from vsr_trt.runtime.machine import shell


def _command() -> int:
    from vsr_trt.build import main  # takes a while, in which Ctrl-C is to be understood already

    return main()


def command() -> int:
    """The command `vsr-build`; returns its exit code."""
    return shell.run(_command)


if __name__ == "__main__":
    sys.exit(command())
