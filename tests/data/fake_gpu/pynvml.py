"""NVML of the fake GPU, for child processes."""

from helpers.fake_nvml import NVML, content

globals().update(content(dict(NVML)))
