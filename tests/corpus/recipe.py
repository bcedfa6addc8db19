"""How a file of the corpus is made, and what has to become of it: plain data, so that a worker can be sent it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Self

RESTORED, REFUSED, DAMAGED, SURVIVED = "restored", "refused", "damaged", "survived"


@dataclass
class Recipe:
    """One file.

    name: unique, tells what it is. steps: what makes it, see `make.py`. file: the one that is restored.
    expect: "restored"; "refused" (an InputError or OutputError with `words` in it); "damaged" (refused, or kept as a
    partial result that says so); "survived" (anything but a crash or a traceback, for files damaged at random).
    output: suffix of the result, "/" for a folder of pictures. codec, scale: as the product takes them.
    reference: options of ffmpeg in front of the file. stream: the video that players show, as ffmpeg counts videos.
    matrix, siting: of the colours, which ffmpeg is told where the file may leave it open.
    tolerance: mean levels that a frame may differ by from ffmpeg's. slack: seconds that times may differ by next to the
    output's tick. steady: frames a second, where ffmpeg's times are not to be trusted.
    profile: of a picture's colours. notes: words that a note has to have; silent: those none may have.
    picture: what `pictures.write` makes, or {} for what ffmpeg makes.
    """

    name: str
    steps: list[list[str]]
    file: str
    expect: str = RESTORED
    words: str = ""
    output: str = ".mkv"
    codec: str | None = None
    scale: int = 1
    reference: list[str] = field(default_factory=list)
    stream: int = 0
    matrix: str = "auto"
    siting: str = ""
    tolerance: float = 1.0
    slack: float = 0.0
    steady: str = ""
    profile: str = ""
    notes: str = ""
    silent: str = ""
    picture: dict[str, Any] = field(default_factory=dict)

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, line: str) -> Self:
        return cls(**json.loads(line))
