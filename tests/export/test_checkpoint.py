"""Reading DLoRAL checkpoints: both layouts, and every file that has to be refused with its reason."""

import contextlib
import io
import os
import pickle
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoints import CFR, LAYERS, UNET, Content, assert_same, tiny, write
from helpers.examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vsr_trt.export import tensors
from vsr_trt.export.families.dloral.checkpoint import ADAPTERS, Checkpoint, load
from vsr_trt.recipes.synthetic.checkpoint_file import resave_as_safetensors
from vsr_trt.runtime.errors import CheckpointError

GOLDEN = Path(__file__).parents[1] / "data/golden/case_a"
Edit = Callable[[Content], Any]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch's on strange pickles


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith((".", "?"))
    assert "\n" not in message
    assert "weights_only" not in message  # torch's own advice is to load the file with its code
    return message.removeprefix(str(path))


# ---------------------------------------------------------------- layouts that are read


@pytest.fixture(scope="module")
def golden() -> Checkpoint:
    return load(GOLDEN / "model.pkl")


def test_the_published_layout_is_split_into_base_adapters_and_cfr(golden: Checkpoint) -> None:
    content = torch.load(GOLDEN / "model.pkl", weights_only=True)
    assert golden.layout == "dloral-pkl"
    assert golden.path == GOLDEN / "model.pkl"
    seen = 0
    for name, tensor in content[UNET].items():
        if ".lora_" in name:
            layer, _, rest = name.removesuffix(".weight").partition(".lora_")
            half, adapter = rest.split(".")
            update = golden.adapters[layer][adapter]
            assert torch.equal(update.A if half == "A" else update.B, tensor)
            assert update.rank == 4
        else:
            assert torch.equal(golden.base[name.replace(".base_layer.", ".")], tensor)
            seen += 1
    assert len(golden.base) == seen
    assert set(golden.cfr) == set(content[CFR])
    assert all(torch.equal(golden.cfr[name], tensor) for name, tensor in content[CFR].items())
    for adapter in ADAPTERS:
        listed = content["unet_lora_{1}_modules_{2}".format(*adapter.split("_"))]
        assert [layer for layer, updates in golden.adapters.items() if adapter in updates] == listed


def test_resaved_as_safetensors_the_tensors_are_identical(golden: Checkpoint, tmp_path: Path) -> None:
    resaved = load(resave_as_safetensors(GOLDEN / "model.pkl", tmp_path / "model.safetensors"))
    assert resaved.layout == "dloral-safetensors"
    assert_same(resaved, golden)


def test_safetensors_need_no_metadata(tmp_path: Path) -> None:
    content = tiny()
    published = load(write(content, tmp_path / "model.pkl"))
    bare = {key: value for key, value in content.items() if key in (UNET, CFR)}
    assert_same(load(write(bare, tmp_path / "bare.safetensors")), published)


def test_metadata_of_another_kind_is_no_reason_to_refuse(tmp_path: Path) -> None:
    tensors = load_file(write(tiny(), tmp_path / "model.safetensors"))
    save_file(
        tensors,
        tmp_path / "other.safetensors",
        {"note": "by hand", "nested": "[" * 100_000, "unet_lora_others_modules_quality": "7"},
    )
    assert len(load(tmp_path / "other.safetensors").adapters) == len(LAYERS)


