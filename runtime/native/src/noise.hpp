// Standard normal numbers that depend on nothing but their place: see runtime/restore/noise.py, which defines every
// bit.
#pragma once

#include <cstdint>
#include <string>

namespace vsr {

// Writes `count` numbers: by a seed, what they are for, the step of a loop (0 outside), and the frame in the clip.
void draw(std::uint64_t seed, const std::string& purpose, std::uint32_t step, std::uint32_t frame, std::size_t count,
          float* numbers);

}  // namespace vsr
