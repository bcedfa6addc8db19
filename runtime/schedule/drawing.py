"""A schedule as an SVG picture: lanes as rows, frames as colours, events as arrows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from xml.sax.saxutils import escape

from vsr_trt.runtime.schedule.events import Event
from vsr_trt.runtime.schedule.graph import Schedule
from vsr_trt.runtime.schedule.sketch import Box, Sketch, Wait, sketch

# fill and edge, frame after frame; distinct in grey and by the colour-blind, too
_COLOURS = (
    ("#cfe3f7", "#2b6cb0"),
    ("#fde3b8", "#b7791f"),
    ("#cfeedd", "#2f855a"),
    ("#f7d3e3", "#b83280"),
    ("#ddd6f3", "#6b46c1"),
    ("#d9dee4", "#4a5568"),
)
_INK, _FAINT, _REUSE = "#1a202c", "#5a6675", "#c53030"
_FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
_LETTER, _SMALL_LETTER = 7.2, 5.9  # what a letter takes in wide fonts, at 12 and 10 pixels
_BOX, _GAP = 42, 30  # height of a box, and between rows
_TOP, _SIDE = 64, 16
_LINE = 20
_STEP = 8  # between the ends of arrows at one box
# of an event within a frame (False), and from an earlier frame (True)
_STROKES = {
    False: f'fill="none" stroke="{_FAINT}" stroke-width="1.5" marker-end="url(#same)"',
    True: f'fill="none" stroke="{_REUSE}" stroke-width="1.5" stroke-dasharray="6 4" marker-end="url(#earlier)"',
}


def draw(schedule: Schedule, events: Sequence[Event], title: str) -> str:
    """The picture: as many frames as there are slots, and one that takes a slot again.

    Args:
        schedule: what happens to each frame.
        events: between its lanes.
        title: above it.
    """
    return _Picture(schedule, sketch(schedule, events, schedule.slots + 1), title).text()


class _Picture:
    def __init__(self, schedule: Schedule, found: Sketch, title: str) -> None:
        self._schedule, self._found, self._title = schedule, found, title
        self._rows = {lane: _TOP + row * (_BOX + _GAP) for row, lane in enumerate(schedule.lanes)}
        self._left = _SIDE + 16 + max(_LETTER * len(_lane_label(schedule, lane)[0]) for lane in self._rows)
        self._unit = max(
            (max(_LETTER * len(_label(box)), _SMALL_LETTER * len(_caption(box))) + 7) / (box.end - box.start)
            for box in found.boxes
        )
        self._bottom = _TOP + len(self._rows) * (_BOX + _GAP)
        self._width = max(self._left + found.length * self._unit + _SIDE, 760)

    def text(self) -> str:
        """All of it."""
        legend, bottom = self._legend()
        width, height = round(self._width), bottom + _SIDE
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="{_FONT}" role="img">',
            f"<title>{escape(self._title)}</title>",
            f'<rect class="background" width="{width}" height="{height}" fill="#ffffff"/>',
            f"<defs>{_marker('same', _FAINT)}{_marker('earlier', _REUSE)}</defs>",
            _text(_SIDE, 26, self._title, 15, bold=True),
            _text(_SIDE, 44, "Not to scale: every network is drawn as long as any other.", 11, _FAINT),
            *self._lanes(),
            *self._arrows(),  # beneath boxes, so that none crosses a label
            *(self._box(box) for box in self._found.boxes),
            *legend,
            "</svg>",
        ]
        return "\n".join(parts) + "\n"

    def _lanes(self) -> list[str]:
        parts = []
        for lane, top in self._rows.items():
            name, kind = _lane_label(self._schedule, lane)
            middle = top + _BOX / 2
            parts += [
                f'<g class="lane"><line x1="{self._left:.0f}" y1="{middle:.0f}" x2="{self._width - _SIDE:.0f}" '
                f'y2="{middle:.0f}" stroke="#e2e8f0" stroke-width="2"/>',
                _text(_SIDE, middle if kind else middle + 4, name, 12, bold=True),
                *([_text(_SIDE, middle + 14, kind, 10, _FAINT)] if kind else []),
                "</g>",
            ]
        return parts

    def _box(self, box: Box) -> str:
        fill, edge = _COLOURS[box.frame % len(_COLOURS)]
        left, right, top = self._x(box.start), self._x(box.end), self._rows[box.group.lane]
        middle = (left + right) / 2
        told = f"{box.group.name}, frame {box.frame}: {', '.join(box.group.reads) or 'the host'} -> "
        told += ", ".join(box.group.writes) or "the host"
        caption = _caption(box)
        return "".join(
            (
                f'<g class="box"><title>{escape(told)}</title>',
                f'<rect x="{left + 1:.1f}" y="{top}" width="{right - left - 2:.1f}" height="{_BOX}" rx="4" '
                f'fill="{fill}" stroke="{edge}" stroke-width="1.2"/>',
                _text(middle, top + (19 if caption else 26), _label(box), 12, anchor="middle"),
                _text(middle, top + 33, caption, 10, edge, anchor="middle") if caption else "",
                "</g>",
            )
        )

    def _arrows(self) -> list[str]:
        """Several that leave or enter one box do so side by side."""
        ends: Counter[tuple[str, str, float]] = Counter()
        parts = []
        for wait in sorted(self._found.waits, key=lambda wait: (wait.before.end, wait.after.start)):
            out = "out", wait.before.group.lane, wait.before.end
            into = "in", wait.after.group.lane, wait.after.start
            ends.update((out, into))
            x1 = self._x(wait.before.end) - _STEP * ends[out]
            x2 = self._x(wait.after.start) + _STEP * ends[into]
            parts.append(self._arrow(wait, x1, x2))
        return parts

    def _arrow(self, wait: Wait, x1: float, x2: float) -> str:
        top, end = (self._rows[box.group.lane] for box in (wait.before, wait.after))
        down = end > top
        y1, y2 = (top + _BOX, end - 1) if down else (top, end + _BOX + 1)
        bend = (y2 - y1) / 2
        told = f"{wait.after.group.name} of frame {wait.after.frame} waits for {wait.before.group.name} of frame "
        told += str(wait.before.frame)
        return (
            f'<path class="event" d="M{x1:.1f},{y1} C{x1:.1f},{y1 + bend:.1f} {x2:.1f},{y2 - bend:.1f} '
            f'{x2:.1f},{y2}" {_STROKES[wait.before.frame != wait.after.frame]}><title>{escape(told)}</title></path>'
        )

    def _legend(self) -> tuple[list[str], int]:
        """And where it ends."""
        x, y = float(_SIDE), self._bottom + 4
        parts = ['<g class="legend">']
        for frame in range(self._found.frames):
            fill, edge = _COLOURS[frame % len(_COLOURS)]
            label = f"frame {frame}, slot {frame % self._schedule.slots}"
            if x + 30 + _SMALL_LETTER * len(label) > self._width - _SIDE:
                x, y = float(_SIDE), y + _LINE
            parts.append(
                f'<rect x="{x:.0f}" y="{y - 11}" width="16" height="14" rx="3" fill="{fill}" stroke="{edge}"/>'
                + _text(x + 22, y, label, 11)
            )
            x += 30 + _SMALL_LETTER * len(label)
        x, y = float(_SIDE), y + _LINE
        for other, label in enumerate(
            ("waits for a step of the same frame", "waits for an earlier frame's step")
        ):
            parts.append(
                f'<path d="M{x:.0f},{y - 4} h30" {_STROKES[bool(other)]}/>' + _text(x + 42, y, label, 11)
            )
            x += 60 + _SMALL_LETTER * len(label)
        return [*parts, "</g>"], y

    def _x(self, time: float) -> float:
        return self._left + time * self._unit


def _label(box: Box) -> str:
    """The stage; of what is not a network only what is done."""
    step = box.group.steps[0]
    return step.stage if step.action == "network" else box.group.name.split()[0]


def _caption(box: Box) -> str:
    """Below the label; small boxes have none, their colour tells the frame."""
    if box.group.action in ("cut", "blend", "copy"):
        return ""
    runs = len(box.group.steps)
    return f"{f'x {runs}, ' if runs > 1 else ''}frame {box.frame}"


def _lane_label(schedule: Schedule, lane: str) -> tuple[str, str]:
    return lane, "the host" if schedule.lanes[lane].host else ""


def _text(
    x: float, y: float, text: str, size: int, fill: str = _INK, anchor: str = "start", bold: bool = False
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"{weight}>'
        f"{escape(text)}</text>"
    )


def _marker(name: str, colour: str) -> str:
    return (
        f'<marker id="{name}" markerWidth="7" markerHeight="7" refX="6" refY="3.5" orient="auto" '
        f'markerUnits="userSpaceOnUse"><path d="M0,0 L7,3.5 L0,7 z" fill="{colour}"/></marker>'
    )
