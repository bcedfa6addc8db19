"""Prompts that are given when a clip is restored."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_bundle
from helpers.golden import PROMPT

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Bound, FileEntry, Manifest, Tensor, Tokenizer
from vsr_trt.runtime.bundle.options import Settings
from vsr_trt.runtime.bundle.reading import read_manifest
from vsr_trt.runtime.bundle.tokens import encode, read_tokenizer
from vsr_trt.runtime.cli.main import main
from vsr_trt.runtime.errors import BundleError, DeviceError, InputError, VsrError
from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks
from vsr_trt.runtime.restore import prompts
from vsr_trt.runtime.restore.prompts import embed
from vsr_trt.runtime.restore.restorer import Restorer

TEXTS = (PROMPT, "  A  Street's 123 café ÀÉ\u3000日本 🎉 don't ! !!! x<|endoftext|>", "", "tree " * 100)


@pytest.fixture
def bundle(golden_bundle: Path, tmp_path: Path) -> Path:
    """A copy to change; the large files are links to the golden one's."""
    copy = tmp_path / "bundle"
    shutil.copytree(
        golden_bundle, copy, copy_function=lambda source, target: Path(target).hardlink_to(source)
    )
    return copy


def rewrite(bundle: Path, name: str, content: bytes) -> None:
    """Another content for a file, and the manifest's entry for it."""
    file = bundle / name
    file.unlink()
    file.write_bytes(content)
    change(bundle, lambda m: replace(m, files=m.files | {name: FileEntry.of(file)}))


def change(bundle: Path, by: Callable[[Manifest], Manifest]) -> None:
    manifest = by(read_manifest(bundle))
    (bundle / "bundle.json").unlink()
    manifest.write(bundle)


def embedded(bundle: Path, prompt: str | None = None, negative: str | None = None) -> np.ndarray:
    opened = Bundle.open(bundle)
    settings = Settings(prompt=prompt, negative_prompt=negative)
    (array,) = embed(opened, settings, opened.constants()).constants.values()
    return array


@pytest.mark.parametrize("settings", [{"backend": "tensorrt"}, {"engine_cache": "cache"}])
def test_what_cannot_run_is_refused_before_the_prompt_is_embedded(
    golden_bundle: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CpuNetworks, "load", lambda *_: pytest.fail("a network was loaded"))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(VsrError, match=r"TensorRT is not installed|leave --engine-cache out"):
        Restorer(golden_bundle, prompt="tree", **settings)


