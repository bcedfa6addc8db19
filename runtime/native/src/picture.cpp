#include "picture.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace vsr {
namespace {

constexpr int kBits = 22;  // behind the point of the weights
constexpr std::size_t kChannels = 3;

std::size_t size(std::int64_t number) { return static_cast<std::size_t>(number); }

// Pixels under each target pixel's kernel, and their weights in 2^-22.
struct Taps {
  std::size_t each = 0;
  std::vector<std::size_t> pixels;
  std::vector<std::int64_t> weights;
};

double cubic(double x) {
  x = std::fabs(x);
  constexpr double a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

// Every operation is Pillow's, in its order, so that the weights are its to the last bit.
Taps taps(std::int64_t source, std::int64_t target) {
  const double scale = static_cast<double>(source) / static_cast<double>(target), stretch = std::max(scale, 1.0);
  const double support = 2.0 * stretch, end = static_cast<double>(source);
  const auto centre = [&](std::int64_t i) { return (static_cast<double>(i) + 0.5) * scale; };
  const auto first = [&](std::int64_t i) { return std::max(std::trunc(centre(i) - support + 0.5), 0.0); };
  const auto last = [&](std::int64_t i) { return std::min(std::trunc(centre(i) + support + 0.5), end); };
  Taps found;
  for (std::int64_t i = 0; i < target; ++i)
    found.each = std::max(found.each, static_cast<std::size_t>(last(i) - first(i)));
  std::vector<double> weights(found.each);
  for (std::int64_t i = 0; i < target; ++i) {
    double sum = 0;
    for (std::size_t tap = 0; tap < found.each; ++tap) {
      const double pixel = std::trunc(first(i)) + static_cast<double>(tap);
      weights[tap] = cubic((pixel - centre(i) + 0.5) * (1.0 / stretch)) * (pixel < last(i) ? 1.0 : 0.0);
      sum += weights[tap];
      found.pixels.push_back(std::min(size(source) - 1, static_cast<std::size_t>(pixel)));
    }
    for (const double weight : weights) {
      const double scaled = weight / sum * (1 << kBits);
      found.weights.push_back(static_cast<std::int64_t>(std::trunc(scaled + std::copysign(0.5, scaled))));
    }
  }
  return found;
}

// One direction: `lines` lines of `from` pixels that are `step` bytes apart become lines of `to`.
void stretch(const std::uint8_t* source, std::uint8_t* target, const Taps& found, std::size_t to, std::size_t step) {
  for (std::size_t i = 0; i < to; ++i) {
    for (std::size_t c = 0; c < kChannels; ++c) {
      std::int64_t total = std::int64_t{1} << (kBits - 1);
      for (std::size_t tap = 0; tap < found.each; ++tap) {
        const std::size_t at = i * found.each + tap;
        total += source[found.pixels[at] * step + c] * found.weights[at];
      }
      target[i * step + c] = static_cast<std::uint8_t>(std::clamp<std::int64_t>(total >> kBits, 0, 255));
    }
  }
}

}  // namespace

Bytes resize(const Bytes& pixels, Sides from, Sides to) {
  Bytes wide = pixels;
  if (from.width != to.width) {
    const Taps found = taps(from.width, to.width);
    wide.assign(size(from.height) * size(to.width) * kChannels, 0);
    for (std::size_t row = 0; row < size(from.height); ++row) {
      stretch(&pixels[row * size(from.width) * kChannels], &wide[row * size(to.width) * kChannels], found,
              size(to.width), kChannels);
    }
  }
  if (from.height == to.height) return wide;
  const Taps found = taps(from.height, to.height);
  Bytes high(size(to.height) * size(to.width) * kChannels);
  for (std::size_t column = 0; column < size(to.width); ++column) {
    stretch(&wide[column * kChannels], &high[column * kChannels], found, size(to.height), size(to.width) * kChannels);
  }
  return high;
}

Bytes place(Bytes pixels, const Picture& picture) {
  const Sides &frame = picture.frame, &inner = picture.inner, &given = picture.given;
  if (inner.height != frame.height || inner.width != frame.width) pixels = resize(pixels, frame, inner);
  if (given.height == inner.height && given.width == inner.width) return pixels;
  const std::size_t row = size(inner.width) * kChannels;
  Bytes canvas(size(given.height) * size(given.width) * kChannels, picture.border);
  for (std::size_t y = 0; y < size(inner.height); ++y) {
    const std::size_t at = (y + size(picture.corner.height)) * size(given.width) + size(picture.corner.width);
    std::memcpy(&canvas[at * kChannels], &pixels[y * row], row);
  }
  return canvas;
}

Bytes take_out(Bytes pixels, const Picture& picture) {
  const Sides &given = picture.given, &corner = picture.corner;
  const Sides inner = {picture.inner.height * picture.scale, picture.inner.width * picture.scale};
  if (given.height != picture.inner.height || given.width != picture.inner.width) {
    const std::size_t row = size(inner.width) * kChannels, across = size(given.width * picture.scale);
    Bytes cut(size(inner.height) * row);
    for (std::size_t y = 0; y < size(inner.height); ++y) {
      const std::size_t at = (y + size(corner.height * picture.scale)) * across + size(corner.width * picture.scale);
      std::memcpy(&cut[y * row], &pixels[at * kChannels], row);
    }
    pixels = std::move(cut);
  }
  const Sides result = picture.result();
  return inner.height == result.height && inner.width == result.width ? pixels : resize(pixels, inner, result);
}

}  // namespace vsr
