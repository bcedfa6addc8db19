"""Spans as a Chrome trace: a JSON file that chrome://tracing and ui.perfetto.dev open."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vsr_trt.runtime.devices.timeline import Span


def chrome(modes: Mapping[str, Sequence[Span]]) -> str:
    """The file's text: a process for each mode, a thread for each lane, time from 0 in each process."""
    events = [
        event for pid, (title, spans) in enumerate(modes.items(), 1) for event in _process(pid, title, spans)
    ]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, allow_nan=False) + "\n"


def _process(pid: int, title: str, spans: Sequence[Span]) -> list[dict[str, Any]]:
    ordered = sorted(spans, key=lambda span: span.start)
    lanes = {lane: tid for tid, lane in enumerate(dict.fromkeys(span.lane for span in ordered), 1)}
    events = [_named("process_name", pid, 0, name=title)]
    for lane, tid in lanes.items():
        events.append(_named("thread_name", pid, tid, name=lane))
        events.append(_named("thread_sort_index", pid, tid, sort_index=tid))
    zero = ordered[0].start if ordered else 0.0
    return events + [_complete(pid, lanes[span.lane], span, zero) for span in ordered]


def _named(kind: str, pid: int, tid: int, **what: Any) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": what}


def _complete(pid: int, tid: int, span: Span, zero: float) -> dict[str, Any]:
    # both ends rounded, so that steps that follow one another never overlap
    start, end = _microseconds(span.start - zero), _microseconds(span.end - zero)
    arguments: dict[str, Any] = {
        "frame": span.frame,
        "slot": span.slot,
        "step": span.step,
        "stage": span.stage,
        "enqueue_us": _microseconds(span.enqueue),
    }
    return {
        "name": span.step,
        "cat": span.action,
        "ph": "X",
        "ts": start,
        "dur": round(max(0.0, end - start), 3),
        "pid": pid,
        "tid": tid,
        "args": arguments,
    }


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)
