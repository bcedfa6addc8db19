"""Reading a bundle's manifest, of this schema version or an older one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vsr_trt.runtime.bundle import schema_1, schema_2, schema_3, schema_4
from vsr_trt.runtime.bundle.checks import check
from vsr_trt.runtime.bundle.manifest import MANIFEST_NAME, SCHEMA_VERSION, Manifest
from vsr_trt.runtime.bundle.records import MisfitError, parse
from vsr_trt.runtime.errors import BundleError

_OLDEST = 1


def read_manifest(bundle: Path) -> Manifest:
    """Reads and checks `bundle.json`; touches no other file.

    Raises:
        BundleError: no bundle there, another schema version, a field missing, unknown or of another type, a path that
            leaves the bundle, names that refer to nothing.
    """
    path = bundle / MANIFEST_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"{bundle} is not a bundle: it has no {MANIFEST_NAME}. "
            "Make one with: vsr-build bundle --sd DIR --checkpoint FILE --out BUNDLE"
        ) from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}. Build the bundle again.") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is not int or not _OLDEST <= version <= SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {version!r}, this runtime reads versions {_OLDEST} to {SCHEMA_VERSION}. "
            "Build the bundle again with this version's vsr-build bundle, or use the runtime it was made for."
        )
    try:
        manifest: Manifest = parse(Manifest, migrated(data), MANIFEST_NAME)
        check(manifest)
    except MisfitError as error:
        raise BundleError(f"{path} is damaged: {error}. Build the bundle again.") from error
    return manifest


def migrated(data: dict[str, Any]) -> dict[str, Any]:
    """Returns a manifest of any schema version in the present one."""
    for newer, schema in ((2, schema_1), (3, schema_2), (4, schema_3), (5, schema_4)):
        if data["schema_version"] < newer:
            data = schema.migrated(data)
    return data
