// Two streams on two threads give what one after the other does; a second caller is refused; memory stays flat.
//
//   vsr_streams threads BUNDLE WIDTH HEIGHT [THREADS]        vsr_streams soak BUNDLE WIDTH HEIGHT FRAMES
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "vsr.hpp"

namespace {

void expect(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(what);
}

std::vector<vsr::Picture> clip(std::uint32_t width, std::uint32_t height, std::uint32_t seed, std::size_t frames) {
  std::vector<vsr::Picture> found(frames, vsr::Picture(width, height));
  for (vsr::Picture& frame : found) {
    for (std::uint8_t& level : frame.pixels)
      level = static_cast<std::uint8_t>((seed = seed * 1664525U + 1013904223U) >> 24);
  }
  return found;
}

std::vector<std::vector<std::uint8_t>> restored(const vsr::Model& model, std::vector<vsr::Picture> frames) {
  vsr::Stream stream = model.stream(frames[0].width, frames[0].height);
  std::vector<std::vector<std::uint8_t>> results;
  for (vsr::Picture& picture : stream.restore(frames)) results.push_back(std::move(picture.pixels));
  expect(results.size() == frames.size(), "a result is missing");
  return results;
}

void threads(const std::string& bundle, std::uint32_t width, std::uint32_t height, const std::string& each) {
  const vsr::Model model(bundle, {{"threads", each}});
  const std::vector<vsr::Picture> one = clip(width, height, 1, 4), other = clip(width, height, 2, 4);
  const auto expected_one = restored(model, one), expected_other = restored(model, other);
  expect(expected_one != expected_other, "both clips come out the same");
  std::atomic<bool> same{true};
  for (int round = 0; round < 3; ++round) {
    std::thread thread([&] {
      try {
        if (restored(model, other) != expected_other) same = false;
      } catch (const std::exception&) {
        same = false;
      }
    });
    const bool mine = restored(model, one) == expected_one;
    thread.join();
    expect(mine && same, "streams next to each other change their results");
  }
  // while one call is inside, held by its callback, another thread's is refused
  vsr::Stream stream = model.stream(width, height);
  vsr_status found = VSR_OK;
  vsr::Picture frame = one[0];
  stream.progress([&](const char*, std::uint64_t, std::uint64_t) {
    std::thread([&] {
      try {
        stream.reset();
      } catch (const vsr::Error& error) {
        found = error.status();
      }
    }).join();
  });
  stream.push(frame);
  expect(found == VSR_BUSY, "a second caller was not refused");
  stream.progress({});
  stream.reset();
}

std::size_t resident() {
  std::ifstream stream("/proc/self/statm");
  std::size_t all = 0, pages = 0;
  stream >> all >> pages;
  return pages * 4096;
}

void soak(const std::string& bundle, std::uint32_t width, std::uint32_t height, int frames) {
  const vsr::Model model(bundle, {{"threads", "1"}});
  vsr::Stream stream = model.stream(width, height);
  std::vector<vsr::Picture> few = clip(width, height, 3, 3);
  vsr::Picture result(width * model.scale(), height * model.scale());
  vsr_image into = result.image();
  std::size_t early = 0;
  for (int i = 0; i < frames; ++i) {
    stream.push(few[static_cast<std::size_t>(i) % few.size()].image(), into);
    if (i == frames / 10) early = resident();
  }
  const std::size_t late = resident();
  std::printf("resident after %d frames: %zu kB, after %d: %zu kB\n", frames / 10, early / 1024, frames, late / 1024);
  expect(late < early + (std::size_t{4} << 20), "memory grows");
}

}  // namespace

int main(int count, char** arguments) {
  try {
    expect(count >= 5, "usage: see the head of this file");
    const auto width = static_cast<std::uint32_t>(std::atoi(arguments[3]));
    const auto height = static_cast<std::uint32_t>(std::atoi(arguments[4]));
    if (std::string(arguments[1]) == "soak") {
      soak(arguments[2], width, height, count > 5 ? std::atoi(arguments[5]) : 1000);
    } else {
      threads(arguments[2], width, height, count > 5 ? arguments[5] : "2");
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "failed: %s\n", error.what());
    return 1;
  }
  return 0;
}
