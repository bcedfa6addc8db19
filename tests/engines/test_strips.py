"""Pictures in strips against the same networks whole: the same numbers, in less memory."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from helpers.convolutions import PADS, Network, run
from helpers.examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_ir.passes.common import RemoveUnusedNodesPass

from vsr_trt.engines.accuracy import instrument, ranges
from vsr_trt.engines.graphs import cpu as onnxruntime_cpu
from vsr_trt.engines.graphs import precision
from vsr_trt.engines.graphs.channels_last import replace_convolutions
from vsr_trt.engines.graphs.strips import STRIPS, cut_into_strips, largest, largest_kept
from vsr_trt.recipes import vae_forms
from vsr_trt.runtime.bundle.directory import Bundle
from vsr_trt.runtime.onnxruntime.cpu import CpuNetworks
from vsr_trt.runtime.schedule.forms import IN_STRIPS, WHOLE

FLOAT = onnx.TensorProto.FLOAT
DOWN = {"strides": [2, 2], "pads": [0, 0, 1, 1]}


def block(net: Network, x: str, inputs: int, outputs: int) -> str:
    """A residual block, as the VAE's are."""
    groups = 2
    h = net.conv(net.silu(net.norm(x, inputs, groups)), inputs, outputs)
    h = net.conv(net.silu(net.norm(h, outputs, groups)), outputs, outputs)
    shortcut = x if inputs == outputs else net.conv(x, inputs, outputs, side=1)
    return net.node("Add", shortcut, h)


def decoder(seed: int, channels: int = 4) -> onnx.ModelProto:
    """Two doublings, with blocks before, between and behind."""
    net = Network(seed)
    x = block(net, net.conv("x", 3, channels), channels, channels)
    x = block(net, net.conv(net.double(x), channels, channels), channels, channels)
    x = block(net, net.conv(net.double(x), channels, channels), channels, 2 * channels)
    x = block(net, x, 2 * channels, 2 * channels)
    x = net.conv(net.silu(net.norm(x, 2 * channels, 2)), 2 * channels, 3)
    return shaped(net, x)


def encoder(seed: int, channels: int = 4) -> onnx.ModelProto:
    """Three halvings."""
    net = Network(seed)
    x = net.conv("x", 3, channels)
    for step in range(3):
        x = block(net, block(net, x, channels << step, channels << step), channels << step, channels << step)
        x = net.conv(x, channels << step, channels << (step + 1), **DOWN)
    return shaped(net, net.silu(net.norm(x, channels << 3, 2)))


def shaped(net: Network, result: str, inputs: int = 3) -> onnx.ModelProto:
    """The model with the shape of every tensor, as the exporter leaves it."""
    model = net.model(result, inputs, ("8*h", "8*w"))
    del model.graph.value_info[:]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    names = [output for node in model.graph.node for output in node.output if output != "y"]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(names, {"x": np.zeros((1, inputs, 64, 64), np.float32)})
    for name, value in zip(names, found, strict=True):
        if value.ndim == 4:
            sides = [f"{side // 8}*{letter}" for side, letter in zip(value.shape[2:], "hw", strict=True)]
            shape = ["n", value.shape[1], *sides]
            model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, FLOAT, shape))
    return model


def in_strips(model: onnx.ModelProto, strips: int = STRIPS, *, lowered: bool = False, ordered: bool = False):
    found = ir.from_proto(model)
    count = cut_into_strips(found, strips, ordered)
    if lowered:
        replace_convolutions(found.graph, min_channels=1, strips=strips)
        RemoveUnusedNodesPass()(found)
    proto = ir.to_proto(found)
    onnx.checker.check_model(proto)
    return proto, count


@pytest.mark.thorough
@settings(max_examples=examples(15), deadline=None)
@given(
    seed=st.integers(0, 1000),
    encodes=st.booleans(),
    lowered=st.booleans(),
    ordered=st.booleans(),
    size=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)),
    offset=st.floats(-30, 30),
)
def test_strips_give_what_the_whole_gives(
    seed: int, encodes: bool, lowered: bool, ordered: bool, size: tuple[int, int, int], offset: float
) -> None:
    n, h, w = size
    model = encoder(seed) if encodes else decoder(seed)
    other, count = in_strips(model, lowered=lowered, ordered=ordered)
    assert count > 10
    high, wide = 64 * h, 64 * w  # whole strips also at the lowest resolution that is cut
    x = np.random.default_rng(seed).standard_normal((n, 3, high, wide)).astype(np.float32) + np.float32(
        offset
    )
    x[..., wide // 2 :] *= 0.05  # statistics that differ from place to place
    # ONNX Runtime's own group normalisation is less exact than either
    expected, got = run(exact(model), x), run(other, x)
    assert got.shape == expected.shape
    bound = 5e-5 if lowered else 2e-5
    assert np.abs(got - expected).max() <= bound * max(1.0, np.abs(expected).max())


def exact(model: onnx.ModelProto) -> onnx.ModelProto:
    """The whole network with normalisations in short sums."""
    found = ir.from_proto(model)
    onnxruntime_cpu._replace_group_normalisations(found.graph)
    RemoveUnusedNodesPass()(found)
    return ir.to_proto(found)


@pytest.mark.parametrize("strips", [2, 4, pytest.param(16, marks=pytest.mark.thorough)])
def test_any_number_of_strips(strips: int) -> None:
    model = decoder(1)
    other, _ = in_strips(model, strips, lowered=True)
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 32)).astype(np.float32)
    assert np.abs(run(other, x) - run(model, x)).max() <= 1e-4


