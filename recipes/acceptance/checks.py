"""What a step's own result must say before it counts as passed: an exit code of 0 alone proves too little."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vsr_trt.kernels.gated_topk.benchmark import GPU_FORMS

_NOT_HERE = (
    "no CUDA driver",
    "no GPU that CUDA can use",
    "cuda-python is missing",
    "torch is a build without CUDA",
)
LEAST_PSNR = 35.0  # dB, of FP16 engines against FP32 on the CPU
MOST_DIFFERENCE = 1e-3  # of the kernels' forms, relative; FP32 in another order, or TF32 products


def ran_engines(result: Any) -> str | None:
    """Of `verify --json`: engines were run, not skipped."""
    networks = result.get("networks", {}) if isinstance(result, dict) else {}
    count = sum(len(network.get("engines", ())) for network in networks.values())
    return None if count else f"no engine was run: {_said(result)}"


def _said(result: Any) -> str:
    return str(result.get("engines", "no report")) if isinstance(result, dict) else "no report"


def read_tests(path: Path) -> dict[str, Any]:
    """Counts and reasons of a JUnit report of pytest's.

    Raises:
        ValueError: it is no such report.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is no report of tests: {error}") from error
    cases = list(root.iter("testcase"))
    skipped = Counter(_reason(skip) for case in cases for skip in case.iter("skipped"))
    failed = [f"{case.get('classname')}.{case.get('name')}" for case in cases if _failed(case)]
    return {
        "tests": len(cases),
        "passed": len(cases) - len(failed) - sum(skipped.values()),
        "failed": failed,
        "not_run": dict(skipped),
    }


def _reason(skip: ElementTree.Element) -> str:
    """Why a test was left out; of a whole file, that is the end of what pytest prints about it."""
    message = skip.get("message", "")
    if message != "collection skipped":
        return message
    return re.sub(r"""['"]\)\s*$""", "", (skip.text or "").rpartition("Skipped: ")[2])


def _failed(case: ElementTree.Element) -> bool:
    return case.find("failure") is not None or case.find("error") is not None


def ran_tests(result: Any) -> str | None:
    """Of `read_tests`: tests were run, and none was left out for want of a driver or of torch with CUDA."""
    if not isinstance(result, dict) or not result.get("passed"):
        return "no test was run"
    wanting = [reason for reason in result["not_run"] if any(words in reason for words in _NOT_HERE)]
    return f"tests were not run: {wanting[0]}" if wanting else None


def all_hold(result: Any) -> str | None:
    """Of a program that prints named checks: each holds."""
    found = result.get("checks", {}) if isinstance(result, dict) else {}
    wrong = [name for name, holds in found.items() if not holds]
    return f"not so: {', '.join(wrong)}" if wrong or not found else None


def ran_kernels(result: Any, expected: Sequence[str] = GPU_FORMS) -> str | None:
    """Of `vsr_trt.kernels bench --json`: the forms for a GPU were timed, and computed what the others do."""
    rows = result.get("measured", []) if isinstance(result, dict) else []
    forms = {row["form"] for row in rows}
    if missing := [form for form in expected if form not in forms]:
        return f"not measured: {', '.join(missing)}"
    wrong = [row for row in rows if not row["difference"] <= MOST_DIFFERENCE]  # NaN is wrong, too
    said = [f"{row['form']} at {row['height']}x{row['width']}: {row['difference']:.0e}" for row in wrong]
    return f"another result, relative: {'; '.join(said)}" if said else None


def compare_pictures(one: Path, other: Path) -> dict[str, Any]:
    """PSNR of two folders of pictures, frame by frame.

    Raises:
        ValueError: they do not hold the same pictures.
    """
    from PIL import Image

    names = sorted(path.name for path in one.iterdir())
    if not names or names != sorted(path.name for path in other.iterdir()):
        raise ValueError(f"{one} and {other} do not hold the same pictures")
    values = []
    for name in names:
        a, b = (np.asarray(Image.open(folder / name)).astype(np.float64) for folder in (one, other))
        error = float(np.mean((a - b) ** 2))
        values.append(10 * np.log10(255**2 / error) if error else 100.0)
    return {"frames": len(values), "psnr": values}


def are_near(result: Any) -> str | None:
    """Of `compare_pictures`: no frame is further away than FP16 explains."""
    least = min(result["psnr"])
    return (
        None
        if least >= LEAST_PSNR
        else f"a frame is {least:.1f} dB from the CPU's, at least {LEAST_PSNR:g} expected"
    )
