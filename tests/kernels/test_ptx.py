"""Hidden parameters go only if nothing reads them."""

from __future__ import annotations

import pytest

from vsr_trt.kernels import KernelError
from vsr_trt.kernels.gpu import ptx

TEXT = """//
.version 8.7
.target sm_90a
.address_size 64
.visible .entry k(
\t.param .u64 .ptr .global .align 1 k_param_0,
\t.param .u32 k_param_1,
\t.param .u64 .ptr .global .align 1 k_param_2,
\t.param .u64 .ptr .global .align 1 k_param_10
)
.reqntid 128
{
\tld.param.b64 %rd1, [k_param_0];
\tld.param.b32 %r1, [k_param_1];
\tret;
}
"""


def test_hidden_parameters_go_and_the_rest_stays() -> None:
    cut = ptx.declared_only(TEXT, 2)
    assert ptx.parameters(cut) == [".u64", ".u32"]
    assert cut == TEXT.replace("sm_90a", "sm_90").replace(
        ",\n\t.param .u64 .ptr .global .align 1 k_param_2,\n\t.param .u64 .ptr .global .align 1 k_param_10",
        "",
    )


def test_k_param_1_is_not_k_param_10() -> None:
    assert len(ptx.parameters(ptx.declared_only(TEXT, 3))) == 3


def test_one_that_is_read_is_refused() -> None:
    with pytest.raises(
        KernelError, match="kernel k reads its hidden parameter k_param_2; it cannot be removed"
    ):
        ptx.declared_only(TEXT.replace("\tret;", "\tld.param.b64 %rd2, [k_param_2];\n\tret;"), 2)


def test_too_few_are_refused() -> None:
    with pytest.raises(KernelError, match="has 4 parameters, expected 5 or more"):
        ptx.declared_only(TEXT, 5)


@pytest.mark.parametrize("text", ["", TEXT + TEXT])
def test_none_or_several_kernels_are_refused(text: str) -> None:
    with pytest.raises(KernelError, match=r"expected PTX with one kernel, found [02]"):
        ptx.declared_only(text, 1)


def test_version_and_target() -> None:
    assert (ptx.version(TEXT), ptx.target(TEXT)) == ((8, 7), "sm_90")
    for asked in (ptx.version, ptx.target):
        with pytest.raises(KernelError, match="no PTX"):
            asked("hello")
