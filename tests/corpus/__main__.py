"""python -m tests.corpus --count 2000 --seed 1 --jobs 2 --json FILE: makes, restores and compares the corpus."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from corpus import generate, pool


def main() -> int:
    """Exit code 1 if there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="files of the list to check (100)")
    parser.add_argument("--seed", type=int, default=1, help="which list (1)")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (2)")
    parser.add_argument("--only", default="", help="only recipes whose name has this in it")
    parser.add_argument("--json", type=Path, help="where to write all results")
    parser.add_argument("--list", action="store_true", help="print the recipes, make nothing")
    arguments = parser.parse_args()
    recipes = [r for r in generate.recipes(arguments.count, arguments.seed) if arguments.only in r.name]
    if arguments.list:
        for recipe in recipes:
            print(recipe.dumps())
        return 0
    began, results = time.monotonic(), []
    for number, checked in enumerate(pool.run(recipes, arguments.jobs), 1):
        results.append(checked)
        for finding in checked.findings:
            print(f"\r{checked.recipe.name} -> {checked.recipe.output}: {finding}", flush=True)
        if sys.stderr.isatty():
            print(f"\r{number} of {len(recipes)}", end="", file=sys.stderr)
    counts = Counter(checked.result for checked in results)
    found = [checked for checked in results if checked.findings]
    print(
        f"{len(results)} files in {time.monotonic() - began:.0f} s: "
        + ", ".join(f"{v} {k}" for k, v in counts.most_common())
    )
    print(f"{len(found)} with findings")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(checked) for checked in results], indent=1))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
