// Restores raw RGB video from standard input to standard output:
//
//   ffmpeg -i in.mp4 -f rawvideo -pix_fmt rgb24 - | vsr_pipe --bundle B --size 1920x1080 |
//     ffmpeg -f rawvideo -pix_fmt rgb24 -s 1920x1080 -r 25 -i - out.mp4
//
// --size is the restored picture's, as everywhere on the command line. --set KEY=VALUE passes an option.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "vsr.hpp"

namespace {

int usage() {
  std::fputs(
      "usage: vsr_pipe --bundle BUNDLE --size WxH [--set KEY=VALUE]... [--log]\n"
      "Reads frames as raw RGB (3 bytes a pixel) and writes restored ones of WxH.\n",
      stderr);
  return 2;
}

void write(const vsr::Picture& picture) {
  if (std::fwrite(picture.pixels.data(), 1, picture.pixels.size(), stdout) != picture.pixels.size()) {
    throw vsr::Error(VSR_ARGUMENT, "standard output cannot be written.");
  }
}

void restore(const vsr::Model& model, std::uint32_t width, std::uint32_t height) {
  if (width % model.scale() != 0 || height % model.scale() != 0) {
    throw vsr::Error(VSR_ARGUMENT, "the restored picture is " + std::to_string(model.scale()) +
                                       " times the clip, so both sides are multiples of that.");
  }
  vsr::Picture frame(width / model.scale(), height / model.scale());
  vsr::Stream stream = model.stream(frame.width, frame.height);
  std::size_t read = 0;
  while ((read = std::fread(frame.pixels.data(), 1, frame.pixels.size(), stdin)) == frame.pixels.size()) {
    if (const auto result = stream.push(frame)) write(*result);
  }
  while (const auto result = stream.flush()) write(*result);
  if (std::fflush(stdout) != 0) throw vsr::Error(VSR_ARGUMENT, "standard output cannot be written.");
  if (read != 0) throw vsr::Error(VSR_ARGUMENT, "the last frame is not whole, and was left out.");
}

}  // namespace

int main(int count, char** arguments) {
  std::string bundle;
  unsigned width = 0, height = 0;
  vsr::Model::Options options;
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    if (name == "--log") {
      vsr_log([](void*, const char* line) { std::fprintf(stderr, "%s\n", line); }, nullptr);
      continue;
    }
    const char* value = i + 1 < count ? arguments[++i] : nullptr;
    if (value == nullptr) return usage();
    const char* equals = std::strchr(value, '=');
    char rest = 0;
    if (name == "--bundle") {
      bundle = value;
    } else if (name == "--size" && std::sscanf(value, "%5ux%5u%c", &width, &height, &rest) == 2) {
      continue;
    } else if (name == "--set" && equals != nullptr) {
      options.emplace_back(std::string(value, equals), equals + 1);
    } else {
      return usage();
    }
  }
  if (bundle.empty() || width == 0 || height == 0) return usage();
  try {
    restore(vsr::Model(bundle, options), width, height);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
  return 0;
}
