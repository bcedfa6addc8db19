"""STAR's whole schedule: proven at its published size, and the golden model in hostile orders, failing and killed."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers import processes, star
from helpers.golden import read_png
from helpers.once import shared
from torch import nn

from vsr_trt.engines.accuracy.recording import HalfNetworks
from vsr_trt.engines.tensorrt import shapes
from vsr_trt.engines.tensorrt.builder import BuildOrder, compile_network
from vsr_trt.engines.tensorrt.library import load
from vsr_trt.engines.tensorrt.shapes import Layout
from vsr_trt.export.families.star.blocks import Batch
from vsr_trt.export.families.star.shapes import CHUNK, bounds
from vsr_trt.export.families.star.sizes import TOKENS
from vsr_trt.export.families.star.transformers import SpatialTransformer
from vsr_trt.export.network import Input, NetworkSpec, Output, export
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.bundle.manifest import Manifest, Profile
from vsr_trt.runtime.bundle.options import Options
from vsr_trt.runtime.devices.simulated import SimulatedDevice, any_move, newest_first
from vsr_trt.runtime.errors import DeviceError, FrameError
from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks
from vsr_trt.runtime.plan import cost
from vsr_trt.runtime.restore import restorer as restorer_module
from vsr_trt.runtime.restore.restorer import Restorer
from vsr_trt.runtime.schedule.build import build
from vsr_trt.runtime.schedule.events import derive, hazards
from vsr_trt.runtime.schedule.parts import parts

STEPS, WINDOWS = 14, 4
CLIP = 80  # frames: [0,32) [16,48) [32,64) [48,80)


@pytest.fixture(scope="module")
def published() -> Manifest:
    """The manifest of the published size, without files."""
    (found,) = [manifest for manifest in cost.published() if manifest.family == "star"]
    return found


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The golden model's. Read it only."""
    return Bundle.open(shared(tmp_path_factory, "star-fp32", lambda out: star.build_bundle(out, "fp32")))


@pytest.fixture
def clip() -> list[np.ndarray]:
    """5 frames of 44x32."""
    return [read_png(path) for path in sorted((star.GOLDEN / "in").glob("*.png"))]


def test_fourteen_steps_of_four_windows_have_no_race(published: Manifest) -> None:
    """720p. Every event is needed, and they are enough."""
    for part in parts(published, CLIP):
        schedule = build(published, 180, 320, Options(), 1, part=part)
        events = derive(schedule)
        assert hazards(schedule, events) == []
        for missing in events:
            assert hazards(schedule, [event for event in events if event != missing]), missing
        if part.phase == "sample":
            runs = [step.stage for step in schedule.steps if step.action == "network"]
            assert runs.count("denoiser") == runs.count("guide") == STEPS * WINDOWS
            assert runs.count("update") == STEPS
            assert runs.count("time") == runs.count("text") == runs.count("start") == 1
            kept = sum(buffer.bytes for buffer in schedule.buffers.values() if buffer.kind == "slot")
            latents = 4 * 90 * 160 * 4 * CLIP
            assert kept < 20 * latents, "11 of a clip, 10 of a window; none more for each step"


@pytest.mark.parametrize(("window", "frames"), [(16, (1, 16, 20)), (32, (1, 32, 40)), (2, (1, 2, 2))])
def test_engines_of_the_denoiser_are_for_as_many_frames_as_are_asked_for(
    published: Manifest, window: int, frames: shapes.Range
) -> None:
    size = shapes.parse_size("1280x720", published)
    layout = Layout(Options({"window": window}))
    [(ranges, profile)] = shapes.profiles(published, "denoiser", [size], layout)
    assert ranges["f"] == frames
    assert profile["xt"].max == (1, 4, frames[2], 90, 160)
    [(ranges, _)] = shapes.profiles(published, "time", [size], layout)
    assert ranges["s"] == (1, STEPS, 100)


