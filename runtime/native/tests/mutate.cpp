// Opens a bundle whose manifest and schedules were changed at random: each is refused or run, and nothing crashes.
//
//   vsr_mutate BUNDLE WIDTH HEIGHT COUNT SEED      BUNDLE is a copy that may be changed
//
// With -DVSR_FUZZER it is a program for Clang's libFuzzer, whose input takes the place of a file's text.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "vsr.h"

namespace {

std::string read(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

void write(const std::string& file, const std::string& text) { std::ofstream(file, std::ios::binary) << text; }

// The manifest with another number of bytes for a file: its size is looked at before its text is.
std::string with_size(std::string manifest, const std::string& name, std::size_t bytes) {
  const std::size_t entry = manifest.find("\"" + name + "\"");
  const std::size_t field = manifest.find("\"bytes\": ", entry) + 9;
  return manifest.replace(field, manifest.find_first_not_of("0123456789", field) - field, std::to_string(bytes));
}

class Chance {
 public:
  explicit Chance(unsigned seed) : engine_(seed) {}
  std::size_t below(std::size_t limit) { return limit == 0 ? 0 : engine_() % limit; }

  // One change: a byte, a piece left out, doubled or moved, the end cut off, a value in place of another.
  std::string change(std::string text) {
    static const std::vector<std::string> values = {
        "0",     "-1",   "1",     "2",     "3",        "4294967296",     "9223372036854775807",
        "1e400", "null", "true",  "[]",    "{}",       "\"\"",           "\"x\"",
        "0.5",   "512",  "[0,1]", "65536", "\"../x\"", "\"/etc/passwd\""};
    const std::size_t at = below(text.size()), length = 1 + below(40);
    switch (below(6)) {
      case 0:
        text[at] = static_cast<char>(below(256));
        return text;
      case 1:
        return text.erase(at, length);
      case 2:
        return text.insert(below(text.size()), text.substr(at, length));
      case 3:
        return text.substr(0, at);
      default: {
        // the value behind a colon, or an item of a list
        const std::size_t start = text.find_first_of(":[", at);
        if (start == std::string::npos) return text;
        const std::size_t end = text.find_first_of(",]}\n", start + 1);
        if (end == std::string::npos) return text;
        return text.replace(start + 1, end - start - 1, values[below(values.size())]);
      }
    }
  }

 private:
  std::mt19937 engine_;
};

std::map<int, unsigned> seen;

bool note(vsr_status status, vsr_error* error) {
  ++seen[static_cast<int>(status)];
  if (status < 0 && (error == nullptr || *vsr_error_message(error) == 0)) {
    std::fprintf(stderr, "status %d without a sentence\n", static_cast<int>(status));
    std::abort();
  }
  vsr_error_free(error);
  return status >= 0;
}

void restore(const std::string& bundle, std::uint32_t width, std::uint32_t height, bool run) {
  const vsr_option options[] = {{"threads", "1"}};
  vsr_model* model = nullptr;
  vsr_stream* stream = nullptr;
  vsr_error* error = nullptr;
  vsr_status status = vsr_open(bundle.c_str(), options, 1, &model, &error);
  if (!note(status, error)) return;
  const std::uint32_t scale = vsr_scale(model);
  vsr_memory memory{};
  memory.struct_size = sizeof memory;
  status = vsr_plan(model, width, height, &memory, &error);
  if (note(status, error)) {
    status = vsr_stream_create(model, width, height, &stream, &error);
    note(status, error);
  }
  if (stream != nullptr && run) {
    std::vector<unsigned char> frame(std::size_t{3} * width * height, 100), result(frame.size() * scale * scale);
    const vsr_image in = {sizeof in, frame.data(), std::size_t{3} * width, width, height, VSR_RGB8, VSR_HOST, nullptr};
    vsr_image out = in;
    out.data = result.data();
    out.stride = in.stride * scale;
    out.width = width * scale;
    out.height = height * scale;
    for (int i = 0; i < 2; ++i) {
      status = vsr_push(stream, &in, &out, &error);
      if (!note(status, error)) break;
    }
    for (int i = 0; i < 4 && status >= 0; ++i) {
      status = vsr_flush(stream, &out, &error);
      note(status, error);
      if (status == VSR_NONE) break;
    }
  }
  vsr_stream_destroy(stream);
  vsr_close(model);
}

}  // namespace

#ifdef VSR_FUZZER
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::string bundle = std::getenv("VSR_FUZZ_BUNDLE"), name = std::getenv("VSR_FUZZ_FILE");
  static const std::string manifest = read(bundle + "/bundle.json");
  const std::string text(reinterpret_cast<const char*>(data), size);
  if (name != "bundle.json") write(bundle + "/bundle.json", with_size(manifest, name, size));
  write(bundle + "/" + name, text);
  restore(bundle, 80, 80, true);
  return 0;
}
#else
int main(int count, char** arguments) {
  if (count != 6) return 2;
  const std::string bundle = arguments[1];
  const auto width = static_cast<std::uint32_t>(std::atoi(arguments[2]));
  const auto height = static_cast<std::uint32_t>(std::atoi(arguments[3]));
  Chance chance(static_cast<unsigned>(std::atoi(arguments[5])));
  const std::string manifest = read(bundle + "/bundle.json");
  std::vector<std::string> schedules;
  for (std::size_t at = 0; (at = manifest.find("\"schedules/", at)) != std::string::npos; ++at) {
    schedules.push_back(manifest.substr(at + 1, manifest.find('"', at + 1) - at - 1));
  }
  if (schedules.empty()) return 2;
  for (int i = 0; i < std::atoi(arguments[4]); ++i) {  // frames are pushed for some only: they take most of the time
    if (i % 2 == 0) {
      write(bundle + "/bundle.json", chance.change(manifest));
      restore(bundle, width, height, i % 16 == 0);
      write(bundle + "/bundle.json", manifest);
    } else {
      const std::string& name = schedules[chance.below(schedules.size())];
      const std::string before = read(bundle + "/" + name), text = chance.change(before);
      write(bundle + "/" + name, text);
      write(bundle + "/bundle.json", with_size(manifest, name, text.size()));
      restore(bundle, width, height, i % 4 == 1);
      write(bundle + "/" + name, before);
      write(bundle + "/bundle.json", manifest);
    }
  }
  for (const auto& [status, times] : seen) std::printf("status %d: %u\n", status, times);
  return seen.count(VSR_OK) != 0 && seen.count(VSR_DAMAGED) != 0 ? 0 : 1;
}
#endif
