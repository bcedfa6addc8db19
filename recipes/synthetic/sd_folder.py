"""The Stable Diffusion directory: tokenizer, configurations, and what stands around the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vsr_trt.runtime.machine.files import whole_file

Json = dict[str, Any]

SD_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def write_json(path: Path, content: Any) -> None:
    """Writes JSON as the libraries that read it do: two spaces, one line end at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as handle:
        handle.write((json.dumps(content, indent=2) + "\n").encode())


def byte_vocabulary() -> dict[str, int]:
    """A CLIP-style vocabulary without merges: the 256 bytes, the 256 that end a word, and the two marks.

    The order of the bytes is CLIP's, so that `!` is id 0: Stable Diffusion 2.1 pads with it.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    return {word: index for index, word in enumerate(words)}


def write_tokenizer(out: Path, tokenizer: Path | None) -> dict[str, int]:
    """Writes the tokenizer's directory and returns its vocabulary.

    `tokenizer` is a directory with CLIP's vocab.json and merges.txt; None writes :func:`byte_vocabulary`,
    which splits any prompt into bytes.
    """
    if tokenizer is None:
        vocabulary, merges = byte_vocabulary(), b"#version: 0.2\n"
    else:
        for name in ("vocab.json", "merges.txt"):
            if not (tokenizer / name).is_file():
                raise FileNotFoundError(f"{tokenizer} has no {name}; expected a CLIP tokenizer's directory")
        vocabulary = json.loads((tokenizer / "vocab.json").read_text(encoding="utf-8"))
        merges = (tokenizer / "merges.txt").read_bytes()
    out.mkdir(parents=True, exist_ok=True)
    with whole_file(out / "vocab.json") as handle:
        handle.write(json.dumps(vocabulary, ensure_ascii=False).encode())
    with whole_file(out / "merges.txt") as handle:
        handle.write(merges)
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "!",
    }
    write_json(out / "special_tokens_map.json", special)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    write_json(out / "tokenizer_config.json", {**settings, **special, "errors": "replace"})
    return vocabulary


def write_frame_files(sd: Path) -> None:
    """Writes the files of the Stable Diffusion directory that hold no weights: index and scheduler."""
    libraries = {
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    pipeline = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.25.0"}
    write_json(sd / "model_index.json", {**pipeline, **libraries})
    scheduler = {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": "0.25.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "steps_offset": 0,
        "timestep_spacing": "leading",
        "variance_type": "fixed_small",
    }
    write_json(sd / "scheduler" / "scheduler_config.json", scheduler)


def refuse_to_overwrite(out: Path, overwrite: bool) -> None:
    """Raises FileExistsError where `out` holds something and may not be overwritten."""
    if not overwrite and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"{out} exists and is not empty; choose another directory or pass overwrite=True"
        )
