"""Where ONNX Runtime's sessions on the CPU work: one arena, shared by all of a process.

Networks run one after another. In one arena each works where the former one has worked, in memory that the system
has given once. Without an arena every large tensor is asked for and given back: a million pages a frame at full size,
which the system clears each time. With an arena of its own, each session would keep its own peak for good.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

# The arena grows by blocks that hold many tensors, so that what is given back joins with its neighbours, and by no
# byte more than is used: pages of a block that nobody has touched are not memory yet. With blocks as small as they
# are asked for, pieces of other sizes do not fit what is free, and a large picture takes up to a quarter more.
_ARENA = {
    "arena_extend_strategy": 0,  # the next power of two
    "initial_chunk_size_bytes": 1 << 20,
    "initial_growth_chunk_size_bytes": 1 << 30,
    "max_dead_bytes_per_chunk": 1 << 20,
}
# y = x, a graph for one float: what is run where an arena is to do something by itself
_IDENTITY = (
    b'\x08\x08\x12\x00:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08'
    b"\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)
_keepers: dict[str, Any] = {}  # module's name -> a session of the arena
_making = threading.Lock()


def share(library: Any, options: Any) -> None:
    """Lets a session work in the shared arena. Its weights stay outside: they go with it.

    Args:
        library: the onnxruntime module.
        options: its SessionOptions, changed in place.
    """
    with _making:
        if library.__name__ not in _keepers:
            kind = library.OrtAllocatorType.ORT_ARENA_ALLOCATOR
            memory = library.OrtMemoryInfo("Cpu", kind, 0, library.OrtMemType.DEFAULT)
            config = library.OrtArenaCfg(_ARENA)
            library.create_and_register_allocator(memory, config)
            own = library.SessionOptions()
            _use(own)
            keeper = library.InferenceSession(_IDENTITY, own, providers=["CPUExecutionProvider"])
            _keepers[library.__name__] = keeper
            give_back(library)  # the arena never gives its first block back: a small one
    _use(options)


def shrinking(options: Any) -> None:
    """Has a run give back, at its end, all that the arena holds and nobody uses.

    Args:
        options: its RunOptions, changed in place.
    """
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")


def give_back(library: Any) -> None:
    """Gives back all that the arena holds and nobody uses."""
    keeper = _keepers.get(library.__name__)
    if keeper is not None:
        options = library.RunOptions()
        shrinking(options)
        keeper.run(None, {"x": np.zeros(1, np.float32)}, options)


def _use(options: Any) -> None:
    options.enable_cpu_mem_arena = True
    # No tensor's memory is kept for a later one of the same shape: where a graph repeats its shapes, as hundreds of
    # slices do, all would be kept until the last of them. The arena gives it to whoever comes next.
    options.enable_mem_reuse = False
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