def test_without_a_prompt_nothing_is_loaded(golden_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert embed(Bundle.open(golden_bundle), Settings(), {}).constants == {}


def test_the_bundles_own_prompt_gives_its_own_embedding(
    golden_bundle: Path, golden_arrays: dict[str, np.ndarray]
) -> None:
    ours = embedded(golden_bundle, PROMPT)
    np.testing.assert_allclose(ours, np.load(golden_bundle / "prompt.npy"), atol=1e-5)
    np.testing.assert_allclose(ours, golden_arrays["prompt_embeds"][0], atol=1e-5)


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_transformers(golden_bundle: Path, golden: Path, text: str) -> None:
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(golden / "sd" / "tokenizer")
    ids, cut = encode(read_tokenizer(golden_bundle / "tokenizer.json", 77), text)
    assert ids.tolist() == theirs(text, max_length=77, padding="max_length", truncation=True).input_ids
    assert cut == max(0, len(theirs(text).input_ids) - 77)


def test_another_prompt_is_another_bundles(
    bundle: Path, golden_bundle: Path, golden_frames: list[np.ndarray]
) -> None:
    """Restoring with a prompt is restoring with a bundle that was built with it."""
    frames = golden_frames[:2]
    with Restorer(golden_bundle, prompt="tree, cat") as restorer:
        ours = list(restorer.restore(frames))
        assert restorer.notes == ()
    content = bundle.parent / "other.npy"
    np.save(content, embedded(golden_bundle, "tree, cat"))
    rewrite(bundle, "prompt.npy", content.read_bytes())
    for changed, prompt in ((True, None), (False, PROMPT)):
        with Restorer(bundle, prompt=prompt) as restorer:
            same = [np.array_equal(*pair) for pair in zip(restorer.restore(frames), ours, strict=True)]
        assert all(same) == changed


def test_each_text_has_a_place_of_its_own(bundle: Path) -> None:
    content = bundle.parent / "two.npy"
    own = np.stack([np.load(bundle / "prompt.npy"), np.full((77, 32), 5, np.float32)])
    np.save(content, own)
    rewrite(bundle, "prompt.npy", content.read_bytes())
    change(bundle, lambda m: replace(m, prompt=replace(m.prompt, negative="blurred")))  # type: ignore[type-var]
    plain, other = embedded(bundle, "tree"), embedded(bundle, negative="tree")
    np.testing.assert_array_equal(plain[0], other[1])
    np.testing.assert_array_equal(plain[1], own[1])
    np.testing.assert_array_equal(other[0], own[0])
    np.testing.assert_array_equal(embedded(bundle, "tree", "tree"), np.stack([plain[0], plain[0]]))


def test_what_belongs_behind_a_prompt_is_not_behind_a_negative_one(bundle: Path) -> None:
    def behind(manifest: Manifest) -> Manifest:
        assert manifest.prompt is not None
        tokenizer = Tokenizer("tokenizer.json", "text_encoder", "house, cat")
        return replace(manifest, prompt=replace(manifest.prompt, tokenizer=tokenizer))

    before = embedded(bundle, "treehouse, cat")
    change(bundle, behind)
    np.testing.assert_array_equal(embedded(bundle, "tree"), before)


def test_a_prompt_that_is_too_long_is_cut_and_said(
    golden_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tiny_bundle.write_clip(tmp_path / "clip", count=1)
    arguments = [clip, "-o", tmp_path / "out", "--bundle", golden_bundle, "--prompt", "tree " * 100, "--json"]
    assert main(["restore", *map(str, arguments)]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert "The prompt is 25 tokens too long; its end was cut off." in notes


# ---------------------------------------------------------------- refusals


def test_a_family_without_prompts_says_so(tmp_path: Path) -> None:
    bundle = tiny_bundle.write_bundle(tmp_path / "bundle")
    change(bundle, lambda m: replace(m, prompt=None))
    with pytest.raises(InputError, match="takes no prompt; leave --prompt and --negative-prompt out"):
        Restorer(bundle, prompt="tree", negative_prompt="cat")


@pytest.mark.parametrize("given", [{"prompt": "tree"}, {"negative_prompt": "cat"}])
def test_a_bundle_of_before_says_that_it_has_no_tokenizer(tmp_path: Path, given: dict[str, str]) -> None:
    bundle = tiny_bundle.write_bundle(tmp_path / "bundle")
    option = f"--{next(iter(given)).replace('_', '-')}"
    with pytest.raises(
        InputError, match=f"cannot take {option}: it has no tokenizer, because an earlier version"
    ):
        Restorer(bundle, **given)


@pytest.mark.parametrize("prompt", [3, b"tree", "caf\udce9"])
def test_what_is_no_text_is_refused(golden_bundle: Path, prompt: object) -> None:
    with pytest.raises(InputError, match=r"the prompt is .*; expected a text in UTF-8"):
        Restorer(golden_bundle, prompt=prompt)


def test_a_negative_prompt_for_a_family_without_one_is_refused(
    golden_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tiny_bundle.write_clip(tmp_path / "clip", count=1)
    arguments = [clip, "-o", tmp_path / "out", "--bundle", golden_bundle, "--negative-prompt", "cat"]
    assert main(["restore", *map(str, arguments)]) == 2
    assert "takes no negative prompt; leave --negative-prompt out" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(golden_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        DeviceError, match=r"tokenizers, which is not installed.*pip install 'vsr-trt\[prompt\]'"
    ):
        Restorer(golden_bundle, prompt="tree")


def test_without_onnx_runtime_it_says_what_embeds(
    golden_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DeviceError, match=r"are embedded on the CPU, but ONNX Runtime is not installed"):
        embed(Bundle.open(golden_bundle), Settings(prompt="tree"), {})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"model": {"type": "BPE"}}', b"\xff" * 100])
def test_a_damaged_tokenizer_is_refused(bundle: Path, content: bytes) -> None:
    rewrite(bundle, "tokenizer.json", content)
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be used"):
        Restorer(bundle, prompt="tree")


def altered(bundle: Path, by: Callable[[dict], object]) -> None:
    data = json.loads((bundle / "tokenizer.json").read_text())
    by(data)
    rewrite(bundle, "tokenizer.json", json.dumps(data).encode())


@pytest.mark.parametrize(
    "by",
    [
        lambda data: data["padding"].update(strategy={"Fixed": 10**13}),
        lambda data: data["truncation"].update(max_length=50),
        lambda data: data["truncation"].update(max_length=10**13),
        lambda data: data["truncation"].update(stride=100),
        lambda data: data["truncation"].update(strategy="OnlySecond"),
        lambda data: data.update(truncation=None),
    ],
)
def test_how_many_tokens_there_are_is_the_networks_business(
    bundle: Path, by: Callable[[dict], object]
) -> None:
    before = embedded(bundle, "tree " * 100)
    altered(bundle, by)
    np.testing.assert_array_equal(embedded(bundle, "tree " * 100), before)


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (lambda data: data.update(padding=None), "cannot be used: it does not tell what fills texts up"),
        (
            lambda data: data["padding"].update(pad_id=10**6),
            "has tokens that the network text_encoder does not know",
        ),
        (lambda data: data["padding"].update(pad_id=2**32 - 1), "does not know"),
        (
            lambda data: data.update(model={"type": "WordLevel", "vocab": {}, "unk_token": "?"}),
            "cannot be used: .*UNK",
        ),
    ],
)
def test_another_models_tokenizer_is_refused(
    bundle: Path, by: Callable[[dict], object], message: str
) -> None:
    altered(bundle, by)
    with pytest.raises(BundleError, match=message):
        Restorer(bundle, prompt="tree")


def test_memory_that_runs_out_is_no_fault_of_the_bundle(
    golden_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        raise DeviceError("text_encoder ran out of memory.")

    monkeypatch.setattr(prompts.CpuNetworks, "run", run)
    with pytest.raises(DeviceError, match="ran out of memory"):
        Restorer(golden_bundle, prompt="tree")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((77, 31), np.float32),
        np.zeros((1, 77, 32), np.float32),
        np.zeros((77, 32), np.int64),
        np.zeros((), np.float32),
        np.full((77, 32), "a"),
    ],
)
def test_an_embedding_of_another_shape_is_refused(bundle: Path, array: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, array)
    rewrite(bundle, "prompt.npy", content.getvalue())
    with pytest.raises(BundleError, match=r"prompt\.npy is .*, expected float32 \(77, 32\)"):
        Restorer(bundle, prompt="tree")


