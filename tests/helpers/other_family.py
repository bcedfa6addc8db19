"""A family that exists in the tests alone, and is unlike the others in all that a manifest may say.

Scale 2; windows of 3 frames that share 1; three tilings; stages that are iterated 4 times with a table; a buffer that
lives as long as the clip; a canvas of at least 96x64 with a white border; two options; no operator, no prompt.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers import fake_engines
from helpers.family_files import files_of, write_networks

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import (
    Bound,
    Canvas,
    Input,
    Loop,
    Manifest,
    Option,
    Stage,
    Tensor,
    Tiling,
    Window,
)

SCALE, LATENT, STEPS = 2, 4, 4
FRAME, RESULT = ("f", "lr_h", "lr_w", 3), ("f", "4*h", "4*w", 3)
IMAGE, LATENTS = ("n", 3, "f", "4*h", "4*w"), ("n", 4, "f", "h", "w")
SIGMAS = np.array([[1.0, 0.5], [0.7, 0.4], [0.4, 0.3], [0.2, 0.1]], np.float32)

GRAPHS = {
    "enter": """enter (uint8[f,lr_h,lr_w,3] frame) => (float[n,3,f,H,W] image)
<int64[1] zero = {0}, float[1] levels = {255.0}, float[5] double = {1.0,1.0,1.0,2.0,2.0}>
{ single = Cast <to = 1> (frame) planes = Transpose <perm = [3,0,1,2]> (single) one = Unsqueeze (planes, zero)
  small = Div (one, levels) image = Resize <mode = "nearest"> (small, , double) }""",
    "encode": """encode (float[n,3,f,H,W] image) => (float[n,4,f,h,w] latent)
{ latent = Conv <strides = [1,4,4]> (image, weight) }""",
    "predict": """predict (float[n,4,f,h,w] latent, float[2] sigma, float[1] strength) => (float[n,4,f,h,w] guess)
<int64[1] zero = {0}>
{ first = Gather <axis = 0> (sigma, zero) mixed = Conv <pads = [1,1,1,1,1,1]> (latent, weight)
  noisy = Mul (mixed, first) calm = Tanh (noisy) guess = Mul (calm, strength) }""",
    "update": """update (float[n,4,f,h,w] latent, float[n,4,f,h,w] guess, float[2] sigma) => (float[n,4,f,h,w] refined)
<int64[1] one = {1}>
{ second = Gather <axis = 0> (sigma, one) step = Mul (guess, second) refined = Sub (latent, step) }""",
    "remember": """remember (float[n,4,f,h,w] refined, float[n,4,f,h,w] before)
=> (float[n,4,f,h,w] memory, float[n,4,f,h,w] mixed)
<float[1] half = {0.5}, float[1] tenth = {0.1}>
{ sum = Add (refined, before) memory = Mul (sum, half) part = Mul (memory, tenth) mixed = Add (refined, part) }""",
    "decode": """decode (float[n,4,f,h,w] mixed) => (float[n,3,f,H,W] picture)
{ picture = ConvTranspose <strides = [1,4,4]> (mixed, weight) }""",
    **{
        f"leave_{tone}": f"""leave (float[n,3,f,H,W] picture) => (uint8[f,H,W,3] result)
