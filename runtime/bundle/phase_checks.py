"""Whether a manifest's phases and chunks can be: what passes between phases has frames, and stages stand in order."""

from __future__ import annotations

from collections.abc import Mapping

from vsr_trt.runtime.bundle.manifest import PREVIOUS, ROW, Manifest, Stage
from vsr_trt.runtime.bundle.records import MisfitError
from vsr_trt.runtime.bundle.symbols import Shape


def counts(manifest: Manifest, name: str | None, least: int) -> bool:
    """Whether there is such an option, and its values are whole numbers from `least` on."""
    option = manifest.options.get(name or "")
    return (
        option is not None and option.type == "integer" and option.least is not None and option.least >= least
    )


def check_phases(manifest: Manifest) -> None:
    """Whether phases are those of the stages, in order, and what passes between them can.

    Raises:
        MisfitError: naming what cannot be.
    """
    names = list(dict.fromkeys(stage.phase for stage in manifest.stages if stage.phase is not None))
    if names != list(manifest.phases) or any(
        (stage.phase is None) == bool(names) for stage in manifest.stages
    ):
        raise MisfitError(
            f"the stages are of the phases {names}; expected {list(manifest.phases)}, and each stage in one"
        )
    in_order = [stage.phase for name in names for stage in manifest.stages if stage.phase == name]
    if names and in_order != [stage.phase for stage in manifest.stages]:
        raise MisfitError("the stages of a phase do not stand together")
    for name, window in {"window": manifest.window, **manifest.phases}.items():
        if window.last == "short" and window.overlap:
            raise MisfitError(f"{name}: windows that overlap all have the same number of frames")
    first = next(iter(manifest.phases.values()), manifest.window)
    if first.frames is None or first.last == "short":
        raise MisfitError("frames come in windows that all have the same number of them")
    _check_loops(manifest)
    made: dict[str, str | None] = {}
    for stage in manifest.stages:
        _check_reads(manifest, stage, made)
        made |= dict.fromkeys(stage.writes.values(), stage.phase)


def check_chunks(manifest: Manifest) -> None:
    """Whether chunks have frames, and stages that are cut into them write some.

    Raises:
        MisfitError: naming what cannot be.
    """
    for name, chunks in manifest.chunks.items():
        if not 0 <= chunks.overlap < 1 or chunks.stretch < 1:
            raise MisfitError(
                f"chunks {name}: expected an overlap from 0 to below 1, and a stretch of 1 or more"
            )
        if isinstance(chunks.frames, str) and not counts(manifest, chunks.frames, 1):
            raise MisfitError(f"chunks {name}: {chunks.frames!r} is no option with a whole number from 1 on")
    for stage in manifest.stages:
        if stage.chunks is None:
            continue
        if stage.chunks not in manifest.chunks:
            raise MisfitError(f"stage {stage.name} has the chunks {stage.chunks!r}, which there are not")
        outputs = manifest.networks[stage.network].outputs
        if any(tensor.shape.count("f") != 1 for tensor in outputs if tensor.name in stage.writes):
            raise MisfitError(f"stage {stage.name} has chunks, and a result without one axis 'f'")


def check_loops(manifest: Manifest) -> None:
    """Whether loops know how long they are, and what has a row for each step has rows.

    Raises:
        MisfitError: naming what cannot be.
    """
    shapes: dict[str, Shape] = {}
    counted = False
    for stage in manifest.stages:
        network = manifest.networks[stage.network]
        shapes |= {stage.reads[tensor.name]: tensor.shape for tensor in network.inputs}
        shapes |= {stage.writes[t.name]: t.shape for t in network.outputs if t.name in stage.writes}
        counted |= any("s" in shape for shape in shapes.values())
    if counted and len(manifest.loops) != 1:
        raise MisfitError(f"a size is 's', the steps of a loop, and there are {len(manifest.loops)} loops")
    for name, loop in manifest.loops.items():
        if isinstance(loop.steps, str) and not counts(manifest, loop.steps, 1):
            raise MisfitError(f"loop {name}: {loop.steps!r} is no option with a whole number from 1 on")
        for table in loop.rows:
            _check_rows(manifest, name, table, shapes)


def _check_rows(manifest: Manifest, loop: str, table: str, shapes: Mapping[str, Shape]) -> None:
    given, row = manifest.inputs.get(table), shapes.get(f"{table}{ROW}")
    if given is not None:
        if given.source not in ("file", "noise"):
            raise MisfitError(f"loop {loop}: {table!r} is no constant from a file")
        if given.source == "noise" and row is not None and row.count("f") != 1:
            raise MisfitError(f"loop {loop}: the noise {table!r} has no axis 'f'")
        return
    places = [index for index, stage in enumerate(manifest.stages) if table in stage.writes.values()]
    body = [index for index, stage in enumerate(manifest.stages) if stage.loop == loop]
    if (
        not places
        or places[0] >= body[0]
        or manifest.stages[places[0]].phase != manifest.stages[body[0]].phase
    ):
        raise MisfitError(f"loop {loop}: no file holds {table!r}, and no stage before the loop writes it")
    if row is not None and shapes[table] != ("s", *row):
        raise MisfitError(
            f"loop {loop}: {table!r} has the shape {list(shapes[table])}, expected ['s', *{list(row)}]"
        )


def _check_loops(manifest: Manifest) -> None:
    phases: dict[str, str | None] = {}
    for stage in manifest.stages:
        if stage.loop is not None and phases.setdefault(stage.loop, stage.phase) != stage.phase:
            raise MisfitError(f"loop {stage.loop} goes over the end of a phase")


def _check_reads(manifest: Manifest, stage: Stage, made: dict[str, str | None]) -> None:
    """Whether a stage may read what it does: of the frame, and of other phases.

    Args:
        manifest: of the bundle.
        stage: one of its stages.
        made: buffer -> phase that writes it.
    """
    network = manifest.networks.get(stage.network)
    shapes = {tensor.name: tensor.shape for tensor in network.inputs} if network is not None else {}
    first = next(iter(manifest.phases), None)
    for operand, buffer in stage.reads.items():
        name = buffer.removesuffix(PREVIOUS)
        given = manifest.inputs.get(name)
        if given is not None and given.source == "frame":
            if stage.phase != first:
                raise MisfitError(f"stage {stage.name} reads the frame, which only the first phase does")
        elif given is not None and given.source == "noise":
            if shapes.get(operand, ()).count("f") != 1:
                raise MisfitError(f"stage {stage.name}: the noise {buffer!r} has no axis 'f'")
        elif made.get(name, stage.phase) != stage.phase and (
            name != buffer or shapes.get(operand, ()).count("f") != 1
        ):
            raise MisfitError(
                f"stage {stage.name} reads {buffer!r} of another phase; expected a buffer with one axis 'f'"
            )
