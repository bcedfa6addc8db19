"""The kernels compile for every target without a GPU, and what comes out is what a host was promised."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from helpers.matrix import matrix

from vsr_trt.kernels import KernelError
from vsr_trt.kernels.gpu import build, launch, ptx, roofline, sass, store, table
from vsr_trt.kernels.gpu.launch import DType, Launch
from vsr_trt.kernels.gpu.targets import TARGETS

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


@functools.cache
def blending(target: str = "sm_89") -> build.Compiled:
    return build.compile_blending(target)


@pytest.mark.parametrize(("target", "dtype", "top_k"), VARIANTS)
def test_every_variant_compiles_for_every_target(target: str, dtype: DType, top_k: bool) -> None:
    made = compiled(target, dtype, top_k)
    check_binary(made, target)
    assert (made.launch.dtype, made.launch.top_k) == (dtype, top_k)


@pytest.mark.parametrize("target", TARGETS)
def test_blending_compiles_for_every_target(target: str) -> None:
    check_binary(blending(target), target)
    assert blending(target).launch.registers <= 64  # an SM's warps all fit


def check_binary(made: build.Compiled, target: str) -> None:
    info = made.launch
    assert info.spilled == 0
    assert 32 <= info.registers <= 255
    assert info.target == target
    # the binary: an ELF file for a CUDA GPU of this capability, with this entry in it
    assert made.cubin[:4] == b"\x7fELF"
    machine, flags = struct.unpack_from("<H", made.cubin, 18)[0], struct.unpack_from("<I", made.cubin, 48)[0]
    assert machine == 190  # EM_CUDA
    # OS ABI and its version: a driver of CUDA 12 takes these, and of the newer one only for GPUs that it knows by it
    assert (made.cubin[7], made.cubin[8]) == ((0x33, 7) if TARGETS[target].capability < 100 else (0x41, 8))
    assert info.ptxas.startswith("12.") == (TARGETS[target].capability < 100)
    capability = TARGETS[target].capability
    assert capability in (flags & 0xFF, flags >> 8 & 0xFF)
    assert info.kernel.encode() in made.cubin


@pytest.mark.parametrize(("target", "dtype", "top_k"), VARIANTS)
def test_ptx_takes_the_declared_arguments_and_no_others(target: str, dtype: DType, top_k: bool) -> None:
    made = compiled(target, dtype, top_k)
    # every declared pointer is read or written; k is with top-k alone
    assert unread(made) == ([] if top_k else ["k"])


@pytest.mark.parametrize("target", TARGETS)
def test_blending_takes_the_declared_arguments_and_reads_them_all(target: str) -> None:
    assert unread(blending(target)) == []


def unread(made: build.Compiled) -> list[str]:
    """Declared arguments that the PTX does not read; it takes them and no others."""
    info = made.launch
    declared = launch.arguments(info.kernel, info.dtype)
    kinds = {"pointer": ".u64", "int32": ".u32"}
    assert ptx.parameters(made.ptx) == [kinds[argument.type] for argument in declared]
    assert ptx.target(made.ptx) == info.target
    assert f"{TARGETS[info.target].capability}a" not in made.ptx.split(".address_size")[0]
    assert made.launch.ptx_version == ".".join(map(str, ptx.version(made.ptx)))
    assert ".local" not in made.ptx  # no memory of a thread's own beyond registers
    body = made.ptx[made.ptx.index("{") :]
    return [
        argument.name
        for index, argument in enumerate(declared)
        if not re.search(rf"{info.kernel}_param_{index}\b", body)
    ]


def test_ptx_is_half_precision_at_its_edges_only() -> None:
    text = compiled(dtype="fp16").ptx
    assert "cvt.f32.f16" in text
    assert not re.search(r"\b(fma|mul|add|max)(\.\w+)*\.f16", text)


def test_nothing_of_this_machine_is_in_the_files() -> None:
    for made in (compiled(), blending()):
        assert "/" not in made.ptx.replace("//", "")
        assert str(Path.home()).encode() not in made.cubin


def test_compiling_again_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    again = build.compile_kernel("sm_89")
    assert list(tmp_path.iterdir())  # it was compiled, not found
    assert again == compiled()
    assert build.compile_blending("sm_89") == blending()


# -- launch metadata -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "dtype", "top_k"), VARIANTS)
def test_metadata_follow_the_schema_and_are_read_again(target: str, dtype: DType, top_k: bool) -> None:
    info = compiled(target, dtype, top_k).launch
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(info.to_json()), SCHEMA)
    assert Launch.from_json(info.to_json()) == info


def test_blendings_metadata_follow_the_schema_and_say_how_it_is_launched() -> None:
    info = blending().launch
    content = json.loads(info.to_json())
    jsonschema.validate(content, SCHEMA)
    assert Launch.from_json(info.to_json()) == info
    assert (content["kernel"], content["pixels"]) == ("blend_tiles", build.PIXELS)
    assert content["grid"] == [f"ceil(width / {build.PIXELS})", "height", "channels"]
    assert content["shared_memory"] == 0
    # what the grid counts are integers that the kernel takes
    integers = {argument["name"] for argument in content["arguments"] if argument["type"] == "int32"}
    assert integers >= {"width", "height", "channels"}
    assert [argument["access"] for argument in content["arguments"] if "access" in argument][-1] == "write"


def test_schema_is_strict() -> None:
    content = json.loads(compiled().launch.to_json())
    changes: list[dict[str, Any]] = [
        *({"more": 1}, {"threads": 100}, {"dtype": "bf16"}, {"arguments": []}),
        *({"kernel": "blend_tiles"}, {"kernel": "other"}, {"pixels": 1}, {"grid": ["ceil(k / 2)", "1", "1"]}),
    ]
    for change in changes:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(content | change, SCHEMA)
    for name in content:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({key: content[key] for key in content if key != name}, SCHEMA)


def test_files_are_written_as_the_metadata_say(tmp_path: Path) -> None:
    made = (compiled(), blending())
    paths = [store.write(one, tmp_path) for one in made]
    assert sorted(paths[0] + paths[1]) == sorted(tmp_path.iterdir())
    for one, (metadata, *_) in zip(made, paths, strict=True):
        info = launch.read(metadata)
        assert info == one.launch
        for kind, content in (("ptx", one.ptx.encode()), ("cubin", one.cubin)):
            written = (tmp_path / info.files[kind]["name"]).read_bytes()
            assert written == content
            assert hashlib.sha256(written).hexdigest() == info.files[kind]["sha256"]


def test_the_documentations_tables_are_current() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operator.md").read_text(encoding="utf-8")
    documented = text.split("<!-- python -m vsr_trt.kernels table -->")[1].split("<!-- end of table -->")[0]
    made = table.markdown([compiled(target).launch for target in TARGETS])
    assert documented.strip() == made, (
        "put what `python -m vsr_trt.kernels table` prints into docs/operator.md"
    )
    rest = text.split("<!-- python -m vsr_trt.kernels table: blend_tiles -->")[1]
    assert rest.split("<!-- end of table -->")[0].strip() == table.blending_markdown()


# -- what the binary does ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top_k", "target"),
    matrix(
        [False, True], TARGETS, fast=lambda top_k, target: top_k == (list(TARGETS).index(target) % 2 == 0)
    ),
)
def test_inner_loop_reads_keys_and_nothing_else_from_memory(target: str, top_k: bool) -> None:
    """8 pairs of positions a thread: 4 multiply-adds, a maximum, 5 for the sums each; scores stay in registers."""
    inner = roofline.analyse(compiled(target, top_k=top_k), ()).loop
    assert inner["FFMA"] + 2 * inner["FFMA2"] == 8 * 8  # Blackwell may pair them up
    assert inner["FADD"] + 2 * inner["FADD2"] == 8
    assert inner["FMNMX"] == 8
    assert inner["LDG"] == 4
    assert not any(inner[name] for name in ("STG", "STL", "LDL", "STS", "LDS"))


@pytest.mark.parametrize("target", TARGETS)
def test_blending_reads_four_pixels_at_once_and_keeps_its_sums_in_registers(target: str) -> None:
    """Value and weight of 4 pixels a thread and the tile's start; a product and two sums a pixel, as numpy does."""
    (inner,) = [loop for loop in sass.loops(sass.disassemble(blending(target).cubin)) if loop.innermost]
    pixels = build.PIXELS // blending(target).launch.threads
    assert inner.own["LDG"] == 2 * pixels + 1
    assert inner.own["FMUL"] + 2 * inner.own["FMUL2"] == 2 * pixels
    assert inner.own["FADD"] + 2 * inner.own["FADD2"] == 2 * pixels
    assert not any(inner.own[name] for name in ("STG", "STL", "LDL", "STS", "LDS", "FFMA"))


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
    for compiling in (build.compile_kernel, build.compile_blending):
        with pytest.raises(KernelError, match=r"no target .*compiled for sm_75, sm_80"):
            compiling(target)