def test_the_form_before_torch_1_6_is_read_too(tmp_path: Path) -> None:
    content = tiny()
    torch.save(content, tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    assert not (tmp_path / "old.pkl").read_bytes().startswith(b"PK")
    assert_same(load(tmp_path / "old.pkl"), load(write(content, tmp_path / "new.pkl")))


@pytest.mark.parametrize("name", ["model.pt", "model.ckpt", "model"])
def test_any_other_ending_is_read_as_published(tmp_path: Path, name: str) -> None:
    torch.save(tiny(), tmp_path / name)
    assert load(tmp_path / name).layout == "dloral-pkl"


@pytest.mark.parametrize("kind", ["pkl", "safetensors"])
def test_fp32_and_fp16_are_kept_as_they_are(tmp_path: Path, kind: str) -> None:
    content = tiny()
    content[UNET]["mid.norm.weight"] = content[UNET]["mid.norm.weight"].float()
    read = load(write(content, tmp_path / f"model.{kind}"))
    assert read.base["mid.norm.weight"].dtype == torch.float32
    assert read.base["conv_in.weight"].dtype == torch.float16


def test_pickles_are_read_without_code_and_mapped_where_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = torch.load
    monkeypatch.setattr(torch, "load", lambda path, **how: calls.append(how) or original(path, **how))
    load(write(tiny(), tmp_path / "new.pkl"))
    torch.save(tiny(), tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    load(tmp_path / "old.pkl")
    assert [how["weights_only"] for how in calls] == [True, True]
    assert [how["mmap"] for how in calls] == [True, False]


def test_safetensors_are_read_when_they_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = tensors.OnDisk.__getitem__

    def recorded(self: tensors.OnDisk, name: str) -> torch.Tensor:
        read.append(name)
        return original(self, name)

    monkeypatch.setattr(tensors.OnDisk, "__getitem__", recorded)
    opened = load(write(tiny(), tmp_path / "model.safetensors"))
    assert "mid.norm.weight" not in read
    first, second = opened.base["mid.norm.weight"], opened.base["mid.norm.weight"]
    assert read.count("mid.norm.weight") == 2
    assert first is not second  # and so none is kept
    with pytest.raises(KeyError):
        opened.base["mid.norm.bias"]


# ---------------------------------------------------------------- layouts that are refused


def remove(part: str, *names: str) -> Edit:
    return lambda content: [content[part].pop(name) for name in names]


def reshape(part: str, name: str, *shape: int) -> Edit:
    return lambda content: content[part].__setitem__(name, torch.zeros(shape).half())


def without_adapter(adapter: str) -> Edit:
    def edit(content: Content) -> None:
        for name in [name for name in content[UNET] if f".{adapter}." in name]:
            del content[UNET][name]

    return edit


def another_adapter(content: Content) -> None:
    content[UNET]["mid.to_q.lora_A.default.weight"] = torch.zeros(2, 7)
    content[UNET]["mid.to_q.lora_B.default.weight"] = torch.zeros(5, 2)


PAIR = tuple(f"mid.to_q.lora_{half}.default_others_quality.weight" for half in "AB")
ATTENTION = "cross_attn_module"
REFUSED: dict[str, tuple[Edit, str]] = {
    "half A missing": (remove(UNET, PAIR[0]), f" lacks {PAIR[0]}."),
    "half B missing": (remove(UNET, PAIR[1]), f" lacks {PAIR[1]}."),
    "an adapter missing at one layer": (
        lambda content: [
            *remove(UNET, *PAIR)(content),
            another_layer(content, "other.to_q"),
        ],
        f" lacks {PAIR[0]}, which its unet_lora_others_modules_quality has.",
    ),
    "an adapter missing": (
        without_adapter("default_decoder_consistency"),
        " is no DLoRAL checkpoint: it has no adapter 'default_decoder_consistency'.",
    ),
    "all adapters missing": (
        lambda content: [without_adapter(adapter)(content) for adapter in ADAPTERS],
        " is no DLoRAL checkpoint: it has no adapter 'default_encoder_quality'.",
    ),
    "adapted weight missing": (
        remove(UNET, "mid.to_q.base_layer.weight"),
        " lacks mid.to_q.base_layer.weight, which default_others_",
    ),
    "adapter of another name": (
        another_adapter,
        " has an adapter 'default' at mid.to_q; expected are default_enc",
    ),
    "A too narrow": (
        reshape(UNET, PAIR[0], 2, 6),
        f": {PAIR[0]} has shape (2, 6), expected (2, 7) next to a weight of (5, 7).",
    ),
    "A of another rank": (
        reshape(UNET, PAIR[0], 3, 7),
        f": {PAIR[1]} has shape (5, 2), expected (5, 3) next to a weight of (5, 7).",
    ),
    "B too short": (reshape(UNET, PAIR[1], 4, 2), f": {PAIR[1]} has shape (4, 2), expected (5, 2) next to"),
    "A a single number": (reshape(UNET, PAIR[0]), f": {PAIR[0]} has shape (), expected (1, 7) next to"),
    "rank 0": (reshape(UNET, PAIR[0], 0, 7), f": {PAIR[0]} has shape (0, 7), expected (1, 7) next to"),
    "A of another kernel": (
        reshape(UNET, "conv_in.lora_A.default_encoder_quality.weight", 2, 8, 1, 1),
        ": conv_in.lora_A.default_encoder_quality.weight has shape (2, 8, 1, 1), expected (2, 8, 3, 3) next to",
    ),
    "B with a kernel": (
        reshape(UNET, "conv_in.lora_B.default_encoder_quality.weight", 6, 2, 3, 3),
        ": conv_in.lora_B.default_encoder_quality.weight has shape (6, 2, 3, 3), expected (6, 2, 1, 1) next to",
    ),
    "adapter on a vector": (
        reshape(UNET, "mid.to_q.base_layer.weight", 5),
        ": mid.to_q.base_layer.weight has shape (5,), expected a linear layer's or a convolution's",
    ),
    "adapter on a number": (
        reshape(UNET, "mid.to_q.base_layer.weight"),
        ": mid.to_q.base_layer.weight has shape (), expected a linear layer's or a convolution's",
    ),
    "a tensor twice": (
        reshape(UNET, "mid.to_q.weight", 5, 7),
        " has both state_dict_unet.mid.to_q.",
    ),
    "flow weight missing": (
        remove(CFR, "spynet.basic_module.3.basic_module.2.conv.weight"),
        " lacks state_dict_bpp.spynet.basic_module.3.basic_module.2.conv.weight.",
    ),
    "flow bias missing": (
        remove(CFR, "spynet.basic_module.5.basic_module.4.conv.bias"),
        " lacks state_dict_bpp.spynet.basic_module.5.basic_module.4.conv.bias.",
    ),
    "flow weight of another shape": (
        reshape(CFR, "spynet.basic_module.0.basic_module.0.conv.weight", 32, 6, 7, 7),
        ": state_dict_bpp.spynet.basic_module.0.basic_module.0.conv.weight has shape (32, 6, 7, 7), "
        "expected (32, 8, 7, 7).",
    ),
    "gate missing": (
        remove(CFR, f"{ATTENTION}.threshold_fc.weight"),
        f" lacks state_dict_bpp.{ATTENTION}.threshold_fc.weight.",
    ),
    "gate's bias missing": (
        remove(CFR, f"{ATTENTION}.threshold_fc.bias"),
        f" lacks state_dict_bpp.{ATTENTION}.threshold_fc.bias.",
    ),
    "gate a single number": (
        reshape(CFR, f"{ATTENTION}.threshold_fc.weight"),
        ": 6 rows of cross_attn_module.",
    ),
    "gate empty": (reshape(CFR, f"{ATTENTION}.threshold_fc.weight", 1, 0), ": 6 rows of cross_attn_module."),
    "queries missing": (
        remove(CFR, f"{ATTENTION}.query_conv.weight"),
        f" lacks state_dict_bpp.{ATTENTION}.query_conv.weight.",
    ),
    "queries a single number": (
        reshape(CFR, f"{ATTENTION}.query_conv.weight"),
        ": 0 rows of cross_attn_module.",
    ),
    "heads do not divide": (
        reshape(CFR, f"{ATTENTION}.threshold_fc.weight", 1, 4),
        ": 6 rows of cross_attn_module.query_conv.weight do not divide into heads of 4.",
    ),
    "latents of another width": (
        reshape(CFR, f"{ATTENTION}.query_conv.weight", 6, 16, 1, 1),
        f": state_dict_bpp.{ATTENTION}.query_conv.weight has shape (6, 16, 1, 1), expected (6, 4, 1, 1).",
    ),
    "keys of another width": (
        reshape(CFR, f"{ATTENTION}.key_conv.weight", 3, 4, 1, 1),
        f": state_dict_bpp.{ATTENTION}.key_conv.weight has shape (3, 4, 1, 1), expected (6, 4, 1, 1).",
    ),
    "values missing": (
        remove(CFR, f"{ATTENTION}.value_conv.bias"),
        f" lacks state_dict_bpp.{ATTENTION}.value_conv.bias.",
    ),
    "projection transposed": (
        reshape(CFR, f"{ATTENTION}.proj_out.weight", 6, 4, 1, 1),
        f": state_dict_bpp.{ATTENTION}.proj_out.weight has shape (6, 4, 1, 1), expected (4, 6, 1, 1).",
    ),
    "no UNet": (
        lambda content: content.pop(UNET),
        " is no DLoRAL checkpoint: it has no 'state_dict_unet",
    ),
    "no cross-frame module": (
        lambda content: content.pop(CFR),
        " is no DLoRAL checkpoint: it has no 'state_dict_bpp",
    ),
}


def another_layer(content: Content, layer: str) -> None:
    """One more layer with both of the other adapters, so that removing one elsewhere leaves none empty."""
    for name in ("base_layer.weight", "base_layer.bias"):
        content[UNET][f"{layer}.{name}"] = torch.zeros(*((5, 7) if "weight" in name else (5,)))
    for kind in ("quality", "consistency"):
        content[UNET][f"{layer}.lora_A.default_others_{kind}.weight"] = torch.zeros(2, 7)
        content[UNET][f"{layer}.lora_B.default_others_{kind}.weight"] = torch.zeros(5, 2)


@pytest.mark.parametrize("kind", ["pkl", "safetensors"])
@pytest.mark.parametrize("edit", REFUSED)
def test_the_first_difference_is_named(tmp_path: Path, edit: str, kind: str) -> None:
    content = tiny()
    change, expected = REFUSED[edit]
    change(content)
    assert refusal(write(content, tmp_path / f"model.{kind}")).startswith(expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([1, 2], " holds a list, expected a dict of a DLoRAL trainer."),
        (torch.zeros(3), " holds a Tensor, expected a dict of a DLoRAL trainer."),
        ({}, " is no DLoRAL checkpoint: it has no 'state_dict_unet'."),
        ({1: 2, "b": 3, "a": 4}, " is no DLoRAL checkpoint: it has no 'state_dict_unet'. It has: a, b."),
        ({"state_dict": {1: torch.zeros(1)}}, " is no DLoRAL checkpoint: it has no 'state_dict_unet'."),
        ({UNET: [1]}, " is no DLoRAL checkpoint: it has no 'state_dict_unet'."),
        ({UNET: {"a": "text"}}, " is no DLoRAL checkpoint: it has no 'state_dict_unet'."),
        ({UNET: {3: torch.zeros(1)}}, " is no DLoRAL checkpoint: it has no 'state_dict_unet'."),
        ({UNET: {}, CFR: {}}, " is no DLoRAL checkpoint: it has no adapter 'default_encoder_quality'."),
    ],
)
def test_pickles_of_other_things_are_refused(tmp_path: Path, content: object, expected: str) -> None:
    torch.save(content, tmp_path / "model.pkl")
    assert refusal(tmp_path / "model.pkl").startswith(expected)


PLAIN = {
    "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3),
    "first_stage_model.quant_conv.weight": torch.zeros(8, 8, 1, 1),
}


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_plain_stable_diffusion_checkpoint_is_recognised(tmp_path: Path, wrapped: bool) -> None:
    torch.save({"epoch": 3, "state_dict": PLAIN} if wrapped else PLAIN, tmp_path / "v2-1.ckpt")
    message = refusal(tmp_path / "v2-1.ckpt")
    assert "has no 'state_dict_unet'. It looks like a plain Stable Diffusion checkpoint; pass the" in message


def test_a_plain_stable_diffusion_checkpoint_in_safetensors_is_recognised(tmp_path: Path) -> None:
    save_file(PLAIN, tmp_path / "v2-1.safetensors")
    message = refusal(tmp_path / "v2-1.safetensors")
    assert (
        "has no 'state_dict_unet.*'. It looks like a plain Stable Diffusion checkpoint; pass the" in message
    )


def test_the_unet_of_a_stable_diffusion_directory_is_recognised(tmp_path: Path) -> None:
    unet = GOLDEN / "sd/unet/diffusion_pytorch_model.safetensors"
    assert "It looks like the UNet of a Stable Diffusion directory; pass the trained" in refusal(unet)
    torch.save(load_file(unet), tmp_path / "unet.bin")
    assert "It looks like the UNet of a Stable Diffusion directory; pass the" in refusal(
        tmp_path / "unet.bin"
    )


# ---------------------------------------------------------------- files that are none


def test_a_missing_file_and_a_directory_are_told_apart(tmp_path: Path) -> None:
    assert refusal(tmp_path / "model.pkl") == (
        " does not exist; expected a DLoRAL checkpoint (model.pkl). This gets it: vsr-build fetch dloral --to weights."
    )
    assert refusal(tmp_path) == " is a directory; expected a DLoRAL checkpoint (model.pkl)."


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same small checkpoint in each form."""
    folder = tmp_path_factory.mktemp("forms")
    torch.save(tiny(), folder / "old.pkl", _use_new_zipfile_serialization=False)
    return {
        "pkl": write(tiny(), folder / "new.pkl").read_bytes(),
        "legacy": (folder / "old.pkl").read_bytes(),
        "safetensors": write(tiny(), folder / "new.safetensors").read_bytes(),
    }


def ending(form: str) -> str:
    return "safetensors" if form == "safetensors" else "pkl"


@pytest.mark.parametrize("form", ["pkl", "legacy", "safetensors"])
def test_a_truncated_file_is_refused_at_any_length(
    tmp_path: Path, forms: dict[str, bytes], form: str
) -> None:
    whole = forms[form]
    path = tmp_path / f"model.{ending(form)}"
    steps = {*range(12), *range(12, len(whole), len(whole) // 150), *range(len(whole) - 40, len(whole))}
    for length in sorted(steps):
        path.write_bytes(whole[:length])
        message = refusal(path)
        cut_name = re.search(r"holds code \((torch|collections)\.\w+\)", message)  # e.g. torch.HalfStor
        assert "truncated" in message or "damaged" in message or cut_name, (length, message)
    path.write_bytes(whole)
    assert load(path).adapters


def test_the_golden_file_is_refused_when_it_is_cut(tmp_path: Path) -> None:
    whole = (GOLDEN / "model.pkl").read_bytes()
    path = tmp_path / "model.pkl"
    for share in (0.001, 0.1, 0.5, 0.99, 0.99999):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert "truncated or damaged" in refusal(path)


@pytest.mark.parametrize("kind", ["pkl", "safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello world\n" * 20,
        b"<!DOCTYPE html><html><title>404</title></html>" * 20,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
        b'{"a": 1}',
        b"PK",
        b"PK\x03\x04" + bytes(100),
        bytes(1000),
        b"\xff" * 1000,
    ],
    ids=["empty", "text", "html", "git-lfs", "json", "PK", "zip", "zeros", "ones"],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / f"model.{kind}"
    path.write_bytes(content)
    message = refusal(path)
    assert "truncated" in message or "damaged" in message
    assert "ownload it again" in message
    assert "holds code" not in message


def test_a_layout_under_the_other_ones_name_is_refused(tmp_path: Path, forms: dict[str, bytes]) -> None:
    (tmp_path / "model.safetensors").write_bytes(forms["pkl"])
    assert "no safetensors file" in refusal(tmp_path / "model.safetensors")
    (tmp_path / "model.pkl").write_bytes(forms["safetensors"])
    assert "damaged" in refusal(tmp_path / "model.pkl")


# ---------------------------------------------------------------- code


class Trap:
    """Runs a shell command where it is unpickled by a reader that runs code."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


class Evaluated(Trap):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.marker)!r}, 'w').close()",)


