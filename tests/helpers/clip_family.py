"""A family in phases, which exists in the tests alone: steps outside, windows inside.

All frames of a clip are encoded one by one; then its latents go through 4 steps together, each of which takes the
clip in overlapping chunks, and in tiles where frames are large; then it is decoded in groups of 3 frames, the last of
which may be shorter. Networks look at neighbouring frames, so that chunks and groups make a difference.
Noise comes in at three places, and the steps' table is the choice of two options.
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
    Chunks,
    Input,
    Loop,
    Manifest,
    Option,
    Stage,
    Tensor,
    Tiling,
    Window,
)

SCALE, LATENT, STEPS, GROUP = 2, 4, 4, 3
SIGMAS = {
    ("fast", 4): np.array([[1.0, 0.0], [0.7, 0.4], [0.4, 0.3], [0.2, 0.1]], np.float32),
    **{("normal", n): np.array([[1 - k / n, 0.1] for k in range(n)], np.float32) for n in (1, 2, 3)},
}
LATENTS = Tensor("", "float32", ("n", 4, "f", "h", "w"))
LEVEL = Tensor("", "float32", ("f", 3))

GRAPHS = {
    "encode": """encode (uint8[f,lr_h,lr_w,3] frame) => (float[n,4,f,h,w] latent, float[f,3] level)
<int64[1] zero = {0}, int64[2] sides = {1,2}, float[1] levels = {255.0}, float[5] double = {1.0,1.0,1.0,2.0,2.0}>
{ single = Cast <to = 1> (frame) level = ReduceMean <keepdims = 0> (single, sides)
  planes = Transpose <perm = [3,0,1,2]> (single) one = Unsqueeze (planes, zero) small = Div (one, levels)
  image = Resize <mode = "nearest"> (small, , double) latent = Conv <strides = [1,4,4]> (image, weight) }""",
    "sample": """sample (float[n,4,f,h,w] latent, float[f,4,h,w] noise) => (float[n,4,f,h,w] hint)
<int64[1] zero = {0}, float[1] part = {0.05}>
{ turned = Transpose <perm = [1,0,2,3]> (noise) same = Unsqueeze (turned, zero) little = Mul (same, part)
  hint = Add (latent, little) }""",
    "features": """features (float[s,2] sigmas) => (float[s,2] features)
<float[1] half = {0.5}> { features = Mul (sigmas, half) }""",
    "start": """start (float[n,4,f,h,w] latent, float[n,4,f,h,w] noise) => (float[n,4,f,h,w] x, float[n,4,f,h,w] last)
<float[1] half = {0.5}, float[1] none = {0.0}, float[1] part = {0.1}>
{ less = Mul (latent, half) little = Mul (noise, part) x = Add (less, little) last = Mul (latent, none) }""",
    "predict": """predict (float[n,4,f,h,w] x, float[n,4,f,h,w] hint, float[2] sigma) => (float[n,4,f,h,w] guess)
<int64[1] zero = {0}>
{ first = Gather <axis = 0> (sigma, zero) both = Add (x, hint)
  mixed = Conv <pads = [1,1,1,1,1,1]> (both, weight) noisy = Mul (mixed, first) guess = Tanh (noisy) }""",
    "update": """update (float[n,4,f,h,w] x, float[n,4,f,h,w] guess, float[n,4,f,h,w] last, float[2] sigma,
float[n,4,f,h,w] noise) => (float[n,4,f,h,w] refined)
<int64[1] zero = {0}, int64[1] one = {1}>
{ first = Gather <axis = 0> (sigma, zero) second = Gather <axis = 0> (sigma, one) now = Mul (guess, first)
  then = Mul (last, second) less = Sub (x, now) clean = Add (less, then) little = Mul (noise, second)
  refined = Add (clean, little) }""",
    "decode": """decode (float[n,4,f,h,w] refined) => (float[n,3,f,H,W] picture)
{ near = Conv <pads = [1,0,0,1,0,0]> (refined, time) picture = ConvTranspose <strides = [1,4,4]> (near, weight) }""",
    "leave": """leave (float[n,3,f,H,W] picture, float[f,3] level) => (uint8[f,H,W,3] result)