def test_fp16_strips_are_as_near_to_fp32_as_the_whole_is(tmp_path: Path) -> None:
    """With every result rounded to FP16, as a GPU does it."""
    model = decoder(2)
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    expected = run(exact(model), x)
    errors = []
    for strips in (1, STRIPS):
        half = ir.from_proto(model)
        precision.convert(half)
        if strips > 1:
            assert cut_into_strips(half, strips, ordered=True)
        path = tmp_path / f"half{strips}.onnx"
        ir.save(half, path)
        session = ranges.open_session(instrument.prepare(path), 2)
        errors.append(float(np.square(session.run(None, {"x": x})[0] - expected).mean()))
    assert errors[1] <= 2 * errors[0]


def test_no_strip_reads_a_whole_picture_of_the_highest_resolutions() -> None:
    """Otherwise memory would not be saved, whatever the result."""
    model = decoder(3)
    other, _ = in_strips(model)
    probe = onnx.ModelProto()
    probe.CopyFrom(other)
    names = [output for node in probe.graph.node for output in node.output]
    del probe.graph.value_info[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "y")
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.zeros((1, 3, 64, 64), np.float32)
    found = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"x": x}), strict=True))
    channels = {node.output[0]: node.op_type for node in probe.graph.node}
    whole = [
        name
        for name, value in found.items()
        if value.ndim == 4
        and value.shape[1] > 3
        and value.shape[2] > 256 // STRIPS + 8
        and value.shape[3] == 256
    ]
    assert not whole, [channels[name] for name in whole]


def test_the_largest_pictures() -> None:
    graph = ir.from_proto(decoder(0)).graph
    # 16 sides of 4 times the input's with 8 channels; the doubled ones, of 4 channels, are smaller
    assert largest(graph) == Fraction(16 * 8)
    assert largest_kept(graph) == Fraction(16 * 8)


def test_nothing_to_cut_is_left_alone() -> None:
    net = Network()
    model = net.model(net.node("Reshape", "x", net.constant(np.array([-1, 8], np.int64))), 3)
    other, count = in_strips(model)
    assert count == 0
    assert [node.op_type for node in other.graph.node] == [node.op_type for node in model.graph.node]


def test_a_normalisation_of_the_networks_own_input() -> None:
    net = Network()
    x = net.conv(net.silu(net.norm("x", 4, 2)), 4, 4)
    model = shaped(net, net.silu(net.norm(x, 4, 2)), 4)
    other, count = in_strips(model)
    assert count
    data = np.random.default_rng(0).standard_normal((1, 4, 16, 8)).astype(np.float32)
    assert np.abs(run(other, data) - run(model, data)).max() <= 1e-5


@pytest.mark.thorough
@pytest.mark.parametrize("network", ["vae_encoder", "vae_decoder"])
@pytest.mark.parametrize(("h", "w"), [(32, 32), (56, 88), pytest.param(88, 152, marks=pytest.mark.full_size)])
def test_the_bundles_vae_in_strips(golden_bundle: Path, network: str, h: int, w: int) -> None:
    bundle = Bundle.open(golden_bundle)
    record = bundle.manifest.networks[network]
    assert record.strips == STRIPS
    assert {WHOLE, IN_STRIPS} <= set(record.graphs)
    assert record.scratch[IN_STRIPS]["h*w"] > 0
    (tensor,) = record.inputs
    shape = (1, 3, 8 * h, 8 * w) if network == "vae_encoder" else (1, 4, h, w)
    x = np.random.default_rng(h).standard_normal(shape).astype(np.float32)
    x[..., : shape[3] // 3] *= 0.1
    results = []
    device = CpuNetworks(bundle)
    for in_strips in (False, True):
        device.load(network, in_strips)
        (result,) = device.run(network, {tensor.name: x}).values()
        results.append(result)
    device.close()
    assert vae_forms.decibels(results[1], results[0]) >= 100
    rows = [i * results[0].shape[2] // STRIPS for i in range(1, STRIPS)]
    steep = [vae_forms.steepness(result, rows, []) for result in results]
    assert abs(steep[1] - steep[0]) < 1e-3, "a border shows"


@pytest.mark.full_size
def test_tiles_with_statistics_of_their_own_are_another_picture(golden_bundle: Path, tmp_path: Path) -> None:
    """What the strips are for: at least 15 dB nearer, on a picture that is rougher on one side."""
    bundle = Bundle.open(golden_bundle)
    for half in ("vae_encoder", "vae_decoder"):
        whole, strips, tiles = (
            vae_forms.measure(bundle, "1024x640", half, form, tmp_path, tile=48) for form in vae_forms.FORMS
        )
        assert whole.decibels == float("inf")
        assert strips.decibels >= 100
        assert tiles.decibels < 45
        assert strips.decibels - tiles.decibels >= 15
        assert strips.border is not None
        assert whole.border is None
        assert whole.estimated is not None


def test_padding_is_as_the_whole_has_it() -> None:
    """Nothing but zeros beyond the picture, after the normalisation, also where a strip is the first or the last."""
    net = Network(5)
    x = net.conv(net.silu(net.norm(net.conv("x", 3, 4), 4, 2)), 4, 4, pads=PADS)
    model = shaped(net, x)
    other, _ = in_strips(model, lowered=True)
    x = np.full((1, 3, 64, 32), 7, np.float32)
    got, expected = run(other, x), run(model, x)
    for rows in (slice(0, 2), slice(-2, None), slice(7, 9)):
        assert np.abs(got[:, :, rows] - expected[:, :, rows]).max() <= 1e-4
