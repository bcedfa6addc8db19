"""Checks recipes that come as lines of JSON on standard input; answers each with a line of JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing but answers goes there
    from corpus import compare
    from corpus.recipe import Recipe

    for line in sys.stdin:
        recipe, began = Recipe.loads(line), time.perf_counter()
        if recipe.name == os.environ.get("CORPUS_CRASH"):
            os.kill(os.getpid(), signal.SIGSEGV)  # for the test of the pool
        folder = Path(tempfile.mkdtemp(prefix="corpus-"))
        print(folder, file=answers, flush=True)  # for who has to clean up behind a crash
        try:
            outcome = compare.check(recipe, folder)
            answer = {"result": outcome.result, "findings": outcome.findings, "said": outcome.said}
        except Exception:
            answer = {
                "result": "restored",
                "findings": ["the comparison failed: " + traceback.format_exc(limit=-6)],
            }
        finally:
            if not os.environ.get("CORPUS_KEEP"):
                compare.emptied(folder)
        print(json.dumps(answer | {"seconds": time.perf_counter() - began}), file=answers, flush=True)


if __name__ == "__main__":
    main()