def test_an_archive_in_an_embeddings_place_is_refused(bundle: Path) -> None:
    content = io.BytesIO()
    np.savez(content, prompt=np.zeros((77, 32), np.float32))
    rewrite(bundle, "prompt.npy", content.getvalue())
    with pytest.raises(BundleError, match=r"prompt\.npy cannot be read: expected one array"):
        Restorer(bundle)


def network(bundle: Path, **changes: object) -> None:
    change(
        bundle,
        lambda m: replace(
            m, networks=m.networks | {"text_encoder": replace(m.networks["text_encoder"], **changes)}
        ),
    )


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ((Tensor("a", "int64", (77,)), Tensor("b", "float32", (77, 32))), ()),
        ((), (Tensor("a", "int64", (77,)), Tensor("b", "float32", (77, 32)))),
        ((Tensor("a", "int64", ("n",)),), (Tensor("b", "float32", (77, 32)),)),
        ((Tensor("a", "int64", (77, 1)),), (Tensor("b", "float32", (77, 32)),)),
        ((Tensor("a", "int64", (77,)),), (Tensor("b", "float32", ("n", 32)),)),
    ],
)
def test_a_network_that_embeds_no_tokens_is_refused(
    bundle: Path, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]
) -> None:
    network(bundle, inputs=inputs, outputs=outputs, bounds={"n": Bound(1, 100)})
    with pytest.raises(BundleError, match=r"expected int64 \(n\) to float32 \(n,c\)"):
        read_manifest(bundle)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (Tokenizer("../tokenizer.json", "text_encoder"), "leaves the bundle"),
        (Tokenizer("missing.json", "text_encoder"), "not among the files"),
        (Tokenizer("tokenizer.json", "nobody"), "the prompt's network is 'nobody', which is no network"),
        (Tokenizer("tokenizer.json", "unet"), r"expected int64 \(n\) to float32 \(n,c\)"),
    ],
)
def test_a_manifest_that_refers_to_nothing_is_refused(
    bundle: Path, tokenizer: Tokenizer, message: str
) -> None:
    change(bundle, lambda m: replace(m, prompt=replace(m.prompt, tokenizer=tokenizer)))  # type: ignore[type-var]
    with pytest.raises(BundleError, match=message):
        read_manifest(bundle)


def test_a_prompt_whose_embedding_nothing_reads_is_refused(bundle: Path) -> None:
    change(bundle, lambda m: replace(m, prompt=replace(m.prompt, file="tokenizer.json")))  # type: ignore[type-var]
    with pytest.raises(BundleError, match=r"the prompt's file tokenizer\.json is no input"):
        read_manifest(bundle)
