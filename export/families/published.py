"""What is published of each family, by its name. Imports nothing heavy: it is read for `--help`."""

from __future__ import annotations

from vsr_trt.export.families.dloral import published as dloral
from vsr_trt.export.families.star import published as star
from vsr_trt.export.published import Wanted

FAMILIES: dict[str, Wanted] = {"dloral": dloral.WANTED, "star": star.WANTED}
