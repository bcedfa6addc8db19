"""What TensorRT-RTX demands of whoever sets our flags, in its own sentences: searched for in its shared object.

A flag that is set where engines are built may ask something of the code that loads them; nothing here runs an engine,
so the library would say it on the first GPU only. What it says of each flag is listed with where it is heeded.
"""

from __future__ import annotations

import importlib.util
import mmap
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Sentences that ask something of who sets the flag, or of who loads the engine.
_LONGEST = 500  # characters of a sentence, to either side
_ASKING = re.compile(
    r"require|must|should|needs to|not compatible|only be set|mutually exclusive", re.IGNORECASE
)
_CREATION = "Execution context creation requires ExecutionContextAllocationStrategy::kUSER_MANAGED"
HEEDED = {
    "REQUIRE_USER_ALLOCATION": {
        _CREATION: "runtime/cuda/engines.py",
        "not compatible with BuilderFlag::kWEIGHT_STREAMING": "never set",
        "not compatible with networks that contain data-dependent dynamic shapes": "ours depend on no data",
        "These plugins require runtime allocation": "TensorRT-RTX gets no plugin",
    },
    "USER_MANAGED": {
        "IExecutionContext::setDeviceMemoryV2 should be called before enqueue": "runtime/cuda/engines.py",
        _CREATION: "runtime/cuda/engines.py",
        "needs to be created with ExecutionContextAllocationStrategy::kUSER_MANAGED": "no runtime allocation size",
    },
    "STRIP_PLAN": {"Null, non-empty weights require BuilderFlag::kSTRIP_PLAN": "weights are never left out"},
    "REFIT_IDENTICAL": {
        "requires building the engine with BuilderFlag::kREFIT": "engines/tensorrt/refit.py",
        "are mutually exclusive": "the only one that is set",
    },
    "VERSION_COMPATIBLE": {
        "if kVERSION_COMPATIBLE is set": "nothing that depends on it is set",
    },
    "EXCLUDE_WEIGHTS": {
        "requires building the engine with BuilderFlag::kREFIT": "engines/tensorrt/builder.py"
    },
    "TF32": {},
    "AMPERE_PLUS": {},
    "EAGER": {},
    "DISABLED": {},
}


def used() -> set[str]:
    """Names of flags, strategies and levels that this project's code gives to the library."""
    names: set[str] = set()
    for folder in ("engines/tensorrt", "runtime/cuda"):
        for file in (ROOT / folder).glob("*.py"):
            text = file.read_text()
            names |= set(re.findall(r"(?:Flag|Strategy|Level)\.([A-Z][A-Z_0-9]+)\b", text))
            names |= set(re.findall(r"builder_flag\(\"([A-Z_]+)\"\)", text))
    return names


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if spec is None or spec.origin is None:
        pytest.skip("not run: TensorRT-RTX is not installed")
    found = set()
    for library in sorted(Path(spec.origin).parent.glob("libtensorrt_rtx.so*")):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for flag in HEEDED:
                place = content.find(name := f"k{flag}".encode())
                while place >= 0:
                    found.add(
                        around(content[max(0, place - _LONGEST) : place + _LONGEST], min(place, _LONGEST))
                    )
                    place = content.find(name, place + 1)
    return sorted(found)


def around(content: bytes, place: int) -> str:
    """The string of printable characters that holds `place`."""
    before = re.search(rb"[\x20-\x7e]*$", content[:place])
    after = re.match(rb"[\x20-\x7e]*", content[place:])
    assert before is not None
    assert after is not None
    return (before[0] + after[0]).decode("ascii")


def test_every_flag_is_looked_up() -> None:
    assert used() == set(HEEDED)


@pytest.mark.parametrize("flag", sorted(HEEDED))
def test_what_it_demands_is_heeded(sentences: list[str], flag: str) -> None:
    asking = [
        sentence
        for sentence in sentences
        if re.search(rf"\bk{flag}\b", sentence) and _ASKING.search(sentence) and " " in sentence.strip()
    ]
    unheeded = [s for s in asking if not any(words in s for words in HEEDED[flag]) and "Assertion" not in s]
    assert not unheeded, "say in HEEDED where this is done"
    for words in HEEDED[flag]:
        assert any(words in sentence for sentence in asking), f"the library does not say {words!r} any more"
