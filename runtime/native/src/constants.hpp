// The numbers of a schedule's constants.
#pragma once

#include "picture.hpp"
#include "schedule.hpp"

namespace vsr {

// From a file, a row of one, the value of an option, or zeros. Failure: it does not fit the buffer.
Bytes constant(const Bundle& bundle, const Schedule& schedule, const Buffer& buffer);

// FP16 and back; rounded to the nearest, ties to even, as numpy does.
std::uint16_t to_half(float number);
float from_half(std::uint16_t half);

}  // namespace vsr
