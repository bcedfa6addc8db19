"""What is read from a compiler's log."""

from __future__ import annotations

from vsr_trt.engines.tensorrt.log import BuildLog

LAYERS = """Layers:
Name: conv_myl0_1, LayerType: correlation, Inputs: [ { Name: a, Dimensions: [1,8,64,64]}], Metadata: [ONNX Layer: conv]
Name: _gemm_mha_v2_myl0_19, LayerType: kgen, Inputs: [], StreamId: 0, Metadata: [ONNX Layer: att_0][ONNX Layer: t]
Name: __myl_Tran_myl0_20, LayerType: kgen, Inputs: [], Metadata: [ONNX Layer: att_0]
Name: __fc1_myl0_27, LayerType: gemm, Inputs: [], Metadata: [ONNX Layer: att_1]
Name: __myl_MaxrSubExpSumDiv_myl0_28, LayerType: kgen, Inputs: [], Metadata: [ONNX Layer: att_1]
Name: __fc2_myl0_29, LayerType: gemm, Inputs: [], Metadata: [ONNX Layer: att_1]
Name: all_in_one, LayerType: runtime_fusion, Inputs: [], Metadata: [ONNX Layer: att_2]
"""


def test_memory_layers_errors_and_warnings_are_kept() -> None:
    log = BuildLog()
    for severity, message in (
        ("INFO", "Total Activation Memory: 343847424 bytes"),
        ("INFO", "Total Weights Memory: 98939016 bytes"),
        ("VERBOSE", LAYERS),
        ("VERBOSE", "Total Activation Memory is not a number here"),
        ("WARNING", "careful"),
        ("ERROR", "first\nsecond"),
        ("INTERNAL_ERROR", "third"),
    ):
        log.add(severity, message)
    assert (log.activations, log.weights) == (343847424, 98939016)
    assert [layer.kind for layer in log.layers] == [
        "correlation", "kgen", "kgen", "gemm", "kgen", "gemm", "runtime_fusion",
    ]  # fmt: skip
    assert log.layers[1].origins == ("att_0", "t")
    assert log.warnings == ["careful"]
    assert log.reasons() == "first; second; third"


def test_an_attention_is_fused_or_split() -> None:
    log = BuildLog()
    log.add("VERBOSE", LAYERS)
    fused, split = log.attentions(["att_0", "att_1", "att_2", "att_3"])
    assert fused == 2
    assert split == {"att_1": 3, "att_3": 0}  # one that no layer stems from is not taken for fused


def test_no_reason_is_a_reason_too() -> None:
    assert BuildLog().reasons() == "it gave no reason"


def test_frames_around_errors_are_left_out() -> None:
    log = BuildLog()
    log.add("ERROR", "--- Begin node ---\nNode name: x\n")
    log.add("ERROR", "It is refused.")
    log.add("ERROR", "It is refused.")
    assert log.reasons() == "It is refused."
