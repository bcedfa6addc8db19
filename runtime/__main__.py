"""`python -m runtime`: restore clips, look at installations and bundles."""

import sys

from runtime import shell


def _command() -> int:
    from runtime.cli import main  # takes a while, in which Ctrl-C is to be understood already

    return main()


if __name__ == "__main__":
    sys.exit(shell.run(_command))
