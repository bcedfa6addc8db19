"""A plan for the person at the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsr_trt.runtime.plan.plan import Plan
from vsr_trt.runtime.schedule.events import Event, slot_reuse
from vsr_trt.runtime.schedule.folding import fold
from vsr_trt.runtime.schedule.graph import Schedule
from vsr_trt.runtime.schedule.memory import amount


def show(console: Console, plan: Plan, available: int | None) -> None:
    """Steps, events, memory.

    Args:
        console: to print on.
        plan: to show.
        available: bytes of device memory; None where nobody knows.
    """
    for phase in plan.phases or (plan,):
        _show(console, phase, available)
    if plan.phases:
        console.print(
            f"between phases the host keeps {amount(plan.kept)} of the clip; [bold]{plan.part.phase}[/] needs most "
            f"memory of the device, {amount(plan.memory.device)}",
            highlight=False,
        )


def _show(console: Console, plan: Plan, available: int | None) -> None:
    lanes = ", ".join(
        f"{lane.name}{' (the host)' if lane.host else ''}" for lane in plan.schedule.lanes.values()
    )
    sides = [f"{name} {side}" for name, side in plan.options.tiles.items() if plan.cuts(name)]
    tiles = f"tiles: {', '.join(sides) or 'none'}; the VAE {words_of(plan)}"
    if plan.part.phase is not None:
        frames = plan.part.frames
        console.print(
            f"[bold]phase {escape(plan.part.phase)}[/], windows of {frames} frame{'' if frames == 1 else 's'}",
            highlight=False,
        )
    console.print(
        f"[bold]{plan.size}, {slots(plan.request.slots)}[/], for {plan.request.target or 'the CPU'}, {tiles}\n"
        f"lanes: {escape(lanes)}",
        highlight=False,
    )
    _titled(console, "steps, in order", _steps(plan.schedule))
    _titled(console, f"events: these {len(plan.events)} are enough, and proven to be", _waits(plan))
    _titled(console, "memory", _memory(plan))
    for network, count in plan.batches.items():
        if count > 1 and plan.batch_bytes(network):
            console.print(
                f"{escape(network)} takes {count} tiles at once, which is about {amount(plan.batch_bytes(network))} of "
                f"its {amount(plan.needs.scratch[network])} of scratch; engines with less: vsr-build engines --batch 1",
                highlight=False,
                soft_wrap=True,
            )
    if plan.unknown is not None:
        console.print(
            f"[yellow]note:[/] scratch and weights are not in this sum: {escape(plan.unknown)}",
            highlight=False,
            soft_wrap=True,
        )
    if plan.form.memory is not None:
        console.print(
            f"a process that restores this takes about {amount(plan.form.memory)} of memory (estimated)",
            highlight=False,
        )
    if available is not None and plan.request.target is not None:
        fits = plan.largest_slots(available)
        most = "" if plan.unknown is None else "at most "
        console.print(f"{most}{slots(fits)} would fit into {amount(available)}", highlight=False)


def words_of(plan: Plan) -> str:
    """How pictures go through the VAE, in words."""
    exact = [side for name, side in plan.options.tiles.items() if plan.tilings[name].exact]
    side = exact[0] if exact else 0
    names = {
        "whole": "whole",
        "strips": "whole, in strips",
        "tiles": f"in tiles of {side} with statistics of their own",
    }
    return f"{names[plan.form.name]} ({plan.form.why})"


def slots(count: int) -> str:
    """In words."""
    return f"{count} slot{'' if count == 1 else 's'}"


def _steps(schedule: Schedule) -> Table:
    table = _table()
    for column in ("step", "lane", "action"):
        table.add_column(column, no_wrap=True)
    table.add_column("reads -> writes", overflow="fold")
    for group in fold(schedule):
        step = group.steps[0]
        action = group.action if len(group.steps) == 1 else f"{group.action} x {len(group.steps)}"
        buffers = " -> ".join(", ".join(names) or "the host" for names in (group.reads, group.writes))
        if step.first:
            buffers += " (first frame)"
        table.add_row(*map(escape, (group.name, group.lane, action, buffers)))
    return table


def _waits(plan: Plan) -> Table:
    table = _table()
    table.add_column("a step waits for another")
    table.add_column("because of", overflow="fold")
    for event in sorted(plan.events, key=lambda event: plan.schedule.index[event.after]):
        table.add_row(escape(words(event)), escape(reason(plan.schedule, event)))
    return table


def words(event: Event) -> str:
    """Such as `unet waits for encoder of the same frame`."""
    which = {0: "the same frame", 1: "the frame before"}.get(event.frames, f"the frame {event.frames} before")
    return f"{event.after} waits for {event.before} of {which}"


def reason(schedule: Schedule, event: Event) -> str:
    """The memory that both steps touch."""
    if event == slot_reuse(schedule):
        return "the slot"
    touched = [{name for name, _ in schedule.step(step).accesses()} for step in (event.before, event.after)]
    return ", ".join(sorted(touched[0] & touched[1]))


def _memory(plan: Plan) -> Table:
    found, table = plan.memory, _table()
    table.add_column("")
    for column in ("each", "copies", "bytes"):
        table.add_column(column, justify="right")

    def row(name: str, size: int, copies: int = 1) -> None:
        table.add_row(
            escape(name),
            amount(size) if copies > 1 else "",
            str(copies) if copies > 1 else "",
            amount(size * copies),
        )

    once = [buffer.name for buffer in plan.schedule.buffers.values() if buffer.kind in ("state", "constant")]
    row("buffers of a slot", found.slot, found.slots)
    row(f"shared: {', '.join(once)}", found.shared)
    if plan.engines:
        for name, size in found.scratch.items():
            row(name, size)
        for name, size in found.weights.items():
            row(f"weights of {name}", size)
    else:
        table.add_row("scratch and weights", "", "", "unknown")
    table.add_section()
    least = "" if plan.unknown is None else ", at least"
    table.add_row(f"[bold]the device, in all{least}", "", "", f"[bold]{amount(found.device)}")
    row("pinned memory of the host", found.pinned // found.slots, found.slots)
    return table


def _titled(console: Console, title: str, table: Table) -> None:
    console.print(f"\n[italic]{title}", highlight=False)
    console.print(table)


def _table() -> Table:
    """Plain, so that a row is one line on a terminal of 80 columns."""
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
