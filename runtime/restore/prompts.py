"""Prompts that are given when a clip is restored, in place of the bundle's own: embedded once, by its text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Manifest, Prompt, Tokenizer
from vsr_trt.runtime.bundle.options import Settings
from vsr_trt.runtime.bundle.symbols import Shape
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


def embed(bundle: Bundle, settings: Settings, constants: Mapping[str, np.ndarray]) -> Embedded:
    """Embeds the prompts that the settings have.

    The text encoder runs on the CPU, whatever runs the other networks, and is closed again.

    Args:
        bundle: whose texts those are not.
        settings: `prompt` and `negative_prompt`, None each for the bundle's own.
        constants: the bundle's own, by buffer.

    Raises:
        InputError: a prompt for a family or a bundle that takes none, or one that is no text.
        DeviceError: ONNX Runtime or the package tokenizers is missing, or memory.
        BundleError: the tokenizer is damaged, or not the text encoder's; so is the bundle's own embedding.
    """
    given = {_PROMPT: settings.prompt, _NEGATIVE: settings.negative_prompt}
    wanted = {name: text for name, text in given.items() if text is not None}
    if not wanted:
        return Embedded()
    for name, text in wanted.items():
        _check_text(name, text)
    record, maker = _prompt(bundle.manifest, wanted)
    network = bundle.manifest.networks[maker.network]
    (length,) = network.inputs[0].shape
    assert isinstance(length, int)
    tokenizer = read_tokenizer(bundle.file(maker.file), length)
    networks = _networks(bundle, settings)
    found, notes = _own(bundle, constants, record, network.outputs[0].shape), []
    try:
        for name, text in wanted.items():
            behind = maker.behind if name == _PROMPT else ""
            ids, cut = encode(tokenizer, text + behind)
            row = _run(bundle, networks, maker, ids)
            for array in found.values():
                place = array if record.negative is None else array[list(given).index(name)]
                place[...] = row
            if cut:
                what = f"{name}, with what this family puts behind it," if behind else name
                notes.append(f"{cut_note(what, cut).capitalize()}.")
    finally:
        networks.close()
    return Embedded(found, tuple(notes))


def _check_text(name: str, text: object) -> None:
    """Refuses what is no text: another type, or bytes of the command line that are no UTF-8."""
    try:
        if isinstance(text, str):
            text.encode()
            return
    except UnicodeEncodeError:
        pass
    raise InputError(f"the {name} is {text!r}; expected a text in UTF-8.")


def _own(
    bundle: Bundle, constants: Mapping[str, np.ndarray], record: Prompt, shape: Shape
) -> dict[str, np.ndarray]:
    """The bundle's own embeddings, by the buffer that they fill, to be changed."""
    expected = shape if record.negative is None else (2, *shape)
    found = {}
    for name, array in constants.items():
        if bundle.manifest.inputs[name].name == record.file:
            if array.shape != expected or array.dtype != np.float32:
                raise BundleError(
                    f"{bundle.path}: {record.file} is {array.dtype} {array.shape}, expected float32 {expected}. Copy "
                    "the bundle again, or build it again with vsr-build bundle."
                )
            found[name] = array.copy()
    return found


def _prompt(manifest: Manifest, wanted: dict[str, str]) -> tuple[Prompt, Tokenizer]:
    """The bundle's record, where it has what is wanted."""
    record = manifest.prompt
    options = " and ".join(f"--{name.replace(' ', '-')}" for name in wanted)
    if record is None:
        raise InputError(f"this bundle's family takes no prompt; leave {options} out.")
    if record.tokenizer is None:
        raise InputError(
            f"this bundle cannot take {options}: it has no tokenizer, because an earlier version built it. Build it "
            "again with vsr-build bundle."
        )
    if _NEGATIVE in wanted and record.negative is None:
        raise InputError("this bundle's family takes no negative prompt; leave --negative-prompt out.")
    return record, record.tokenizer


def _networks(bundle: Bundle, settings: Settings) -> CpuNetworks:
    try:
        return CpuNetworks(bundle, settings.threads)
    except DeviceError as error:
        raise DeviceError(f"prompts other than the bundle's are embedded on the CPU, but {error}") from error


def _run(bundle: Bundle, networks: CpuNetworks, maker: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """Token ids -> embedding."""
    network = bundle.manifest.networks[maker.network]
    networks.load(maker.network)
    try:
        return networks.run(maker.network, {network.inputs[0].name: ids})[network.outputs[0].name]
    except DeviceError as error:
        if "out of data bounds" not in str(error):
            raise
        raise BundleError(
            f"{bundle.path}: {maker.file} has tokens that the network {maker.network} does not know: {error} Copy the "
            "bundle again, or build it again with vsr-build bundle."
        ) from error
