// The C interface: arguments are looked at, and what is thrown inside becomes a status and a sentence.
#include <atomic>
#include <cstring>
#include <new>
#include <set>

#include "model.hpp"

#ifndef VSR_VERSION
#define VSR_VERSION "0"
#endif

struct vsr_error {
  vsr_status status;
  std::string message, stage;
  std::int64_t frame;
};

struct vsr_model {
  std::shared_ptr<vsr::Model> model;
};

struct vsr_stream {
  vsr::Stream stream;
  std::shared_ptr<vsr::Model> model;
};

namespace vsr {
namespace {

std::mutex log_lock;
vsr_log_function log_function = nullptr;
void* log_user = nullptr;

constexpr std::size_t kImage = sizeof(vsr_image), kMemory = sizeof(vsr_memory);  // of version 0

vsr_status tell(vsr_error** error, vsr_status status, const std::string& message, const std::string& stage = "",
                std::int64_t frame = -1) noexcept {
  if (error == nullptr) return status;
  try {
    *error = new vsr_error{status, message, stage, frame};
  } catch (...) {
    *error = nullptr;  // no memory for a sentence
  }
  return status;
}

// Does a call's work; whatever leaves it becomes a status.
template <class Work>
vsr_status guarded(vsr_error** error, Work work) noexcept {
  if (error != nullptr) *error = nullptr;
  try {
    return work();
  } catch (const FrameFailure& failure) {
    return tell(error, failure.status(), failure.message(), failure.stage(), failure.frame());
  } catch (const Failure& failure) {
    return tell(error, failure.status(), failure.message());
  } catch (const std::bad_alloc&) {
    return tell(error, VSR_MEMORY, "there is not enough memory.");
  } catch (const std::filesystem::filesystem_error& failure) {
    return tell(error, VSR_DAMAGED, failure.what());
  } catch (const std::exception& failure) {
    return tell(error, VSR_DEVICE, failure.what());
  } catch (...) {
    return tell(error, VSR_DEVICE, "an unknown error.");
  }
}

void need(bool given, const char* what) {
  if (!given) throw Failure(VSR_ARGUMENT, std::string(what) + " is NULL.");
}

// A structure of another version: a shorter one has not what is needed; a longer one may, if the rest is not used.
void check_size(const void* structure, std::size_t size, std::size_t known, const char* what) {
  const auto* bytes = static_cast<const unsigned char*>(structure);
  bool fits = size >= known && size <= 4096;
  for (std::size_t i = known; fits && i < size; ++i) fits = bytes[i] == 0;
  if (fits) return;
  throw Failure(VSR_ARGUMENT, std::string(what) + ": struct_size is " + std::to_string(size) + ", this library (" +
                                  VSR_VERSION + ") knows " + std::to_string(known) + " bytes" +
                                  (size > known ? ", and what is behind them is not 0." : ", and needs all of them."));
}

void check_image(const vsr_image* image, Sides expected, const char* what) {
  need(image != nullptr, what);
  check_size(image, image->struct_size, kImage, what);
  const auto refuse = [&](const std::string& clause) { throw Failure(VSR_ARGUMENT, std::string(what) + clause); };
  if (image->format != VSR_RGB8) refuse(": format " + std::to_string(image->format) + " is not known.");
  if (image->memory != VSR_HOST || image->stream != nullptr)
    refuse(": only memory of the host, without a stream, is taken.");
  need(image->data != nullptr, what);
  if (image->width != expected.width || image->height != expected.height) {
    refuse(" is of " + std::to_string(image->width) + "x" + std::to_string(image->height) + ", expected " +
           std::to_string(expected.width) + "x" + std::to_string(expected.height) + ".");
  }
  if (image->stride < std::size_t{3} * image->width) refuse(": the stride is below 3 * width.");
}

Sides sides(std::uint32_t width, std::uint32_t height) {
  if (width == 0 || height == 0 || width > 65535 || height > 65535) {
    throw Failure(VSR_ARGUMENT, "frames of " + std::to_string(width) + "x" + std::to_string(height) +
                                    " pixels; expected 1 to 65535.");
  }
  return {height, width};
}

// One call at a time.
class Inside {
 public:
  explicit Inside(Stream& stream) : stream_(stream) {
    if (stream.busy.test_and_set())
      throw Failure(VSR_BUSY, "another call is inside of this stream; make one for each clip.");
  }
  ~Inside() { stream_.busy.clear(); }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;

 private:
  Stream& stream_;
};

vsr_status give(Stream& stream, vsr_image* result) {
  Bytes pixels;
  if (!stream.next(pixels)) return VSR_NONE;
  const std::size_t row = std::size_t{3} * result->width;
  for (std::size_t y = 0; y < result->height; ++y) {
    std::memcpy(static_cast<std::uint8_t*>(result->data) + y * result->stride, &pixels[y * row], row);
  }
  return VSR_OK;
}

}  // namespace

void log_line(const std::string& line) {
  const std::lock_guard<std::mutex> lock(log_lock);
  if (log_function != nullptr) log_function(log_user, line.c_str());
}

}  // namespace vsr

using namespace vsr;

const char* vsr_version(void) { return VSR_VERSION; }

void vsr_log(vsr_log_function function, void* user) {
  const std::lock_guard<std::mutex> lock(log_lock);
  log_function = function;
  log_user = user;
}

