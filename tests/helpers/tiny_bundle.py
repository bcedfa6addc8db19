"""A bundle of four small networks, made in a moment; one of them has numbers that FP16 cannot hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from PIL import Image

from vsr_trt.runtime.bundle.manifest import (
    Bound,
    Canvas,
    FileEntry,
    Input,
    Manifest,
    Network,
    Prompt,
    Provenance,
    Source,
    Stage,
    Tensor,
    Tiling,
)

HEADER = '<ir_version: 10, opset_import: ["" : 23]>\n'
CHANNELS = 24

PICTURE, PLANES = ("n", "h", "w", 3), ("n", 3, "h", "w")
ENCODE = """encode (float[n,3,h,w] image) => (float[n,3,h,w] latent)
{ wide = Conv <pads = [1,1,1,1]> (image, first) bent = Relu (wide) latent = Conv <pads = [1,1,1,1]> (bent, second) }"""
REFINE = """refine (float[n,3,h,w] latent) => (float[n,3,h,w] refined)
<float[1] step = {1000.0}, float[1] loss = {0.000001}>
{ mixed = Conv <pads = [1,1,1,1]> (latent, first) calm = Sigmoid (mixed) high = Mul (calm, step) loud = Mul (high, step)
  soft = Mul (loud, loss) joined = Conv <pads = [1,1,1,1]> (soft, second) refined = Relu (joined) }"""
PREPARE = """prepare (uint8[n,h,w,3] frame) => (float[n,3,h,w] image)
<float[1] levels = {255.0}>
{ single = Cast <to = 1> (frame) planes = Transpose <perm = [0,3,1,2]> (single) image = Div (planes, levels) }"""
FINISH = """finish (float[n,3,h,w] image) => (uint8[n,h,w,3] result)
<float[1] levels = {255.0}, float least = {0.0}, float most = {255.0}>
{ scaled = Mul (image, levels) whole = Round (scaled) inside = Clip (whole, least, most)
  pixels = Transpose <perm = [0,2,3,1]> (inside) result = Cast <to = 2> (pixels) }"""


def parse(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    """A graph in ONNX's text form; `weights` become initialisers."""
    model = onnx.parser.parse_model(HEADER + text)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in weights.items()
    )
    return onnx.shape_inference.infer_shapes(model)


def weights(seed: int) -> dict[str, np.ndarray]:
    """Two convolutions, to more channels and back."""
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((CHANNELS, 3, 3, 3)) / 6
    second = np.abs(rng.standard_normal((3, CHANNELS, 3, 3))) / (9 * CHANNELS)
    return {"first": first.astype(np.float32), "second": second.astype(np.float32)}


def frames(count: int = 2, side: int = 16) -> list[np.ndarray]:
    """Pictures (side,side,3) uint8 with a gradient and some noise."""
    rng = np.random.default_rng(7)
    slope = np.linspace(30, 200, side)[:, None, None]
    return [(slope + rng.uniform(0, 50, (side, side, 3))).astype(np.uint8) for _ in range(count)]


def write_clip(folder: Path, count: int = 2) -> Path:
    """A folder of pictures."""
    folder.mkdir()
    for index, frame in enumerate(frames(count)):
        Image.fromarray(frame).save(folder / f"{index:04}.png")
    return folder


def _network(
    source: tuple[str, tuple[Any, ...], str],
    result: tuple[str, tuple[Any, ...], str],
    name: str,
    reason: str | None,
) -> Network:
    sides = Bound(1, 4096)
    return Network(
        inputs=(Tensor(source[0], source[2], source[1]),),
        outputs=(Tensor(result[0], result[2], result[1]),),
        bounds={"n": sides, "h": sides, "w": sides},
        graphs={"native": f"onnx/{name}.onnx"},
        nodes=0,
        parameters=0,
        always_fp32=reason,
    )


def write_bundle(folder: Path) -> Path:
    """frame -> prepare -> encode -> refine -> finish; encode and refine have an FP16 form."""
    (folder / "onnx").mkdir(parents=True)
    graphs: dict[str, Callable[[], onnx.ModelProto]] = {
        "prepare": lambda: parse(PREPARE),
        "encode": lambda: parse(ENCODE, **weights(1)),
        "refine": lambda: parse(REFINE, **weights(2)),
        "finish": lambda: parse(FINISH),
    }
    for name, make in graphs.items():
        path = folder / "onnx" / f"{name}.onnx"
        heavy = name in ("encode", "refine")
        onnx.save(
            make(), path, save_as_external_data=heavy, location=f"{path.name}.data", size_threshold=1024
        )
    np.save(folder / "prompt.npy", np.zeros((77, 4), np.float32))
    none = Source("none", 0, "00")
    image, latent = ("image", PLANES, "float32"), ("latent", PLANES, "float32")
    Manifest(
        family="tiny",
        scale=1,
        precision="fp32",
        canvas=Canvas((1, 1), 1),
        tilings={"vae": Tiling(96, 16, exact=True), "latent": Tiling(96, 32)},
        latent_scale=1,
        top_k=None,
        networks={
            "prepare": _network(("frame", PICTURE, "uint8"), image, "prepare", "integers"),
            "encode": _network(image, latent, "encode", None),
            "refine": _network(latent, ("refined", PLANES, "float32"), "refine", None),
            "finish": _network(image, ("result", PICTURE, "uint8"), "finish", "integers"),
        },
        stages=(
            Stage("prepare", "prepare", {"frame": "frame"}, {"image": "image"}),
            Stage("encode", "encode", {"image": "image"}, {"latent": "latent"}, tiling="vae"),
            Stage("refine", "refine", {"latent": "latent"}, {"refined": "refined"}, tiling="latent"),
            Stage("finish", "finish", {"image": "refined"}, {"result": "result"}),
        ),
        inputs={"frame": Input("frame"), "prompt": Input("file", "prompt.npy")},
        output="result",
        prompt=Prompt("", "prompt.npy"),
        files=hashes(folder),
        provenance=Provenance(none, "none", {}, "2026-01-01T00:00:00+00:00"),
    ).write(folder)
    return folder


def hashes(folder: Path) -> dict[str, FileEntry]:
    """Of every file but the manifest."""
    return {
        path.relative_to(folder).as_posix(): FileEntry(
            path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "bundle.json"
    }


def tree(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, to tell whether it was touched."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text())
