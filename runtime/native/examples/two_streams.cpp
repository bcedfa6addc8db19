// Restores two clips at once inside of a program: one model, two streams on two threads.
//
//   two_streams BUNDLE WIDTH HEIGHT     of frames, for whose size the bundle has a schedule
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "vsr.hpp"

namespace {

// A clip of a few frames: a ramp, and a square that moves.
std::vector<vsr::Picture> clip(std::uint32_t width, std::uint32_t height, std::uint32_t speed) {
  std::vector<vsr::Picture> frames;
  for (std::uint32_t number = 0; number < 3; ++number) {
    vsr::Picture frame(width, height);
    for (std::uint32_t y = 0; y < height; ++y) {
      for (std::uint32_t x = 0; x < width; ++x) {
        const bool inside = x - number * speed < width / 4 && y < height / 2;
        std::uint8_t* pixel = &frame.pixels[(std::size_t{y} * width + x) * 3];
        pixel[0] = static_cast<std::uint8_t>(inside ? 230 : 40 + x % 128);
        pixel[1] = static_cast<std::uint8_t>(inside ? 200 : 40 + y % 128);
        pixel[2] = 90;
      }
    }
    frames.push_back(std::move(frame));
  }
  return frames;
}

void restore(const vsr::Model& model, std::uint32_t width, std::uint32_t height, std::uint32_t speed) {
  std::vector<vsr::Picture> frames = clip(width, height, speed);
  vsr::Stream stream = model.stream(width, height);
  unsigned number = 0;
  for (const vsr::Picture& picture : stream.restore(frames)) {
    std::uint64_t sum = 0;
    for (const std::uint8_t level : picture.pixels) sum += level;
    std::printf("clip %u, frame %u: %ux%u, mean %.2f\n", speed, number++, picture.width, picture.height,
                static_cast<double>(sum) / static_cast<double>(picture.pixels.size()));
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) {
    std::fputs("usage: two_streams BUNDLE WIDTH HEIGHT\n", stderr);
    return 2;
  }
  const auto width = static_cast<std::uint32_t>(std::strtoul(arguments[2], nullptr, 10));
  const auto height = static_cast<std::uint32_t>(std::strtoul(arguments[3], nullptr, 10));
  try {
    const vsr::Model model(arguments[1]);
    bool failed = false;
    std::thread other([&] {
      try {
        restore(model, width, height, 5);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        failed = true;
      }
    });
    try {
      restore(model, width, height, 2);
    } catch (...) {
      other.join();
      throw;
    }
    other.join();
    return failed ? 1 : 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
