"""`python -m runtime`: restore clips, look at installations and bundles."""

import sys

from runtime.cli import main

if __name__ == "__main__":
    sys.exit(main())
