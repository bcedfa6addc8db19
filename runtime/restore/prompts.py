"""Prompts that are given when a clip is restored, in place of the bundle's own: embedded once, by its text encoder."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Manifest, Prompt, Tokenizer
from vsr_trt.runtime.bundle.options import Settings
from vsr_trt.runtime.bundle.tokens import cut_note, encode, read_tokenizer
from vsr_trt.runtime.errors import BundleError, DeviceError, InputError
from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks

_PROMPT, _NEGATIVE = "prompt", "negative prompt"


@dataclass(frozen=True)
class Embedded:
    """What takes the place of the bundle's constants.

    Attributes:
        constants: buffer -> embedding, for what was given; empty where nothing was.
        notes: sentences about texts that were too long.
    """

    constants: dict[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def embed(bundle: Bundle, settings: Settings) -> Embedded:
    """Embeds the prompts that the settings have.

    The text encoder runs on the CPU, whatever runs the other networks, and is closed again.

    Args:
        bundle: whose texts those are not.
        settings: `prompt` and `negative_prompt`, None each for the bundle's own.

    Raises:
        InputError: a prompt for a family or a bundle that takes none.
        DeviceError: ONNX Runtime or the package tokenizers is missing.
        BundleError: the tokenizer is damaged, or not the text encoder's.
    """
    given = {_PROMPT: settings.prompt, _NEGATIVE: settings.negative_prompt}
    wanted = {name: text for name, text in given.items() if text is not None}
    if not wanted:
        return Embedded()
    record, maker = _prompt(bundle.manifest, wanted)
    encoded = read_tokenizer(bundle.file(maker.file))
    networks = _networks(bundle, settings)
    names = [name for name, given in bundle.manifest.inputs.items() if given.name == record.file]
    found = {name: array.copy() for name, array in bundle.constants().items() if name in names}
    notes = []
    try:
        for name, text in wanted.items():
            ids, cut = encode(encoded, text + (maker.behind if name == _PROMPT else ""))
            row = _run(bundle, networks, maker, ids)
            for array in found.values():
                place = array if record.negative is None else array[list(given).index(name)]
                if row.shape != place.shape:
                    raise _misfit(bundle, maker, f"its embedding is {row.shape}, expected {place.shape}")
                place[...] = row
            if cut:
                notes.append(f"{cut_note(name, cut).capitalize()}.")
    finally:
        networks.close()
    return Embedded(found, tuple(notes))


def _prompt(manifest: Manifest, wanted: dict[str, str]) -> tuple[Prompt, Tokenizer]:
    """The bundle's record, where it has what is wanted."""
    record = manifest.prompt
    options = " and ".join(f"--{name.replace(' ', '-')}" for name in wanted)
    if record is None:
        raise InputError(f"this bundle's family takes no prompt; leave {options} out.")
    if _NEGATIVE in wanted and record.negative is None:
        raise InputError("this bundle's family takes no negative prompt; leave --negative-prompt out.")
    if record.tokenizer is None:
        raise InputError(
            f"this bundle has no tokenizer, so it cannot take {options}: it was built by an earlier version. Build it "
            f"again, which adds one, or with that prompt: vsr-build bundle {options.split(' and ')[0]} TEXT ..."
        )
    return record, record.tokenizer


def _networks(bundle: Bundle, settings: Settings) -> CpuNetworks:
    try:
        return CpuNetworks(bundle, settings.threads)
    except DeviceError as error:
        raise DeviceError(f"prompts other than the bundle's are embedded on the CPU, but {error}") from error


def _run(bundle: Bundle, networks: CpuNetworks, maker: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """Token ids -> embedding."""
    network = bundle.manifest.networks[maker.network]
    (tokens,), (result,) = network.inputs, network.outputs
    if ids.shape != tokens.shape:
        raise _misfit(bundle, maker, f"it gives {ids.shape} tokens, expected {tokens.shape}")
    networks.load(maker.network)
    try:
        return networks.run(maker.network, {tokens.name: ids})[result.name]
    except DeviceError as error:
        raise _misfit(bundle, maker, str(error)) from error


def _misfit(bundle: Bundle, maker: Tokenizer, why: str) -> BundleError:
    return BundleError(
        f"{bundle.path}: {maker.file} and the network {maker.network} do not go together: {why.rstrip('.')}. "
        "Copy the bundle again, or build it again with vsr-build bundle."
    )
