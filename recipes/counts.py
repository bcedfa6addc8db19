"""Writes down what networks of a family's published size take: `python -m vsr_trt.recipes.counts BUNDLE FILE [WxH]`.

`vsr doctor` estimates with that where there is no bundle yet. Weights make no difference, so a bundle of random weights
of the published size will do (`vsr-build full-size --keep`). WxH is the published least canvas, where the bundle's is
another. Needed again when exported graphs change; full-size runs say so.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
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
    chosen = [  # tables of which options choose one: those that are missing are refused
        re.sub(r"\{\w+\}", "*", given.name)
        for given in manifest.inputs.values()
        if given.source == "file" and given.name is not None and "{" in given.name
    ]
    files = {
        name: FileEntry(entry.bytes, "")
        for name, entry in manifest.files.items()
        if name.endswith(_WEIGHTS) or any(fnmatch.fnmatch(name, pattern) for pattern in chosen)
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
    return known is not None and _networks(known) == _networks(found)


def _networks(manifest: Manifest) -> Manifest:
    """Without what a small bundle has otherwise: how large files are, and the least canvas."""
    return dataclasses.replace(manifest, files={}, canvas=dataclasses.replace(manifest.canvas, least=(1, 1)))


def main(bundle: str, file: str, canvas: str | None = None) -> None:
    """Writes `of_bundle` as JSON."""
    found = of_bundle(Path(bundle))
    if canvas is not None:
        width, height = (int(side) // found.scale for side in canvas.split("x"))
        found = dataclasses.replace(found, canvas=dataclasses.replace(found.canvas, least=(height, width)))
    Path(file).write_text(json.dumps(dataclasses.asdict(found)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
