"""The kernel compiles for every target without a GPU, and what comes out is what a host was promised."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path

import jsonschema
import pytest

from kernels import KernelError
from kernels.gpu import build, launch, ptx, roofline, table
from kernels.gpu.launch import DType, Launch
from kernels.gpu.targets import TARGETS

pytest.importorskip("triton", reason="Triton exists for Linux only")

SCHEMA = json.loads((Path(launch.__file__).parent / "launch.schema.json").read_text(encoding="utf-8"))
VARIANTS = [
    (target, dtype, top_k) for target in TARGETS for dtype in ("fp32", "fp16") for top_k in (False, True)
]
_made: dict[tuple[str, DType, bool], build.Compiled] = {}


def compiled(target: str = "sm_89", dtype: DType = "fp32", top_k: bool = False) -> build.Compiled:
    key = (target, dtype, top_k)
    if key not in _made:
        _made[key] = build.compile_kernel(*key)
    return _made[key]


@pytest.mark.parametrize(("target", "dtype", "top_k"), VARIANTS)
def test_every_variant_compiles_for_every_target(target: str, dtype: DType, top_k: bool) -> None:
    made = compiled(target, dtype, top_k)
    info = made.launch
    assert info.spilled == 0
    assert 32 <= info.registers <= 255
    assert (info.target, info.dtype, info.top_k) == (target, dtype, top_k)
    # the binary: an ELF file for a CUDA GPU of this capability, with this entry in it
    assert made.cubin[:4] == b"\x7fELF"
    machine, flags = struct.unpack_from("<H", made.cubin, 18)[0], struct.unpack_from("<I", made.cubin, 48)[0]
    assert machine == 190  # EM_CUDA
    capability = TARGETS[target].capability
    assert capability in (flags & 0xFF, flags >> 8 & 0xFF)
    assert info.kernel.encode() in made.cubin


@pytest.mark.parametrize(("target", "dtype", "top_k"), VARIANTS)
def test_ptx_takes_the_declared_arguments_and_no_others(target: str, dtype: DType, top_k: bool) -> None:
    made = compiled(target, dtype, top_k)
    declared = launch.arguments(dtype)
    kinds = {"pointer": ".u64", "int32": ".u32"}
    assert ptx.parameters(made.ptx) == [kinds[argument.type] for argument in declared]
    assert ptx.target(made.ptx) == target
    assert f"{TARGETS[target].capability}a" not in made.ptx.split(".address_size")[0]
    assert made.launch.ptx_version == ".".join(map(str, ptx.version(made.ptx)))
    assert ".local" not in made.ptx  # no memory of a thread's own beyond registers
    # every declared pointer is read or written; k is with top-k alone
    body = made.ptx[made.ptx.index("{") :]
    unread = [
        argument.name
        for index, argument in enumerate(declared)
        if not re.search(rf"gated_topk_attention_param_{index}\b", body)
    ]
    assert unread == ([] if top_k else ["k"])


def test_ptx_is_half_precision_at_its_edges_only() -> None:
    text = compiled(dtype="fp16").ptx
    assert "cvt.f32.f16" in text
    assert not re.search(r"\b(fma|mul|add|max)(\.\w+)*\.f16", text)


def test_nothing_of_this_machine_is_in_the_files() -> None:
    made = compiled()
    assert "/" not in made.ptx.replace("//", "")
    assert str(Path.home()).encode() not in made.cubin


def test_compiling_again_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    again = build.compile_kernel("sm_89")
    assert list(tmp_path.iterdir())  # it was compiled, not found
    assert again == compiled()


# -- launch metadata -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "dtype", "top_k"), VARIANTS)
def test_metadata_follow_the_schema_and_are_read_again(target: str, dtype: DType, top_k: bool) -> None:
    info = compiled(target, dtype, top_k).launch
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(info.to_json()), SCHEMA)
    assert Launch.from_json(info.to_json()) == info


def test_schema_is_strict() -> None:
    content = json.loads(compiled().launch.to_json())
    for change in ({"more": 1}, {"threads": 100}, {"dtype": "bf16"}, {"arguments": []}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(content | change, SCHEMA)
    for name in content:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({key: content[key] for key in content if key != name}, SCHEMA)


def test_files_are_written_as_the_metadata_say(tmp_path: Path) -> None:
    made = compiled()
    paths = build.write(made, tmp_path)
    assert sorted(paths) == sorted(tmp_path.iterdir())
    info = launch.read(paths[0])
    assert info == made.launch
    for kind, content in (("ptx", made.ptx.encode()), ("cubin", made.cubin)):
        written = (tmp_path / info.files[kind]["name"]).read_bytes()
        assert written == content
        assert hashlib.sha256(written).hexdigest() == info.files[kind]["sha256"]


def test_the_documentations_tables_are_current() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operator.md").read_text(encoding="utf-8")
    documented = text.split("<!-- python -m kernels table -->")[1].split("<!-- end of table -->")[0]
    made = table.markdown([compiled(target).launch for target in TARGETS])
    assert documented.strip() == made, "put what `python -m kernels table` prints into docs/operator.md"


# -- what the binary does ------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [False, True])
@pytest.mark.parametrize("target", TARGETS)
def test_inner_loop_reads_keys_and_nothing_else_from_memory(target: str, top_k: bool) -> None:
    """8 pairs of positions a thread: 4 multiply-adds, a maximum, 5 for the sums each; scores stay in registers."""
    inner = roofline.analyse(compiled(target, top_k=top_k), ()).loop
    assert inner["FFMA"] + 2 * inner["FFMA2"] == 8 * 8  # Blackwell may pair them up
    assert inner["FADD"] + 2 * inner["FADD2"] == 8
    assert inner["FMNMX"] == 8
    assert inner["LDG"] == 4
    assert not any(inner[name] for name in ("STG", "STL", "LDL", "STS", "LDS"))


def test_report_predicts_more_time_for_more_work() -> None:
    row = roofline.analyse(compiled(), ((64, 64), (96, 96), (135, 240)))
    times = [prediction.seconds for prediction in row.predictions]
    assert times == sorted(times)
    assert times[0] > 0
    # a lower bound: no faster than the card's multiply-add lanes could be
    target = TARGETS["sm_89"]
    for prediction in row.predictions:
        positions = prediction.height * prediction.width
        operations = roofline.HEADS * positions**2 * 9  # a multiply-add or an addition or a maximum each
        assert prediction.seconds >= operations / (target.multiprocessors * target.fp32_lanes * target.clock)
    searching = roofline.analyse(compiled(top_k=True), ((64, 64),))
    assert searching.predictions[0].seconds > times[0]


def test_resident_blocks_are_bound_by_registers_warps_and_shared_memory() -> None:
    from dataclasses import replace

    info, target = compiled().launch, TARGETS["sm_89"]
    by_registers = replace(info, registers=128, threads=128, shared_memory=0)
    assert roofline.resident_blocks(by_registers, target) == 4  # 65536 / (128 x 128)
    assert roofline.resident_blocks(replace(by_registers, registers=129), target) == 3  # 136 are taken
    assert roofline.resident_blocks(replace(by_registers, registers=16), target) == 12  # 48 warps
    by_shared = replace(by_registers, registers=16, shared_memory=31 * 1024)
    assert roofline.resident_blocks(by_shared, target) == 3  # 100 KB, 1 KB of each block's is the system's


# -- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["sm_70", "sm_9", "", "89", "SM_89"])
def test_unsupported_targets_are_refused(target: str) -> None:
    with pytest.raises(KernelError, match=r"no target .*compiled for sm_75, sm_80"):
        build.compile_kernel(target)


def test_unsupported_types_are_refused() -> None:
    with pytest.raises(KernelError, match="bf16 are not supported; expected fp32 or fp16"):
        build.compile_kernel("sm_89", "bf16")  # type: ignore[arg-type]


def test_missing_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "is_available", lambda: False)
    with pytest.raises(KernelError, match=r"Triton is not installed.*pip install"):
        build.compile_kernel("sm_89")


def test_ptx_that_ptxas_refuses_shows_its_words() -> None:
    with pytest.raises(KernelError, match=r"ptxas refuses the kernel for sm_89: .*nonsense"):
        ptx.assemble(compiled().ptx.replace("ret;", "nonsense;"))
