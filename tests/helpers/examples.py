"""How many examples a property test takes."""

import os

TIMES = int(os.environ.get("VSR_TRT_EXAMPLES", "1"))


def examples(usual: int) -> int:
    """So many; `VSR_TRT_EXAMPLES=20` makes it twenty times as many."""
    return TIMES * usual