<int64[1] zero = {{0}}, float[1] levels = {{{level}}}, float least = {{0.0}}, float most = {{255.0}}>
{{ scaled = Mul (picture, levels) whole = Round (scaled) inside = Clip (whole, least, most)
  planes = Squeeze (inside, zero) pixels = Transpose <perm = [1,2,3,0]> (planes) result = Cast <to = 2> (pixels) }}"""
        for tone, level in (("plain", 255.0), ("soft", 180.0))
    },
}
WEIGHTS = {
    "encode": {"weight": (4, 3, 1, 4, 4)},
    "predict": {"weight": (4, 4, 3, 3, 3)},
    "decode": {"weight": (4, 3, 1, 4, 4)},
}
TENSORS: dict[str, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = {
    "enter": ((Tensor("frame", "uint8", FRAME),), (Tensor("image", "float32", IMAGE),)),
    "encode": ((Tensor("image", "float32", IMAGE),), (Tensor("latent", "float32", LATENTS),)),
    "predict": (
        (
            Tensor("latent", "float32", LATENTS),
            Tensor("sigma", "float32", (2,)),
            Tensor("strength", "float32", (1,)),
        ),
        (Tensor("guess", "float32", LATENTS),),
    ),
    "update": (
        (
            Tensor("latent", "float32", LATENTS),
            Tensor("guess", "float32", LATENTS),
            Tensor("sigma", "float32", (2,)),
        ),
        (Tensor("refined", "float32", LATENTS),),
    ),
    "remember": (
        (Tensor("refined", "float32", LATENTS), Tensor("before", "float32", LATENTS)),
        (Tensor("memory", "float32", LATENTS), Tensor("mixed", "float32", LATENTS)),
    ),
    "decode": ((Tensor("mixed", "float32", LATENTS),), (Tensor("picture", "float32", IMAGE),)),
    **{
        f"leave_{tone}": ((Tensor("picture", "float32", IMAGE),), (Tensor("result", "uint8", RESULT),))
        for tone in ("plain", "soft")
    },
}
STAGES = (
    Stage("enter", "enter", {"frame": "frame"}, {"image": "image"}, "in"),
    Stage("encode", "encode", {"image": "image"}, {"latent": "latent"}, "in", tiling="outer"),
    Stage(
        "predict",
        "predict",
        {"latent": "latent", "sigma": "sigmas[i]", "strength": "strength"},
        {"guess": "guess"},
        "work",
        tiling="inner",
        loop="sampler",
    ),
    Stage(
        "update",
        "update",
        {"latent": "latent", "guess": "guess", "sigma": "sigmas[i]"},
        {"refined": "refined"},
        "work",
        loop="sampler",
    ),
    Stage(
        "remember",
        "remember",
        {"refined": "refined", "before": "memory[n-1]"},
        {"memory": "memory", "mixed": "mixed"},
        "work",
    ),
    Stage("decode", "decode", {"mixed": "mixed"}, {"picture": "picture"}, "out", tiling="late"),
    Stage(
        "leave",
        "leave_plain",
        {"picture": "picture"},
        {"result": "result"},
        "out",
        variants={"plain": "leave_plain", "soft": "leave_soft"},
        option="tone",
    ),
)


def write(folder: Path) -> Bundle:
    """The family's bundle, with graphs for ONNX Runtime."""
    bounds = {name: Bound(8, 512) for name in ("h", "w")} | {"n": Bound(1, 256), "f": Bound(1, 8)}
    pixels = {"lr_h": Bound(1, 1024), "lr_w": Bound(1, 1024)}
    networks = write_networks(
        folder, GRAPHS, WEIGHTS, TENSORS, lambda name: bounds | (pixels if name == "enter" else {})
    )
    np.save(folder / "sigmas.npy", SIGMAS)
    files = files_of(folder)
    Manifest(
        family="other",
        scale=SCALE,
        precision="fp32",
        canvas=Canvas((64, 96), 8, "pad", border=255, centred=True),
        latent_scale=LATENT,
        networks=networks,
        stages=STAGES,
        inputs={
            "frame": Input("frame"),
            "sigmas": Input("file", "sigmas.npy"),
            "strength": Input("option", "strength"),
        },
        output="result",
        files=files,
        window=Window(3, 1),
        tilings={
            "outer": Tiling(48, 8, "ramp", square=False, together=False),
            "inner": Tiling(32, 16),
            "late": Tiling(40, 8, "ramp"),
        },
        loops={"sampler": Loop(STEPS, {"latent": "refined"}, ("sigmas",))},
        clip=("memory",),
        options={
            "tone": Option("choice", "plain", "how light the result is", ("plain", "soft")),
            "strength": Option("number", 0.5, "how much is taken away", least=0, most=1),
        },
    ).write(folder)
    return Bundle.open(folder)


def with_engines(bundle: Bundle) -> Bundle:
    """With what a fake GPU takes for engines and kernels."""
    fake_engines.add(bundle.path, bundle.manifest).write(bundle.path)
    return Bundle.open(bundle.path)
