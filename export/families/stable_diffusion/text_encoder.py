"""text_encoder: token ids -> prompt embedding. Run once for each prompt, on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vsr_trt.export.network import Input, NetworkSpec, Output

TOKENS = 77


class TextEncoder(nn.Module):
    """tokens int64 (77,) -> prompt (77,c), the last hidden state after its layer norm."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        return self.model(tokens.unsqueeze(0), return_dict=False)[0][0]


def spec(model: Any) -> NetworkSpec:
    """The network as it is exported; it has no dynamic size."""
    vocabulary = model.config.vocab_size

    def dummy_inputs(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Token ids, drawn from the whole vocabulary."""
        return {"tokens": torch.randint(0, vocabulary, (TOKENS,), generator=generator)}

    return NetworkSpec(
        name="text_encoder",
        module=TextEncoder(model),
        inputs=(Input("tokens", torch.int64, (TOKENS,)),),
        outputs=(Output("prompt", torch.float32, (TOKENS, model.config.hidden_size)),),
        bounds={},
        dummy_inputs=dummy_inputs,
        traced={},
        checked=({},),
        always_fp32="it runs once for a prompt",
    )
