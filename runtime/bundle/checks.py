"""What the types of a manifest do not say: paths stay inside, names refer to something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from vsr_trt.runtime.bundle.manifest import PREVIOUS, Kernel, Manifest, Network, Stage, Tensor, Work
from vsr_trt.runtime.bundle.options import Options, options_in
from vsr_trt.runtime.bundle.phase_checks import check_chunks, check_loops, check_phases, counts
from vsr_trt.runtime.bundle.records import MisfitError
from vsr_trt.runtime.bundle.symbols import dimension, factors

_HOST_LANES = ("receive", "deliver")
_SIZES = (None, "n", "f", "s", "lr_h", "lr_w", "h", "w")
"""Sizes that the runtime knows; see `runtime.schedule.build.frame_sizes`."""


def check(manifest: Manifest) -> None:
    """Checks what types do not: paths stay inside, names refer to something."""
    referenced = [graph for network in manifest.networks.values() for graph in network.graphs.values()]
    kernels = [network.kernel for network in manifest.networks.values() if network.kernel is not None]
    referenced += [
        *manifest.kernels,
        *(path for engine in manifest.engines for path in (engine.file, engine.report)),
        *([manifest.calibration.file] if manifest.calibration else []),
        *(path for kernel in kernels for path in (*kernel.launch, *kernel.constants.values())),
        *([manifest.prompt.file] if manifest.prompt else []),
        *([manifest.prompt.tokenizer.file] if manifest.prompt and manifest.prompt.tokenizer else []),
        *_files(manifest),
    ]
    for path in [*manifest.files, *referenced]:
        if not is_inside(path):
            raise MisfitError(f"the path {path!r} leaves the bundle")
    for path in referenced:
        if path not in manifest.files:
            raise MisfitError(f"{path!r} is used but not among the files")
    for name, network in manifest.networks.items():
        _check_network(name, network)
        if network.kernel is not None:
            _check_kernel(name, network, network.kernel)
    for engine in manifest.engines:
        if engine.network not in manifest.networks:
            raise MisfitError(f"the engine {engine.file} is of {engine.network!r}, which is no network")
    _check_tokenizer(manifest)
    _check_numbers(manifest)
    _check_options(manifest)
    if len({stage.name for stage in manifest.stages}) != len(manifest.stages):
        raise MisfitError("two stages have the same name")
    check_phases(manifest)
    _check_order(manifest)
    _check_buffers(manifest)
    check_chunks(manifest)
    check_loops(manifest)


def _files(manifest: Manifest) -> Iterator[str]:
    """The files of inputs; of one for each choice, that of the defaults.

    Raises:
        MisfitError: a file's name has an option in it that there is not, or that has too many values.
    """
    for name, given in manifest.inputs.items():
        if given.source == "file" and given.name:
            for option in options_in(given.name):
                if option not in manifest.options or manifest.options[option].type == "number":
                    raise MisfitError(f"input {name}: {option!r} is no option with choices or whole numbers")
            yield Options().file(manifest, given)


def _check_buffers(manifest: Manifest) -> None:
    """Whether networks agree about the buffers between them, and lanes and sizes are there."""
    tensors: dict[str, tuple[Tensor, str]] = {}
    for stage in manifest.stages:
        if stage.lane in _HOST_LANES:
            raise MisfitError(f"stage {stage.name} is on the lane {stage.lane!r}, which is the host's own")
        network = manifest.networks[stage.network]
        operands = [(tensor, stage.reads[tensor.name]) for tensor in network.inputs]
        operands += [(t, stage.writes[t.name]) for t in network.outputs if t.name in stage.writes]
        for tensor, buffer in operands:
            name = buffer.removesuffix(PREVIOUS)
            for size in tensor.shape:
                if dimension(size)[1] not in _SIZES:
                    raise MisfitError(
                        f"network {stage.network}, tensor {tensor.name}: nobody knows the size {size!r}"
                    )
            known, of = tensors.setdefault(name, (tensor, stage.network))
            if (known.shape, known.dtype) != (tensor.shape, tensor.dtype):
                raise MisfitError(
                    f"the buffer {name!r} is {known.dtype} {list(known.shape)} for {of}, and {tensor.dtype} "
                    f"{list(tensor.shape)} for {stage.network}"
                )


def _check_tokenizer(manifest: Manifest) -> None:
    """Whether what embeds other prompts takes a fixed number of tokens and gives an embedding, which somebody reads."""
    if manifest.prompt is None or manifest.prompt.tokenizer is None:
        return
    name = manifest.prompt.tokenizer.network
    network = manifest.networks.get(name)
    if network is None:
        raise MisfitError(f"the prompt's network is {name!r}, which is no network")
    tensors = [(tensor.dtype, tensor.shape) for side in (network.inputs, network.outputs) for tensor in side]
    if (
        (len(network.inputs), len(network.outputs)) != (1, 1)
        or [(dtype, len(shape)) for dtype, shape in tensors] != [("int64", 1), ("float32", 2)]
        or not all(isinstance(size, int) for _, shape in tensors for size in shape)
    ):
        raise MisfitError(f"the prompt's network {name} has {tensors}; expected int64 (n) to float32 (n,c)")
    if not any(
        given.source == "file" and given.name == manifest.prompt.file for given in manifest.inputs.values()
    ):
        raise MisfitError(f"the prompt's file {manifest.prompt.file} is no input")


def _check_numbers(manifest: Manifest) -> None:
    canvas = manifest.canvas
    windows = {"window": manifest.window} | {f"phases.{n}": w for n, w in manifest.phases.items()}
    for name, value in (
        ("scale", manifest.scale),
        ("latent_scale", manifest.latent_scale),
        ("canvas.multiple", canvas.multiple),
        ("canvas.least", min(canvas.least)),
        *(
            (f"{name}.frames", window.size if window.frames is None else window.frames)
            for name, window in windows.items()
        ),
        *(
            (f"chunks.{name}.frames", c.frames)
            for name, c in manifest.chunks.items()
            if isinstance(c.frames, int)
        ),
        *(
            (f"loops.{name}.steps", loop.steps)
            for name, loop in manifest.loops.items()
            if isinstance(loop.steps, int)
        ),
        *((f"tilings.{name}.side", tiling.side) for name, tiling in manifest.tilings.items()),
        *((f"tilings.{name}.share", tiling.share) for name, tiling in manifest.tilings.items()),
    ):
        if value < 1:
            raise MisfitError(f"{name} is {value}, expected at least 1")
    for name, value, most in (
        *(("canvas.offset", offset, canvas.multiple - 1) for offset in canvas.offset),
        ("canvas.border", canvas.border or 0, 255),
        *((f"{name}.overlap", window.overlap, window.size - 1) for name, window in windows.items()),
        *((f"tilings.{name}.overlap", t.overlap, t.side // 2) for name, t in manifest.tilings.items()),
    ):
        if not 0 <= value <= most:
            raise MisfitError(f"{name} is {value}, expected 0 to {most}")
    if canvas.small == "pad" and canvas.border is None and canvas.centred:
        raise MisfitError("canvas.centred needs a border, which this side adds")


def _check_options(manifest: Manifest) -> None:
    for name, option in manifest.options.items():
        if option.type == "choice":
            fits = option.default in option.choices
        else:
            kind = int if option.type == "integer" else (int, float)
            fits = isinstance(option.default, kind) and not isinstance(option.default, bool)
            fits = fits and (option.least is None or option.default >= option.least)  # type: ignore[operator]
            fits = fits and (option.most is None or option.default <= option.most)  # type: ignore[operator]
        if not fits:
            raise MisfitError(f"option {name}: its default {option.default!r} is none of its values")
    for name, given in manifest.inputs.items():
        if (given.source == "frame") != (given.name is None):
            raise MisfitError(f"input {name}: a file, option or noise needs a name, and the frame has none")
        if given.source == "option" and (
            given.name not in manifest.options or manifest.options[given.name].type == "choice"
        ):
            raise MisfitError(f"input {name}: {given.name!r} is no option with a number")
        if given.source == "noise":
            if not counts(manifest, given.seed, 0):
                raise MisfitError(f"input {name}: {given.seed!r} is no option with a whole number from 0 on")
        elif given.seed is not None:
            raise MisfitError(f"input {name}: noise has a seed, and nothing else")
    if sum(given.source == "frame" for given in manifest.inputs.values()) != 1:
        raise MisfitError("exactly one input is the frame")


def _check_order(manifest: Manifest) -> None:
    """Whether every buffer is written before it is read, loops and clip-long buffers included."""
    written = set(manifest.inputs)
    rows = manifest.rows
    for stage in manifest.stages:
        if stage.loop is not None and stage.loop not in manifest.loops:
            raise MisfitError(f"stage {stage.name} is of the loop {stage.loop!r}, which there is not")
        if stage.tiling is not None and stage.tiling not in manifest.tilings:
            raise MisfitError(f"stage {stage.name} has the tiling {stage.tiling!r}, which there is not")
        _check_stage(stage, manifest, written | {n for n, loop in rows.items() if loop == stage.loop})
        written |= set(stage.writes.values())
    for name, loop in manifest.loops.items():
        body = [stage for stage in manifest.stages if stage.loop == name]
        places = [index for index, stage in enumerate(manifest.stages) if stage.loop == name]
        if not body or places[-1] - places[0] + 1 != len(body):
            raise MisfitError(f"the stages of loop {name} do not stand together")
        made = {buffer for stage in body for buffer in stage.writes.values()}
        read = {buffer for stage in body for buffer in stage.reads.values()}
        if not set(loop.carries.values()) <= made or not set(loop.carries) <= read - made:
            raise MisfitError(f"loop {name} carries what its body does not write, or not read")
    if unknown := sorted(set(manifest.clip) - written):
        raise MisfitError(f"no stage writes {unknown[0]!r}, which is to live as long as the clip")
    if manifest.output not in written:
        raise MisfitError(f"no stage writes the output {manifest.output!r}")


def _check_network(name: str, network: Network) -> None:
    if "native" not in network.graphs:
        raise MisfitError(f"network {name} has no native graph")
    for tensor in (*network.inputs, *network.outputs):
        for size in tensor.shape:
            try:
                _, symbol = dimension(size)
            except ValueError as error:
                raise MisfitError(f"network {name}, tensor {tensor.name}: {error}") from error
            if symbol and symbol not in network.bounds:
                raise MisfitError(f"network {name}: the dimension {symbol!r} has no bounds")
    if network.work is not None:
        _check_work(name, network, network.work)


def _check_work(name: str, network: Network, work: Work) -> None:
    for product in (*work.multiply_adds, *work.activations, *work.integer_bytes):
        try:
            symbols = {symbol for symbol, _ in factors(product)}
        except ValueError as error:
            raise MisfitError(f"network {name}, its work: {error}") from error
        if unknown := sorted(symbols - set(network.bounds)):
            raise MisfitError(f"network {name}, its work: the dimension {unknown[0]!r} has no bounds")


def _check_kernel(name: str, network: Network, kernel: Kernel) -> None:
    """Whether every tensor of the network is an operand, and nothing has two values."""
    tensors = sorted(tensor.name for tensor in (*network.inputs, *network.outputs))
    if sorted(kernel.operands.values()) != tensors:
        raise MisfitError(
            f"the kernel of {name} has the operands {sorted(kernel.operands.values())}, expected {tensors}"
        )
    given = [*kernel.operands, *kernel.constants, *kernel.numbers]
    if twice := [argument for argument in given if given.count(argument) > 1]:
        raise MisfitError(f"the kernel of {name} is given {twice[0]!r} twice")
    if not kernel.launch or not all(kernel.numbers.values()):
        raise MisfitError(f"the kernel of {name} has no launch metadata, or a number without a value")


def _check_stage(stage: Stage, manifest: Manifest, written: set[str]) -> None:
    for name in (stage.network, *stage.variants.values()):
        if name not in manifest.networks:
            raise MisfitError(f"stage {stage.name} runs {name!r}, which is not among the networks")
        network = manifest.networks[name]
        if {tensor.name for tensor in network.inputs} != set(stage.reads):
            raise MisfitError(f"stage {stage.name} does not feed the inputs of {name!r}")
        if not set(stage.writes) <= {tensor.name for tensor in network.outputs}:
            raise MisfitError(f"stage {stage.name} writes what {name!r} does not compute")
        if network.kernel is not None and len(stage.writes) < len(network.outputs):
            raise MisfitError(f"stage {stage.name} has no buffer for all that the kernel of {name!r} writes")
    for buffer in stage.reads.values():
        name = buffer.removesuffix(PREVIOUS)
        lives = buffer.endswith(PREVIOUS) and name in manifest.clip
        if name not in written and not lives:
            raise MisfitError(f"stage {stage.name} reads {buffer!r} before it is written")
    if bool(stage.variants) != (stage.option is not None):
        raise MisfitError(f"stage {stage.name} has variants but no option, or an option but no variants")
    if stage.option is not None:
        option = manifest.options.get(stage.option)
        if option is None or set(option.choices) != set(stage.variants):
            raise MisfitError(f"stage {stage.name}: the choices of {stage.option!r} are not its variants")


def is_inside(path: str) -> bool:
    """True for a relative path, with forward slashes, that cannot leave the bundle."""
    pure = PurePosixPath(path)
    return bool(
        path
        and not pure.is_absolute()
        and ".." not in pure.parts
        and not any(character in path for character in ("\\", ":", "\0"))
    )
