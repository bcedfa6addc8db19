"""Models written without a download: their layout, their bytes, and the demo's picture."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from vsr_trt.recipes.synthetic import by_hand as demo
from vsr_trt.recipes.synthetic import random as full_size
from vsr_trt.recipes.synthetic.checkpoint import STATE_DICTS, Checkpoint, lora_modules
from vsr_trt.recipes.synthetic.checkpoint_file import resave_as_safetensors, write_checkpoint
from vsr_trt.recipes.synthetic.safetensors_file import write_safetensors
from vsr_trt.recipes.synthetic.sd_folder import write_tokenizer
from vsr_trt.recipes.synthetic.tensors import LazyTensor
from vsr_trt.recipes.synthetic.torch_file import write_pkl

GOLDEN = Path(__file__).parents[1] / "data/golden/case_a"
TOKENIZER = GOLDEN / "sd/tokenizer"


def tiny_shapes() -> full_size.Shapes:
    text = {**demo.TEXT_CONFIG, "vocab_size": 520}
    vae = {**demo.VAE_CONFIG, "block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4}
    return full_size.Shapes(unet=dict(demo.UNET_CONFIG), vae=vae, text_encoder=text)


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> demo.Demo:
    return demo.write_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> full_size.FullSize:
    return full_size.write_model(tmp_path_factory.mktemp("tiny"), tiny_shapes(), seed=3)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return load(GOLDEN / "model.pkl")


# ---------------------------------------------------------------- layout


def test_lora_modules_are_those_of_the_published_trainer(golden: dict[str, Any]) -> None:
    config = json.loads((GOLDEN / "sd/unet/config.json").read_text())
    modules = lora_modules(list(full_size.unet_shapes(config)))
    for part, names in modules.items():
        assert names == golden[f"unet_lora_{part}_modules_quality"]


def test_checkpoint_of_the_golden_sizes_has_the_golden_keys_in_order(golden: dict[str, Any]) -> None:
    config = json.loads((GOLDEN / "sd/unet/config.json").read_text())
    unet = {name: full_size.seeded(0, name, shape) for name, shape in full_size.unet_shapes(config).items()}
    checkpoint = full_size.seeded_checkpoint(0, unet, rank=4)
    assert set(checkpoint.plain) | set(checkpoint.state_dicts) == set(golden)
    for group, tensors in checkpoint.state_dicts.items():
        expected = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in golden[group].items()}
        assert {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} == expected
    assert list(checkpoint.bpp) == list(golden["state_dict_bpp"])


def test_demo_checkpoint_is_structured_as_the_golden_one(
    demo_model: demo.Demo, golden: dict[str, Any]
) -> None:
    ours = load(demo_model.checkpoint)
    assert list(ours) == list(golden)
    for name, value in golden.items():
        if not name.startswith("state_dict"):
            assert ours[name] == value  # the same blocks, so the same modules and ranks
            continue
        assert set(ours[name]) == set(value)
        assert all(ours[name][key].shape == tensor.shape for key, tensor in value.items())
        assert all(ours[name][key].dtype == torch.float16 for key in value)


def test_demo_loads_with_the_libraries_that_read_the_published_files(demo_model: demo.Demo) -> None:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    for kind, part in (
        (UNet2DConditionModel, "unet"),
        (AutoencoderKL, "vae"),
        (CLIPTextModel, "text_encoder"),
    ):
        _, report = kind.from_pretrained(demo_model.sd / part, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert not report["mismatched_keys"]
    DDPMScheduler.from_pretrained(demo_model.sd / "scheduler")
    tokenizer = CLIPTokenizer.from_pretrained(demo_model.sd / "tokenizer")
    ids = tokenizer("a Tree,", padding="max_length", max_length=77).input_ids
    assert len(ids) == 77
    assert tokenizer.decode(ids, skip_special_tokens=True).rstrip("! ").replace(" ", "") == "atree,"
    assert ids[-1] == 0  # Stable Diffusion 2.1 pads with "!"


def test_with_the_real_vocabulary_the_prompt_becomes_clips_ids(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    vocabulary = write_tokenizer(tmp_path, TOKENIZER)
    assert len(vocabulary) == 49408
    prompt = "a street, people, trees,"
    ours, published = (
        CLIPTokenizer.from_pretrained(path)(prompt).input_ids for path in (tmp_path, TOKENIZER)
    )
    assert ours == published


def test_a_folder_without_vocabulary_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"vocab\.json"):
        write_tokenizer(tmp_path / "out", tmp_path)


# ---------------------------------------------------------------- bytes


def test_same_seed_same_bytes_and_other_seed_other_weights(tiny: full_size.FullSize, tmp_path: Path) -> None:
    again = full_size.write_model(tmp_path / "again", tiny_shapes(), seed=3)
    assert all_bytes(again.sd) == all_bytes(tiny.sd)
    assert again.checkpoint.read_bytes() == tiny.checkpoint.read_bytes()
    other = full_size.write_model(tmp_path / "other", tiny_shapes(), seed=4)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (other.sd / weights).read_bytes() != (tiny.sd / weights).read_bytes()


def test_demo_is_written_with_the_same_bytes_each_time(demo_model: demo.Demo, tmp_path: Path) -> None:
    again = demo.write_demo(tmp_path / "again")
    assert all_bytes(again.sd) == all_bytes(demo_model.sd)
    assert again.checkpoint.read_bytes() == demo_model.checkpoint.read_bytes()


def assert_same_content(pkl: Path, resaved: Path) -> None:
    content = load(pkl)
    with safe_open(resaved, "pt") as handle:
        metadata = handle.metadata()
        names = {
            f"{group}.{name}": tensor for group in STATE_DICTS for name, tensor in content[group].items()
        }
        assert set(handle.keys()) == set(names)
        for name, tensor in names.items():
            assert handle.get_tensor(name).dtype == tensor.dtype
            assert torch.equal(handle.get_tensor(name), tensor)
    plain = {name: value for name, value in content.items() if name not in STATE_DICTS}
    assert {name: json.loads(metadata[name]) for name in plain} == plain


def test_both_forms_of_a_checkpoint_hold_the_same(tiny: full_size.FullSize, tmp_path: Path) -> None:
    written = full_size.write_model(tmp_path / "st", tiny_shapes(), seed=3, checkpoint_format="safetensors")
    assert_same_content(tiny.checkpoint, written.checkpoint)
    resaved = resave_as_safetensors(tiny.checkpoint, tmp_path / "resaved.safetensors")
    assert resaved.read_bytes() == written.checkpoint.read_bytes()


def test_a_checkpoint_that_torch_saved_is_resaved_whole(tmp_path: Path) -> None:
    out = resave_as_safetensors(GOLDEN / "model.pkl", tmp_path / "golden.safetensors")
    assert_same_content(GOLDEN / "model.pkl", out)


def test_streamed_pkl_is_what_torch_save_would_hold(tiny: full_size.FullSize, tmp_path: Path) -> None:
    content = load(tiny.checkpoint)
    torch.save(content, tmp_path / "model.pkl")
    reference = load(tmp_path / "model.pkl")
    for group in STATE_DICTS:
        assert type(content[group]) is type(reference[group])
        assert list(content[group]) == list(reference[group])
        mapped = torch.load(tiny.checkpoint, weights_only=True, mmap=True)[group]
        assert all(torch.equal(mapped[name], tensor) for name, tensor in reference[group].items())
        assert all(tensor.is_contiguous() for tensor in content[group].values())


def test_another_pickle_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "x.pkl")
    with pytest.raises(ValueError, match="no state_dict_unet and no state_dict_bpp"):
        resave_as_safetensors(tmp_path / "x.pkl", tmp_path / "x.safetensors")


def test_a_checkpoint_of_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.bin"):
        write_checkpoint(tmp_path / "x.bin", Checkpoint({}, {}, {}))


def test_nothing_is_overwritten_unasked(demo_model: demo.Demo) -> None:
    out = demo_model.checkpoint.parent
    with pytest.raises(FileExistsError, match="overwrite"):
        demo.write_demo(out)
    with pytest.raises(FileExistsError, match="overwrite"):
        full_size.write_model(out, tiny_shapes())


def test_a_write_that_fails_leaves_no_file(tmp_path: Path) -> None:
    def short() -> Iterator[np.ndarray]:
        yield np.zeros(3, np.float16)

    broken = {"x": LazyTensor((4,), torch.float16, short)}
    with pytest.raises(ValueError, match="6 bytes"):
        write_safetensors(tmp_path / "x.safetensors", broken)
    with pytest.raises(ValueError, match="6 bytes"):
        write_pkl(tmp_path / "x.pkl", Checkpoint(broken, {}, {}))
    assert not list(tmp_path.iterdir())


def test_progress_names_each_file_and_ends_at_one(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    full_size.write_model(tmp_path / "x", tiny_shapes(), progress=lambda *event: told.append(event))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert [file.split("/")[-1] for file in dict.fromkeys(file for file, _ in told)] == [
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.safetensors",
        "model.safetensors",
        "model.pkl",
    ]


def test_seeded_values_do_not_depend_on_what_is_written_before() -> None:
    def values(name: str) -> np.ndarray:
        return np.concatenate(list(full_size.seeded(1, name, (64, 32)).blocks()))

    first = values("a.weight")
    values("b.weight")
    np.testing.assert_array_equal(values("a.weight"), first)
    assert not np.array_equal(values("b.weight"), first)
    assert abs(first.std() * 32**0.5 - 1) < 0.1


def test_full_size_is_stable_diffusion_2_1_to_the_parameter() -> None:
    shapes = full_size.Shapes()

    def count(tensors: dict[str, tuple[int, ...]]) -> int:
        return sum(int(np.prod(shape)) for shape in tensors.values())

    assert count(full_size.unet_shapes(shapes.unet)) == 865_910_724
    assert count(full_size.vae_shapes(shapes.vae)) == 83_653_863
    assert count(full_size.text_encoder_shapes(shapes.text_encoder)) == 340_387_840


# ---------------------------------------------------------------- what the networks make


@torch.no_grad()
def test_random_weights_give_finite_activations(tiny: full_size.FullSize) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    vae = AutoencoderKL.from_pretrained(tiny.sd / "vae", torch_dtype=torch.float32)
    unet = UNet2DConditionModel.from_pretrained(tiny.sd / "unet", torch_dtype=torch.float32)
    latent = vae.encode(smooth_picture(64)).latent_dist.mode() * 0.18215
    eps = unet(latent, 1, torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(0))).sample
    picture = vae.decode((latent - eps) / 0.18215).sample
    for tensor in (latent, eps, picture):
        assert tensor.isfinite().all()
        assert 0.01 < tensor.std() < 30


def smooth_picture(side: int) -> torch.Tensor:
    """A picture (1,3,side,side) in [-1,1]: a small clip's smooth noise, enlarged four times."""
    small = torch.rand(1, 3, side // 64, side // 64, generator=torch.Generator().manual_seed(1))
    clip = torch.nn.functional.interpolate(small, (side // 4, side // 4), mode="bicubic")
    return torch.nn.functional.interpolate(clip.clamp(0, 1), (side, side), mode="bicubic").clamp(0, 1) * 2 - 1


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of pictures in [-1,1]."""
    return float(10 * torch.log10(4 / (a.float() - b.float()).square().mean()))


@pytest.fixture(scope="module")
def demo_vae(demo_model: demo.Demo) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(demo_model.sd / "vae", torch_dtype=torch.float32).eval()


@torch.no_grad()
def carried(vae: Any, picture: torch.Tensor) -> torch.Tensor:
    return vae.decode(vae.encode(picture).latent_dist.mode()).sample


def test_demo_vae_carries_a_smooth_picture(demo_vae: Any) -> None:
    picture = smooth_picture(256)
    assert psnr(carried(demo_vae, picture), picture) > 33


@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
def test_demo_vae_keeps_a_plain_picture_up_to_its_rim(demo_vae: Any, level: float) -> None:
    picture = torch.full((1, 3, 128, 192), level)
    torch.testing.assert_close(carried(demo_vae, picture), picture, atol=0.01, rtol=0)


@torch.no_grad()
def test_demo_vae_decodes_a_tile_as_it_decodes_the_whole(demo_vae: Any) -> None:
    latent = demo_vae.encode(smooth_picture(512)).latent_dist.mode()
    whole = demo_vae.decode(latent).sample[..., 128:384, 128:384]
    tile = demo_vae.decode(latent[..., 12:52, 12:52]).sample[..., 32:288, 32:288]
    assert psnr(tile, whole) > 55


@torch.no_grad()
def test_demo_vae_survives_half_precision(demo_model: demo.Demo, demo_vae: Any) -> None:
    from diffusers import AutoencoderKL

    half = AutoencoderKL.from_pretrained(demo_model.sd / "vae", torch_dtype=torch.float16).eval()
    picture = smooth_picture(256)
    assert psnr(carried(half, picture.half()), carried(demo_vae, picture)) > 45


@torch.no_grad()
def test_demo_unet_takes_a_limited_step_towards_the_previous_latent(demo_model: demo.Demo) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(demo_model.sd / "unet", torch_dtype=torch.float32).eval()
    state = merged(load(demo_model.checkpoint)["state_dict_unet"])
    unet.conv_in = torch.nn.Conv2d(8, unet.conv_in.out_channels, 3, padding=1)
    unet.load_state_dict(state)
    random = torch.Generator().manual_seed(2)
    fused = torch.randn(1, 4, 16, 24, generator=random)
    change = torch.randn(1, 4, 16, 24, generator=random) * 0.02
    change[:, :, :8] = 0
    eps = unet(torch.cat([fused - change, fused], 1), 1, torch.zeros(1, 77, 32)).sample
    torch.testing.assert_close(eps, change.clamp(-0.015, 0.015) / 2, atol=3e-4, rtol=0)


def merged(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The UNet's state dict with all adapters added at scale 2 (peft's alpha 8 over rank 4)."""
    result = {
        name.replace(".base_layer", ""): tensor.float()
        for name, tensor in state.items()
        if "lora" not in name
    }
    for name, tensor in state.items():
        if ".lora_B." in name:
            down = state[name.replace(".lora_B.", ".lora_A.")].float()
            weight = result[name.partition(".lora_B.")[0] + ".weight"]
            weight += 2 * (tensor.float().flatten(1) @ down.flatten(1)).reshape(weight.shape)
    return result


def test_demo_adapters_change_weights_that_do_not_reach_the_picture(demo_model: demo.Demo) -> None:
    state = load(demo_model.checkpoint)["state_dict_unet"]
    silent = {name for name, tensor in state.items() if ".lora_B." in name and not tensor.any()}
    assert {name.partition(".lora_B.")[0] for name in silent} == set(demo._ON_THE_WAY)
    assert all(tensor.any() for name, tensor in state.items() if ".lora_A." in name)