def test_unsupported_types_are_refused() -> None:
    with pytest.raises(KernelError, match="bf16 are not supported; expected fp32 or fp16"):
        build.compile_kernel("sm_89", "bf16")  # type: ignore[arg-type]


def test_missing_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "is_available", lambda: False)
    with pytest.raises(KernelError, match=r"Triton is not installed.*pip install"):
        build.compile_kernel("sm_89")
    with pytest.raises(KernelError, match=r"Triton is not installed"):
        build.compile_blending("sm_89")


def test_ptx_that_ptxas_refuses_shows_its_words() -> None:
    with pytest.raises(KernelError, match=r"ptxas refuses the kernel for sm_89: .*nonsense"):
        ptx.assemble(compiled().ptx.replace("ret;", "nonsense;"))


# -- parameters of the binary --------------------------------------------------------------------------


def parameters_of(cubin: bytes, kernel: str) -> list[tuple[int, int]]:
    """Offset and size of the entry's parameters, by their order: EIATTR_KPARAM_INFO of `.nv.info.<kernel>`."""
    table, size, count, names = (
        struct.unpack_from("<Q10xHHH", cubin, 40)[0],
        *struct.unpack_from("<HHH", cubin, 58),
    )
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + index * size) for index in range(count)]
    strings = sections[names][4]

    def name_of(section: tuple[int, ...]) -> str:
        start = strings + section[0]
        return cubin[start : cubin.index(b"\0", start)].decode()

    (info,) = (section for section in sections if name_of(section) == f".nv.info.{kernel}")
    content, found, place = cubin[info[4] : info[4] + info[5]], {}, 0
    while place < len(content):
        form, attribute, length = struct.unpack_from("<BBH", content, place)
        place += 4
        if form != 4:  # the value is in the header itself
            continue
        if attribute == 0x17:
            _, ordinal, offset, flags = struct.unpack_from("<IHHI", content, place)
            found[ordinal] = offset, flags >> 18
        place += length
    return [found[ordinal] for ordinal in sorted(found)]


@pytest.mark.parametrize("target", TARGETS)
def test_the_binary_takes_the_arguments_of_the_metadata(target: str) -> None:
    """In number, order and size, as the host passes them: pointers of 8 bytes, integers of 4, each aligned."""
    for made in (compiled(target), blending(target)):
        declared = launch.arguments(made.launch.kernel, made.launch.dtype)
        expected, end = [], 0
        for argument in declared:
            size = 8 if argument.type == "pointer" else 4
            end = -(-end // size) * size
            expected.append((end, size))
            end += size
        assert parameters_of(made.cubin, made.launch.kernel) == expected