vsr_status vsr_open(const char* bundle, const vsr_option* options, size_t count, vsr_model** model, vsr_error** error) {
  return guarded(error, [&] {
    need(model != nullptr, "model");
    *model = nullptr;
    need(bundle != nullptr, "bundle");
    need(options != nullptr || count == 0, "options");
    std::vector<std::pair<std::string, std::string>> given;
    for (std::size_t i = 0; i < count; ++i) {
      need(options[i].key != nullptr && options[i].value != nullptr, "an option's key or value");
      given.emplace_back(options[i].key, options[i].value);
    }
    *model = new vsr_model{std::make_shared<Model>(bundle, given)};
    return VSR_OK;
  });
}

uint32_t vsr_scale(const vsr_model* model) {
  return model != nullptr ? static_cast<uint32_t>(model->model->bundle.scale) : 0;
}

vsr_status vsr_plan(vsr_model* model, uint32_t width, uint32_t height, vsr_memory* memory, vsr_error** error) {
  return guarded(error, [&] {
    need(model != nullptr, "model");
    need(memory != nullptr, "memory");
    check_size(memory, memory->struct_size, kMemory, "memory");
    const Sides frame = sides(width, height);
    const Bundle& bundle = model->model->bundle;
    const std::size_t size = memory->struct_size;
    *memory = vsr_memory{};
    memory->struct_size = size;
    std::set<std::string> networks;
    for (const Phase& phase : bundle.phases) {
      if (phase.window.frames == 0) continue;  // its buffers are as long as the clip
      const Schedule schedule = model->model->schedule(frame, phase, phase.window.frames);
      memory->buffers = std::max<std::uint64_t>(memory->buffers, Run::bytes(schedule));
      memory->result_width = static_cast<std::uint32_t>(schedule.picture.result().width);
      memory->result_height = static_cast<std::uint32_t>(schedule.picture.result().height);
      for (const auto& network : schedule.networks) networks.insert(network.first);
    }
    for (const std::string& network : networks) memory->weights += bundle.weights(network, model->model->on_cpu());
    memory->window = bundle.phases.size() > 1 ? 0 : static_cast<std::uint32_t>(bundle.phases.front().window.frames);
    return VSR_OK;
  });
}

vsr_status vsr_stream_create(vsr_model* model, uint32_t width, uint32_t height, vsr_stream** stream,
                             vsr_error** error) {
  return guarded(error, [&] {
    need(stream != nullptr, "stream");
    *stream = nullptr;
    need(model != nullptr, "model");
    *stream = new vsr_stream{{model->model, sides(width, height)}, model->model};
    return VSR_OK;
  });
}

vsr_status vsr_stream_progress(vsr_stream* stream, vsr_progress_function function, void* user) {
  return guarded(nullptr, [&] {
    need(stream != nullptr, "stream");
    const Inside inside(stream->stream);
    stream->stream.progress = nullptr;
    if (function != nullptr) {
      stream->stream.progress = [=](const std::string& phase, std::uint64_t done, std::uint64_t total) {
        function(user, phase.c_str(), done, total);
      };
    }
    return VSR_OK;
  });
}

vsr_status vsr_push(vsr_stream* stream, const vsr_image* frame, vsr_image* result, vsr_error** error) {
  return guarded(error, [&] {
    need(stream != nullptr, "stream");
    const Inside inside(stream->stream);
    check_image(frame, stream->stream.frame(), "the frame");
    check_image(result, stream->stream.result(), "the result");
    const std::size_t row = std::size_t{3} * frame->width;
    Bytes pixels(row * frame->height);
    for (std::size_t y = 0; y < frame->height; ++y) {
      std::memcpy(&pixels[y * row], static_cast<const std::uint8_t*>(frame->data) + y * frame->stride, row);
    }
    stream->stream.push(pixels);
    return give(stream->stream, result);
  });
}

vsr_status vsr_flush(vsr_stream* stream, vsr_image* result, vsr_error** error) {
  return guarded(error, [&] {
    need(stream != nullptr, "stream");
    const Inside inside(stream->stream);
    check_image(result, stream->stream.result(), "the result");
    if (give(stream->stream, result) == VSR_OK) return VSR_OK;
    stream->stream.end_clip();
    return give(stream->stream, result);
  });
}

vsr_status vsr_reset(vsr_stream* stream, vsr_error** error) {
  return guarded(error, [&] {
    need(stream != nullptr, "stream");
    const Inside inside(stream->stream);
    stream->stream.reset();
    return VSR_OK;
  });
}

vsr_status vsr_stream_destroy(vsr_stream* stream) {
  if (stream == nullptr) return VSR_OK;
  if (stream->stream.busy.test_and_set()) return VSR_BUSY;
  delete stream;
  return VSR_OK;
}

void vsr_close(vsr_model* model) { delete model; }

const char* vsr_error_message(const vsr_error* error) { return error != nullptr ? error->message.c_str() : ""; }
vsr_status vsr_error_status(const vsr_error* error) { return error != nullptr ? error->status : VSR_OK; }
const char* vsr_error_stage(const vsr_error* error) { return error != nullptr ? error->stage.c_str() : ""; }
int64_t vsr_error_frame(const vsr_error* error) { return error != nullptr ? error->frame : -1; }
void vsr_error_free(vsr_error* error) { delete error; }
