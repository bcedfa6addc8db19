"""The command lines as a user types them, on the small golden model."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import processes
from helpers.golden import GOLDEN, psnr, read_png
from helpers.media_clips import STEADY, Clip, packets, times
from PIL import Image

from vsr_trt import build
from vsr_trt.runtime.cli import main as cli
from vsr_trt.runtime.media.resample import resize_bicubic

ROOT = Path(__file__).parents[1]
_RESTORE_OPTIONS = (
    "--bundle --tile --overlap --vae-tile --vae-statistics --memory --set --start --frames --crf --codec --overwrite "
    "--json"
)
SIZE = (48, 40)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four frames at uneven times, with sound."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    tick = Fraction(1, 600)
    Clip(pts=(0, 20, 50, 74), time_base=tick, size=SIZE, audio=1).write(path)
    return path


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_restore_keeps_times_sound_and_size(clip: Path, golden_bundle: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out.mp4"
    assert run("restore", clip, "-o", output, "--bundle", golden_bundle, "--json") == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert (report["frames"], report["width"], report["height"]) == (4, 4 * SIZE[0], 4 * SIZE[1])
    assert {"read", "vae_encoder", "spynet", "warp", "cfr", "unet", "vae_decoder", "write"} <= set(
        report["stages"]
    )
    assert report["output"] == str(output)
    assert times(output) == times(clip)
    assert [s.data for s in packets(output, "audio")] == [s.data for s in packets(clip, "audio")]
    assert "unet" in printed.err  # the table, next to the JSON
    assert list(tmp_path.iterdir()) == [output]


def test_folder_of_pictures(golden_bundle: Path, golden_results: list, tmp_path: Path) -> None:
    output = tmp_path / "pictures"
    assert run("restore", GOLDEN / "in", "-o", output, "--bundle", golden_bundle, "--frames", 2) == 0
    assert sorted(path.name for path in output.iterdir()) == ["frame_0000.png", "frame_0001.png"]
    assert psnr(read_png(output / "frame_0001.png"), golden_results[1]) >= 49


@pytest.mark.thorough
def test_options_reach_the_networks(golden_bundle: Path, tmp_path: Path) -> None:
    source = GOLDEN / "in" / "frame_0000.png"
    results = []
    tiles = ("--vae-statistics", "tile", "--vae-tile", 40)
    ways = {"a": (), "b": ("--color", "wavelet"), "c": tiles, "d": ("--vae-tile", 40)}
    for name, options in ways.items():
        output = tmp_path / f"{name}.png"
        assert run("restore", source, "-o", output, "--bundle", golden_bundle, *options) == 0
        results.append(read_png(output))
    assert not np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
    assert psnr(results[3], results[0]) >= 60, "strips are the same picture"
    assert psnr(results[2], results[0]) < 45, "tiles are not"


@pytest.mark.thorough
def test_it_says_how_pictures_go_through_the_vae_and_why(
    clip: Path, golden_bundle: Path, tmp_path: Path, capsys
) -> None:
    common = ("--bundle", golden_bundle, "--frames", 1, "--json")
    for options, form, words in (
        ((), "whole", "the VAE works whole: 64x80 latents are no more than 96x96"),
        (("--vae-tile", 64), "strips", "the VAE works whole, in strips: 64x80 latents are more than 64x64"),
    ):
        output = tmp_path / f"{form}.mp4"
        assert run("restore", clip, "-o", output, *common, *options) == 0
        printed = capsys.readouterr()
        report = json.loads(printed.out)
        assert report["vae"]["form"] == form
        assert report["vae"]["estimated_memory"] > 100_000_000
        assert words in " ".join(printed.err.split())
    refused = tmp_path / "refused.mp4"
    assert run("restore", clip, "-o", refused, *common, "--memory", "100MB") == 7
    assert "--memory allows 100 MB" in json.loads(capsys.readouterr().out)["error"]
    assert not refused.exists()
    assert run("restore", clip, "-o", refused, *common, "--memory", "lots") == 2
    assert "expected a number and MB" in json.loads(capsys.readouterr().out)["error"]
    assert run("doctor", "--bundle", golden_bundle, "--json") == 0
    found = json.loads(capsys.readouterr().out)["vae"]
    assert (found["512x512"]["form"], found["1920x1080"]["form"]) == ("whole", "strips")


@pytest.mark.thorough
def test_start_and_frames(clip: Path, golden_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "part.mkv"
    options = ("--start", 0.03, "--frames", 2, "--codec", "ffv1", "--check", "--threads", 1)
    assert run("restore", clip, "-o", output, "--bundle", golden_bundle, *options) == 0
    with av.open(str(output)) as container:
        assert container.streams.video[0].codec_context.name == "ffv1"
        assert len(list(container.decode(video=0))) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("missing.mp4", "-o", "{tmp}/o.mp4"), 2, "does not exist"),
        (("{clip}", "-o", "{tmp}/none/o.mp4"), 3, "mkdir"),
        (("{clip}", "-o", "{taken}"), 3, "--overwrite"),
        (("{clip}", "-o", "{tmp}/o.xyz"), 2, ".mp4"),
        (("{clip}", "-o", "{tmp}/o.mp4", "--tile", "50"), 2, "--tile latent=50"),
        (("{clip}", "-o", "{tmp}/o.mp4", "--threads", "0"), 2, "--threads is 0"),
        (("{clip}", "-o", "{tmp}/o.mp4", "--bundle", "{tmp}"), 4, "is not a bundle"),
        (("{clip}", "-o", "{tmp}/o.mp4", "--start", "99"), 2, "start"),
        (("{text}", "-o", "{tmp}/o.mp4"), 2, "text.mp4"),
    ],
)
def test_refusals_leave_everything_as_it_was(
    clip: Path, golden_bundle: Path, tmp_path: Path, capsys, arguments: tuple, code: int, message: str
) -> None:
    taken, text = tmp_path / "taken.mp4", tmp_path / "text.mp4"
    taken.write_bytes(b"precious")
    text.write_text("no video")
    names = {"clip": clip, "tmp": tmp_path, "taken": taken, "text": text}
    filled = [argument.format(**names) for argument in arguments]
    bundle = () if "--bundle" in filled else ("--bundle", golden_bundle)
    assert run("restore", *filled, *bundle) == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken.mp4", "text.mp4"]
    assert taken.read_bytes() == b"precious"


def test_refusals_are_machine_readable_too(golden_bundle: Path, tmp_path: Path, capsys) -> None:
    assert run("restore", "missing.mp4", "-o", tmp_path / "o.mp4", "--bundle", golden_bundle, "--json") == 2
    refusal = json.loads(capsys.readouterr().out)
    assert refusal["kind"] == "InputError"
    assert refusal["exit_code"] == 2


@pytest.mark.thorough
def test_truncated_input_keeps_what_was_readable(golden_bundle: Path, tmp_path: Path, capsys) -> None:
    whole = tmp_path / "whole.mkv"
    Clip(pts=STEADY[:5], size=SIZE).write(whole)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    whole.unlink()
    output = tmp_path / "out.mkv"
    assert run("restore", cut, "-o", output, "--bundle", golden_bundle) == 8
    message = " ".join(capsys.readouterr().err.split())
    assert "damaged" in message
    assert "out.partial.mkv" in message
    assert not output.exists()
    with av.open(str(tmp_path / "out.partial.mkv")) as container:
        assert len(list(container.decode(video=0))) >= 1


@contextlib.contextmanager
def restoring(clip: Path, bundle: Path, output: Path) -> Iterator[subprocess.Popen[str]]:
    """A restoration in a process of its own, which is with the networks."""
    command = [sys.executable, "-m", "vsr_trt.runtime", "restore", clip, "-o", output, "--bundle", bundle]
    with processes.started(command, cwd=ROOT) as process:
        processes.said(process, "the VAE works")
        assert list(output.parent.iterdir()), "its hidden file is there"
        yield process


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.thorough)])
def test_an_interrupted_run_leaves_nothing(
    golden_bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    source, target = tmp_path / "long.mkv", tmp_path / "target"
    Clip(pts=tuple(range(0, 4000, 20)), time_base=Fraction(1, 500), size=SIZE).write(source)
    target.mkdir()
    with restoring(source, golden_bundle, target / "out.mp4") as process:
        process.send_signal(number)
        _, message = process.communicate()
    assert process.returncode == 130, message
    assert "interrupted" in message
    assert list(target.iterdir()) == []


@pytest.mark.thorough
@pytest.mark.parametrize(("output", "why"), [("out.mp4", "have times of their own"), ("out", "is pictures")])
def test_a_frame_rate_that_is_not_used_is_noted_once(
    clip: Path, golden_bundle: Path, tmp_path: Path, capsys, output: str, why: str
) -> None:
    if output == "out":
        Image.new("RGB", SIZE).save(tmp_path / "in.png")
        clip = tmp_path / "in.png"
    arguments = ["-o", tmp_path / output, "--bundle", golden_bundle, "--fps", "30000/1001", "--frames", 1]
    assert run("restore", clip, *arguments) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("is not used") == 1
    assert why in said


def test_a_folder_is_not_written_to_standard_output(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("bundle --sd a --checkpoint b --out -", "demo --out -", "verify a --report -"):
        with pytest.raises(SystemExit) as stopped:
            build.main(command.split())
        assert stopped.value.code == 2
        assert "standard output (-)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_no_half_output(golden_bundle: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "long.mkv", tmp_path / "target"
    Clip(pts=tuple(range(0, 4000, 20)), time_base=Fraction(1, 500), size=SIZE).write(source)
    target.mkdir()
    with restoring(source, golden_bundle, target / "out.mp4") as process:
        process.kill()
        process.wait()
    assert not (target / "out.mp4").exists()
    assert all(path.name.startswith(".") for path in target.iterdir())


@pytest.mark.thorough
def test_compare(golden_bundle: Path, tmp_path: Path, golden_frames: list) -> None:
    restored, picture = tmp_path / "restored", tmp_path / "pair.png"
    assert run("restore", GOLDEN / "in", "-o", restored, "--bundle", golden_bundle, "--frames", 2) == 0
    assert run("compare", GOLDEN / "in", restored, "-o", picture, "--frame", 1) == 0
    pair = read_png(picture)
    assert np.array_equal(pair[:, :512], resize_bicubic(golden_frames[1], 512, 512))
    assert np.array_equal(pair[:, 512:], read_png(restored / "frame_0001.png"))
    assert run("compare", GOLDEN / "in", restored, "-o", picture) == 3
    assert run("compare", GOLDEN / "in", restored, "-o", picture, "--overwrite", "--crop", 64) == 0
    assert read_png(picture).shape == (64, 128, 3)
    assert run("compare", GOLDEN / "in", restored, "-o", tmp_path / "x.png", "--frame", 9) == 2
    assert run("compare", restored, GOLDEN / "in", "-o", tmp_path / "x.png") == 2


def test_doctor(golden_bundle: Path, tmp_path: Path, capsys) -> None:
    assert run("doctor", "--bundle", golden_bundle, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["backend"] == "onnxruntime-cpu"
    assert found["bundle"]["networks"]["unet"]["forms"] == ["cpu", "native"]
    assert found["packages"]["onnxruntime"]
    assert run("doctor", "--bundle", golden_bundle) == 0
    assert "everything is in order" in capsys.readouterr().out
    broken = tmp_path / "broken"
    shutil.copytree(golden_bundle, broken)
    data = broken / "onnx" / "unet.onnx.data"
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)
    assert run("doctor", "--bundle", broken) == 1
    assert "onnx/unet.onnx.data was changed" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", [(), ("restore",), ("compare",), ("doctor",), ("schema",)])
def test_runtime_help(command: tuple, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(*command, "--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    if command == ("restore",):
        for option in _RESTORE_OPTIONS.split():
            assert option in text


def test_build_help(capsys) -> None:
    with pytest.raises(SystemExit):
        build.main(["bundle", "--help"])
    text = capsys.readouterr().out
    for (
        option
    ) in "--sd --checkpoint --out --stage --adapter --prompt --top-k --precision --overwrite --json".split():
        assert option in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--adapter", "default_encoder_quality"), 2, "expected NAME=W"),
        (("--adapter", "default_encoder_quality=much"), 2, "expected NAME=W"),
        (("--adapter", "default_encoder_quality=nan"), 2, "expected NAME=W"),
        (("--adapter", "nobody=1"), 2, "no adapter 'nobody'"),
        (("--top-k", "0"), 2, "--top-k is 0"),
        (("--sd", "{tmp}"), 5, "config.json"),
        (("--checkpoint", "{tmp}/missing.pkl"), 5, "does not exist"),
        (("--out", "{tmp}/a/b"), 3, "mkdir -p"),
        (("--out", "{tmp}"), 3, "--overwrite"),
        (("--out", "{tmp}", "--overwrite"), 3, "is no bundle"),
    ],
)
def test_build_refusals(tmp_path: Path, capsys, arguments: tuple, code: int, message: str) -> None:
    (tmp_path / "precious").write_text("x")
    defaults = {"--sd": GOLDEN / "sd", "--checkpoint": GOLDEN / "model.pkl", "--out": tmp_path / "bundle"}
    filled = [argument.format(tmp=tmp_path) for argument in arguments]
    rest = [str(part) for name, value in defaults.items() if name not in filled for part in (name, value)]
    assert build.main(["bundle", *filled, *rest]) == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.thorough
def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    options = ["--sd", GOLDEN / "sd", "--checkpoint", GOLDEN / "model.pkl", "--out", tmp_path / "bundle"]
    command = [sys.executable, ROOT / "build.py", "bundle", *options]
    with processes.started(command) as process:
        processes.until(lambda: list(tmp_path.iterdir()), process)  # the hidden folder
        process.send_signal(signal.SIGINT)
        _, message = process.communicate()
    assert process.returncode == 130, message
    assert list(tmp_path.iterdir()) == []
