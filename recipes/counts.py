"""Writes down what the networks of a family's published size take: `python -m vsr_trt.recipes.counts BUNDLE FILE`.

`vsr doctor` estimates with that where there is no bundle yet. Weights make no difference, so a bundle of random weights
of the published size will do (`vsr-build full-size --keep DIR`). Needed again when exported graphs change; the
full-size tests say so.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from vsr_trt.runtime.bundle.manifest import FileEntry, Manifest
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.plan import cost

_WEIGHTS = ".data"  # ends the names of files whose sizes are needed, to know the memory


def of_bundle(bundle: Path) -> Manifest:
    """The part of a bundle's manifest that says what its networks take.

    Raises:
        BundleError: no bundle is there.
    """
    manifest = read_manifest(bundle)
    files = {
        name: FileEntry(entry.bytes, "") for name, entry in manifest.files.items() if name.endswith(_WEIGHTS)
    }
    networks = {
        name: dataclasses.replace(network, kernel=None) for name, network in manifest.networks.items()
    }
    return dataclasses.replace(
        manifest,
        networks=networks,
        files=files,
        prompt=None,
        provenance=None,
        kernels=(),
        engines=(),
        calibration=None,
    )


def is_current(bundle: Path) -> bool:
    """Whether what is written down of a bundle's family is what that bundle's networks take.

    Raises:
        BundleError: no bundle is there.
    """
    found = of_bundle(bundle)
    known = {manifest.family: manifest for manifest in cost.published()}.get(found.family)
    return known is not None and dataclasses.replace(known, files={}) == dataclasses.replace(found, files={})


def main(bundle: str, file: str) -> None:
    """Writes `of_bundle` as JSON."""
    content = json.dumps(dataclasses.asdict(of_bundle(Path(bundle))))
    Path(file).write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