class Transformer(nn.Module):
    """A spatial transformer of two heads, in slices, for both passes, which come as one or two; FP32 at its ends."""

    def __init__(self, clips: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.clips = clips
        self.layer = SpatialTransformer(128, 64, slices=4)

    def forward(self, x: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        frames = x[0].transpose(0, 1)
        batch = Batch(self.clips, frames.shape[0])
        y = self.layer(torch.cat([frames, frames / 2][: self.clips]), batch, key, value)
        return y.reshape(2, -1, *y.shape[1:]).transpose(1, 2)


@pytest.mark.parametrize("apart", [False, True])
def test_a_transformer_of_several_heads_compiles(tmp_path: Path, apart: bool) -> None:
    """TensorRT-RTX 1.7.1 crashes where attentions of several heads share keys, as slices of queries do, or queries."""
    picture, text = (1, 128, "f", "h", "w"), (2, TOKENS, 128)

    def dummies(sizes: dict[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        shape = (1, 128, sizes["f"], sizes["h"], sizes["w"])
        return {
            "x": torch.randn(shape, generator=generator),
            "key": torch.randn(text, generator=generator),
            "value": torch.randn(text, generator=generator),
        }

    spec = NetworkSpec(
        name="transformer",
        module=Transformer(2 if apart else 1).eval(),
        inputs=(
            Input("x", torch.float32, picture),
            Input("key", torch.float32, text),
            Input("value", torch.float32, text),
        ),
        outputs=(Output("y", torch.float32, (2, *picture[1:])),),
        bounds=bounds("h", "w", frames=CHUNK),
        dummy_inputs=dummies,
        traced={"f": 6, "h": 26, "w": 32},
        checked=({"f": 3, "h": 18, "w": 24},),
    )
    export(spec, tmp_path, "fp16")
    graph = tmp_path / "transformer.onnx"
    attentions = [node for node in onnx.load(graph).graph.node if node.op_type == "Attention"]
    for operand in (0, 1):  # queries and keys
        assert len({node.input[operand] for node in attentions}) == len(attentions) == (4 if apart else 2)
    library = pytest.importorskip("tensorrt_rtx") and load("tensorrt_rtx")
    shapes_of = {"x": [(1, 128, f, 90, 160) for f in (1, 16, 20)], "key": [text] * 3, "value": [text] * 3}
    order = BuildOrder(
        network="transformer",
        graph=graph,
        capabilities=("sm_89",),
        profiles={name: Profile(*each) for name, each in shapes_of.items()},
        attentions=tuple(node.name for node in attentions),
    )
    facts = compile_network(library, order, tmp_path / "transformer.engine")
    assert facts.fused == len(attentions)
    tokens = 2 * 20 * 90 * 160 * 128 * 2  # of both passes, in bytes
    assert facts.activations is not None
    assert facts.activations < (10 if apart else 14) * tokens, (
        "a feed-forward layer alone is 8 and 4 times as wide"
    )


@pytest.mark.thorough
@pytest.mark.parametrize("policy", [any_move, newest_first])
def test_hostile_orders_give_the_same_bytes(
    bundle: Bundle, clip: list[np.ndarray], policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """14 steps of 4 windows."""
    choices = {"window": "2"}
    with Restorer(bundle.path, threads=1, choices=choices) as restorer:
        expected = list(restorer.restore(clip))
    networks = CpuNetworks(bundle, threads=1)
    for name in Options().networks(bundle.manifest):
        networks.load(name)
    device = SimulatedDevice(networks, policy, seed=1)
    monkeypatch.setattr(restorer_module.backends, "open_device", lambda *_, **__: device)
    with Restorer(bundle.path, backend="onnxruntime-cpu", slots=2, choices=choices) as restorer:
        np.testing.assert_array_equal(list(restorer.restore(clip)), expected)


class Failing:
    """The bundle's networks, of which one fails at its n-th run."""

    name = "failing"

    def __init__(self, bundle: Bundle, network: str, run: int) -> None:
        self._networks = CpuNetworks(bundle)
        self._network, self._left = network, run
        self.closed = False

    def load(self, network: str) -> None:
        self._networks.load(network)

    def run(self, network: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._left -= network == self._network
        if network == self._network and not self._left:
            raise DeviceError(f"{network} ran out of memory.")
        return self._networks.run(network, inputs)

    def close(self) -> None:
        self.closed = True
        self._networks.close()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("network", "run", "results"),
    [("vae_encoder", 3, 0), ("denoiser", 9, 0), ("update", 14, 0), ("vae_decoder", 2, 3)],
)
def test_a_network_that_fails_in_the_middle(
    bundle: Bundle, clip: list[np.ndarray], network: str, run: int, results: int
) -> None:
    networks, returned = Failing(bundle, network, run), []
    with Restorer(bundle.path, networks=networks) as restorer:
        with pytest.raises(FrameError, match=f"{network} ran out of memory") as caught:
            for result in restorer.restore(clip):
                returned.append(result)
        assert caught.value.stage == network
        assert len(returned) == results, "groups that were decoded before are kept"
        if network == "vae_encoder":  # while frames came in
            with pytest.raises(DeviceError, match="make a new one"):
                restorer.push(clip[0])
        else:
            assert len(list(restorer.restore(clip[:2]))) == 2, "another clip begins afresh"
    assert networks.closed


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_one_that_is_stopped_while_it_samples_leaves_no_output(
    bundle: Bundle, tmp_path: Path, number: signal.Signals
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    command = [
        sys.executable,
        "-m",
        "vsr_trt.runtime",
        "restore",
        star.GOLDEN / "in",
        "-o",
        target / "out.mp4",
    ]
    with processes.started([*command, "--bundle", bundle.path, "--set", "window=2"]) as process:
        processes.said(process, "sample")
        process.send_signal(number)
        _, message = process.communicate()
    if number == signal.SIGKILL:
        assert process.returncode == -number
        assert not (target / "out.mp4").exists()
        return
    assert process.returncode == 130, message
    assert "interrupted" in message
    assert list(target.iterdir()) == []


@pytest.mark.thorough
def test_fp16_networks_can_be_given_to_the_runtime(
    tmp_path_factory: pytest.TempPathFactory, bundle: Bundle, clip: list[np.ndarray]
) -> None:
    """Every network of an FP16 bundle, rounded as a GPU would, in all phases."""
    half = shared(tmp_path_factory, "star-fp16", lambda out: star.build_bundle(out, "fp16"))
    with Restorer(half, networks=HalfNetworks(Bundle.open(half))) as restorer:
        rounded = np.stack(list(restorer.restore(clip[:2])))
    with Restorer(bundle.path) as restorer:
        exact = np.stack(list(restorer.restore(clip[:2])))
    difference = np.abs(rounded.astype(int) - exact)
    assert 0 < difference.max() <= 8
    assert difference.mean() < 1
