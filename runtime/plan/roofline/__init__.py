"""How long a frame takes by a roofline model: published peak rates, and the work that the manifest counts.

Nothing here is measured but the two rates of `this-machine`. docs/roofline.md says what the model leaves out.
"""

from vsr_trt.runtime.plan.roofline.machines import (
    MACHINES,
    THIS_MACHINE,
    Machine,
    find,
    matrix_rate,
    measure_here,
)
from vsr_trt.runtime.plan.roofline.model import (
    NOTE,
    SIZES,
    Prediction,
    StageTime,
    as_json,
    operations,
    predict,
    predict_all,
)
from vsr_trt.runtime.plan.roofline.show import show

__all__ = [
    "MACHINES",
    "NOTE",
    "SIZES",
    "THIS_MACHINE",
    "Machine",
    "Prediction",
    "StageTime",
    "as_json",
    "find",
    "matrix_rate",
    "measure_here",
    "operations",
    "predict",
    "predict_all",
    "show",
]
