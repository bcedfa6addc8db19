// A frame's way onto its canvas, and the result's way out of it.
#pragma once

#include <cstdint>
#include <vector>

#include "schedule.hpp"

namespace vsr {

using Bytes = std::vector<std::uint8_t>;

// Pillow's bicubic, as runtime/media/resample.py has it to the last bit: rows of 3 bytes a pixel, without gaps.
Bytes resize(const Bytes& pixels, Sides from, Sides to);
// What the networks are given of a frame (frame, 3): (given, 3).
Bytes place(Bytes pixels, const Picture& picture);
// The result (result, 3) in the restored canvas (given * scale, 3).
Bytes take_out(Bytes pixels, const Picture& picture);

}  // namespace vsr
