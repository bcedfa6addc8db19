"""A manifest with two networks, for tests of what a manifest may say."""

from __future__ import annotations

from typing import Any


def small() -> dict[str, Any]:
    """A minimal manifest of one network and one file."""
    tensor = {"name": "x", "dtype": "float32", "shape": ["n", 3, "8*h", "w"]}
    bound = {"min": 1, "max": 4, "multiple_of": 1, "offset": 0}
    source = {"name": "model.pkl", "bytes": 1, "sha256": "00"}
    return {
        "schema_version": 5,
        "family": "dloral",
        "scale": 4,
        "precision": "fp32",
        "canvas": {
            "least": [128, 128],
            "multiple": 16,
            "small": "enlarge",
            "offset": [0, 0],
            "ample": False,
            "border": None,
            "centred": False,
        },
        "latent_scale": 8,
        "window": {"frames": 1, "overlap": 0, "last": "full"},
        "phases": {},
        "chunks": {},
        "tilings": {},
        "loops": {},
        "clip": [],
        "options": {},
        "top_k": None,
        "networks": {
            "net": {
                "inputs": [tensor],
                "outputs": [tensor | {"name": "y"}, tensor | {"name": "z"}],
                "bounds": {"n": bound, "h": bound, "w": bound},
                "graphs": {"native": "onnx/net.onnx"},
                "nodes": 1,
                "parameters": 0,
                "always_fp32": "a reason",
                "work": {
                    "multiply_adds": {"h*w": 27.0, "ceil(h,32)*w*h*w": 0.5},
                    "weights": 9,
                    "activations": {"1": 3.0, "h*w": 6.0},
                    "integer_bytes": {},
                },
                "strips": 1,
                "scratch": {"cpu": {"h*w": 12.0}},
                "kernel": {
                    "launch": ["prompt.npy"],
                    "operands": {"a": "x", "b": "y", "c": "z"},
                    "constants": {"M": "prompt.npy"},
                    "numbers": {"k": [3, "positions"]},
                },
            }
        },
        "stages": [
            {
                "name": "net",
                "network": "net",
                "reads": {"x": "frame"},
                "writes": {"y": "result", "z": "other"},
                "lane": "compute",
                "tiling": None,
                "loop": None,
                "variants": {},
                "option": None,
                "chunks": None,
                "phase": None,
            }
        ],
        "inputs": {
            "frame": {"source": "frame", "name": None, "seed": None},
            "prompt": {"source": "file", "name": "prompt.npy", "seed": None},
        },
        "output": "result",
        "prompt": {"text": "a", "file": "prompt.npy", "negative": None, "tokenizer": None},
        "kernels": [],
        "engines": [
            {
                "network": "net",
                "backend": "tensorrt_rtx",
                "version": "1.7.1.116",
                "target": "sm_89",
                "targets": ["sm_89"],
                "device": None,
                "precision": "fp32",
                "profiles": {"x": {key: [1, 3, 8, 1] for key in ("min", "opt", "max")}},
                "flags": [],
                "file": "onnx/net.onnx",
                "report": "prompt.npy",
                "key": "00",
                "platform": None,
            }
        ],
        "calibration": {"clip": source, "frames": 1, "limit": 0.25, "file": "prompt.npy"},
        "files": {
            "onnx/net.onnx": {
                "bytes": 3,
                "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            },
            "prompt.npy": {
                "bytes": 0,
                "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            },
        },
        "provenance": {
            "checkpoint": source,
            "checkpoint_layout": "dloral-pkl",
            "base_model": [source],
            "stage": "both",
            "adapters": {"default_encoder_quality": 1},
            "merged_sha256": "00",
            "tools": {"torch": "2"},
            "created": "2026-01-01T00:00:00+00:00",
            "stripped_prefixes": {"state_dict_unet": "module."},
        },
    }
