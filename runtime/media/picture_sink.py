"""Pictures as output: a folder of PNG files, or one PNG file. Lossless."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

from vsr_trt.runtime.errors import InputError
from vsr_trt.runtime.media.png import encode_png
from vsr_trt.runtime.media.sink import Sink
from vsr_trt.runtime.media.source import Frame, Rgb, Source
from vsr_trt.runtime.media.staging import Staging, write_failure


class PictureSink(Sink):
    """Writes 8-bit RGB PNG files: named as the input's pictures, or frame_000000.png and on for videos.

    `output` is a folder, or with `single` the one file that is written. InputError if two pictures of the
    source would get the same name. `write` of a second frame to a single file raises InputError and gives
    the output up, because how many frames a video has is known for certain only at its end.
    """

    def __init__(
        self, output: Path, source: Source, width: int, height: int, *, overwrite: bool, single: bool = False
    ) -> None:
        if source.info.kind == "images" and not single:
            _refuse_clashes(source.files)
        super().__init__(Staging(output, overwrite=overwrite, folder=not single), width, height)
        self._single = single
        if source.info.kind == "video":
            self.add_note("Pictures hold no sound, subtitles, chapters and times; these are not copied.")

    def _write(self, rgb: Rgb, frame: Frame) -> None:
        path = self._staging.temporary
        if self._single and self._written:
            self.abort()
            raise more_than_one_frame(self._staging.final)
        if not self._single:
            path /= f"{Path(frame.name).stem}.png" if frame.name else f"frame_{frame.index:06d}.png"
        try:
            path.write_bytes(encode_png(rgb))
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink()  # what there is of it
            raise write_failure(error, self._staging.final, self._staging.temporary) from error

    def _finish(self, *, partial: bool) -> None:
        pass  # every picture is on disk already

    def _drop(self) -> None:
        pass


def more_than_one_frame(output: Path) -> InputError:
    """The refusal to write more frames than one to the file `output`."""
    return InputError(
        f"{output} holds one picture, and the input has more frames; restore one with --frames 1, or give a "
        f"folder: {output.with_suffix('')}/"
    )


def _refuse_clashes(files: list[Path]) -> None:
    """InputError if two pictures differ in their suffix only."""
    name, count = Counter(file.stem for file in files).most_common(1)[0]
    if count > 1:
        clash = " and ".join(file.name for file in files if file.stem == name)
        raise InputError(f"{clash} would both become {name}.png; rename one of them.")