<int64[1] zero = {0}, int64[2] sides = {1,2}, float[1] levels = {1000.0}, float least = {0.0}, float most = {255.0}>
{ planes = Squeeze (picture, zero) pixels = Transpose <perm = [1,2,3,0]> (planes) scaled = Mul (pixels, levels)
  each = Unsqueeze (level, sides) sum = Add (scaled, each) whole = Round (sum) inside = Clip (whole, least, most)
  result = Cast <to = 2> (inside) }""",
}
WEIGHTS = {
    "encode": {"weight": (4, 3, 1, 4, 4)},
    "predict": {"weight": (4, 4, 3, 3, 3)},
    "decode": {"weight": (4, 3, 1, 4, 4), "time": (4, 4, 3, 1, 1)},
}


def _named(tensor: Tensor, name: str) -> Tensor:
    return Tensor(name, tensor.dtype, tensor.shape)


def _latents(*names: str) -> tuple[Tensor, ...]:
    return tuple(_named(LATENTS, name) for name in names)


_FRAME = Tensor("frame", "uint8", ("f", "lr_h", "lr_w", 3))
_PICTURE = Tensor("picture", "float32", ("n", 3, "f", "4*h", "4*w"))
_RESULT = Tensor("result", "uint8", ("f", "4*h", "4*w", 3))
_SIGMAS = Tensor("", "float32", ("s", 2))
_SIGMA, _LEVEL = Tensor("sigma", "float32", (2,)), _named(LEVEL, "level")
TENSORS: dict[str, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = {
    "encode": ((_FRAME,), (*_latents("latent"), _LEVEL)),
    "sample": ((*_latents("latent"), Tensor("noise", "float32", ("f", 4, "h", "w"))), _latents("hint")),
    "features": ((_named(_SIGMAS, "sigmas"),), (_named(_SIGMAS, "features"),)),
    "start": (_latents("latent", "noise"), _latents("x", "last")),
    "predict": ((*_latents("x", "hint"), _SIGMA), _latents("guess")),
    "update": ((*_latents("x", "guess", "last"), _SIGMA, *_latents("noise")), _latents("refined")),
    "decode": (_latents("refined"), (_PICTURE,)),
    "leave": ((_PICTURE, _LEVEL), (_RESULT,)),
}
PHASES = {"enter": Window(1), "sample": Window(None), "leave": Window(GROUP, last="short")}
STAGES = (
    Stage(
        "encode", "encode", {"frame": "frame"}, {"latent": "latent", "level": "level"}, "in", phase="enter"
    ),
    Stage("sample", "sample", {"latent": "latent", "noise": "grain"}, {"hint": "hint"}, "in", phase="enter"),
    Stage("features", "features", {"sigmas": "sigmas"}, {"features": "features"}, "solve", phase="sample"),
    Stage(
        "start",
        "start",
        {"latent": "hint", "noise": "begin"},
        {"x": "x", "last": "last"},
        "work",
        phase="sample",
    ),
    Stage(
        "predict",
        "predict",
        {"x": "x", "hint": "hint", "sigma": "features[i]"},
        {"guess": "guess"},
        "work",
        tiling="inner",
        loop="sampler",
        chunks="near",
        phase="sample",
    ),
    Stage(
        "update",
        "update",
        {"x": "x", "guess": "guess", "last": "last", "sigma": "sigmas[i]", "noise": "each[i]"},
        {"refined": "refined"},
        "solve",
        loop="sampler",
        phase="sample",
    ),
    Stage("decode", "decode", {"refined": "refined"}, {"picture": "picture"}, "out", phase="leave"),
    Stage(
        "leave",
        "leave",
        {"picture": "picture", "level": "level"},
        {"result": "result"},
        "out",
        phase="leave",
    ),
)


def write(folder: Path) -> Bundle:
    """The family's bundle, with graphs for ONNX Runtime."""
    bounds = {
        "s": Bound(1, 100),
        "n": Bound(1, 256),
        "f": Bound(1, 4096),
        "h": Bound(8, 512),
        "w": Bound(8, 512),
    }
    pixels = {"lr_h": Bound(1, 1024), "lr_w": Bound(1, 1024)}
    networks = write_networks(
        folder,
        GRAPHS,
        WEIGHTS,
        TENSORS,
        lambda name: bounds | (pixels if name == "encode" else {}),
        least=lambda name: -0.1 if name == "encode" else -0.4,  # around 0 everything tells
    )
    for (solver, steps), table in SIGMAS.items():
        np.save(folder / f"sigmas-{solver}-{steps}.npy", table)
    files = files_of(folder)
    Manifest(
        family="clip",
        scale=SCALE,
        precision="fp32",
        canvas=Canvas((64, 96), 8, "pad", border=255, centred=True),
        latent_scale=LATENT,
        networks=networks,
        stages=STAGES,
        inputs={
            "frame": Input("frame"),
            "sigmas": Input("file", "sigmas-{solver}-{steps}.npy"),
            "grain": Input("noise", "grain", seed="seed"),
            "begin": Input("noise", "start", seed="seed"),
            "each": Input("noise", "step", seed="seed"),
        },
        output="result",
        files=files,
        phases=PHASES,
        chunks={"near": Chunks("window", 0.5, 1.25)},
        tilings={"inner": Tiling(32, 16)},
        loops={"sampler": Loop("steps", {"x": "refined", "last": "guess"}, ("sigmas", "features", "each"))},
        options={
            "window": Option("integer", 3, "how many frames look at each other", least=2),
            "solver": Option("choice", "fast", "how steps are spaced", choices=("fast", "normal")),
            "steps": Option("integer", STEPS, "how often the networks look", least=1, most=100),
            "seed": Option("integer", 7, "of the noise", least=0),
        },
    ).write(folder)
    return Bundle.open(folder)


def with_engines(bundle: Bundle) -> Bundle:
    """With what a fake GPU takes for engines and kernels."""
    fake_engines.add(bundle.path, bundle.manifest).write(bundle.path)
    return Bundle.open(bundle.path)