class Touched(Trap):
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


TRAPS = (Trap, Evaluated, Touched)


@pytest.mark.parametrize("trap", TRAPS)
def test_the_traps_work(tmp_path: Path, trap: type[Trap]) -> None:
    pickle.loads(pickle.dumps(trap(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


def spring(path: Path, marker: Path) -> str:
    message = refusal(path)
    assert not marker.exists()
    assert "nothing of it was executed" in message
    return message


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("where", ["alone", "beside", "among the tensors"])
@pytest.mark.parametrize(("trap", "name"), [(Trap, "system"), (Evaluated, "eval"), (Touched, "getattr")])
def test_code_in_a_checkpoint_is_not_executed(
    tmp_path: Path, trap: type[Trap], name: str, where: str, legacy: bool
) -> None:
    marker = tmp_path / "marker"
    content: Any = tiny()
    if where == "alone":
        content = trap(marker)
    elif where == "beside":
        content["hook"] = trap(marker)
    else:
        content[UNET]["conv_in.base_layer.weight"] = trap(marker)
    torch.save(content, tmp_path / "model.pkl", _use_new_zipfile_serialization=not legacy)
    message = spring(tmp_path / "model.pkl", marker)
    assert " holds code (" in message
    assert name in message.partition(")")[0]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("trap", TRAPS)
def test_code_in_a_plain_pickle_is_not_executed(tmp_path: Path, trap: type[Trap], protocol: int) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({UNET: trap(marker)}, protocol=protocol))
    spring(tmp_path / "model.pkl", marker)


def test_a_pickled_module_is_named_and_not_built(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pkl")
    assert " holds code (torch.nn.modules.linear.Linear) and was not loaded" in refusal(
        tmp_path / "model.pkl"
    )


def test_torchscript_and_tar_archives_are_not_executed(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pkl")
    spring(tmp_path / "script.pkl", marker)
    held = pickle.dumps(Trap(marker))
    with tarfile.open(tmp_path / "tar.pkl", "w") as tar:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(held)
            tar.addfile(info, io.BytesIO(held))
    spring(tmp_path / "tar.pkl", marker)


# ---------------------------------------------------------------- fuzz


@settings(
    max_examples=examples(400),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    form=st.sampled_from(["pkl", "legacy", "safetensors"]),
    flips=st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.one_of(st.none(), st.integers(0, 1 << 20)),
)
def test_changed_bytes_never_end_in_another_error(
    tmp_path: Path,
    forms: dict[str, bytes],
    form: str,
    flips: list[tuple[int, int]],
    cut: int | None,
) -> None:
    content = bytearray(forms[form])
    for place, value in flips:
        content[place % len(content)] = value
    if cut is not None:
        del content[cut % len(content) :]
    path = tmp_path / f"model.{ending(form)}"
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        load(path)


TORN = (  # each made torch's reader end in an error of another kind
    b"\x80\x02c",  # a name that does not come
    b"\x80\x02X\x05",  # half a length
    b"\x80\x02R.",  # a call of nothing
    b"\x80\x02e.",  # a list that was never begun
    b"\x80\x02h\x07.",  # a memory that was never filled
    b"\x80\x02}b.",  # a state for nothing
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",  # a call without its arguments
    b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",  # text in another encoding
    b"\x80\x02K\x01Q.",  # a storage by number
)


@pytest.mark.parametrize("torn", TORN, ids=range(len(TORN)))
def test_torn_pickles_are_refused(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / "model.pkl").write_bytes(torn)
    assert "damaged" in refusal(tmp_path / "model.pkl")
