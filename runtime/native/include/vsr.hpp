// vsr.hpp: vsr.h for C++17: handles that free themselves, exceptions in place of statuses, a range over restored
// frames.
#ifndef VSR_HPP
#define VSR_HPP

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "vsr.h"

namespace vsr {

// What failed: what() is a sentence; see vsr_error_status, vsr_error_stage and vsr_error_frame.
class Error : public std::runtime_error {
 public:
  Error(vsr_status status, const std::string& message, std::string stage = {}, std::int64_t frame = -1)
      : std::runtime_error(message), status_(status), stage_(std::move(stage)), frame_(frame) {}
  vsr_status status() const noexcept { return status_; }
  const std::string& stage() const noexcept { return stage_; }
  std::int64_t frame() const noexcept { return frame_; }

 private:
  vsr_status status_;
  std::string stage_;
  std::int64_t frame_;
};

namespace detail {

// Throws what a call failed with; true for VSR_OK, false for VSR_NONE.
inline bool check(vsr_status status, vsr_error* raw) {
  const std::unique_ptr<vsr_error, void (*)(vsr_error*)> error(raw, vsr_error_free);
  if (status == VSR_OK || status == VSR_NONE) return status == VSR_OK;
  if (!error) throw Error(status, "vsr: status " + std::to_string(static_cast<int>(status)));
  throw Error(status, vsr_error_message(raw), vsr_error_stage(raw), vsr_error_frame(raw));
}

}  // namespace detail

// Pixels of its own: rows of 3 bytes a pixel, RGB, without gaps.
struct Picture {
  std::uint32_t width = 0;
  std::uint32_t height = 0;
  std::vector<std::uint8_t> pixels;

  Picture() = default;
  Picture(std::uint32_t w, std::uint32_t h) : width(w), height(h), pixels(std::size_t{3} * w * h) {}

  vsr_image image() {
    return {sizeof(vsr_image), pixels.data(), std::size_t{3} * width, width, height, VSR_RGB8, VSR_HOST, nullptr};
  }
};

class Model;

// A clip: frames of one size, in order. Used by one thread at a time.
class Stream {
 public:
  using Progress = std::function<void(const char* phase, std::uint64_t done, std::uint64_t total)>;

  // Takes the next frame; the oldest result that is ready, if there is one.
  std::optional<Picture> push(Picture& frame) {
    return result([&](vsr_image* into, vsr_error** error) {
      const vsr_image image = frame.image();
      return vsr_push(handle_.get(), &image, into, error);
    });
  }
  // The same without copies of the library's: pictures may be anywhere. Whether `into` was filled.
  bool push(const vsr_image& frame, vsr_image& into) {
    vsr_error* error = nullptr;
    const vsr_status status = vsr_push(handle_.get(), &frame, &into, &error);
    return detail::check(status, error);
  }
  // The next result as if no frame followed; nothing when all were returned.
  std::optional<Picture> flush() {
    return result([&](vsr_image* into, vsr_error** error) { return vsr_flush(handle_.get(), into, error); });
  }
  bool flush(vsr_image& into) {
    vsr_error* error = nullptr;
    const vsr_status status = vsr_flush(handle_.get(), &into, &error);
    return detail::check(status, error);
  }
  // The next frame has no predecessor.
  void reset() {
    vsr_error* error = nullptr;
    const vsr_status status = vsr_reset(handle_.get(), &error);
    detail::check(status, error);
  }
  // Has progress passed on, in the thread of the call; an empty function for none.
  void progress(Progress function) {
    auto kept = std::make_unique<Progress>(std::move(function));
    const bool any = static_cast<bool>(*kept);
    detail::check(vsr_stream_progress(handle_.get(), any ? &tell : nullptr, kept.get()), nullptr);
    progress_ = std::move(kept);
  }

  std::uint32_t result_width() const noexcept { return width_; }
  std::uint32_t result_height() const noexcept { return height_; }

  // Restored frames of a range of pictures, as they are asked for: `for (Picture& p : stream.restore(frames))`. The
  // frames must live as long as the range.
  template <class Frames>
  class Range;
  template <class Frames>
  Range<Frames> restore(Frames& frames) {
    return Range<Frames>(*this, frames);
  }

 private:
  friend class Model;
  struct Destroy {
    void operator()(vsr_stream* stream) const noexcept { vsr_stream_destroy(stream); }
  };

  Stream(vsr_stream* stream, std::uint32_t width, std::uint32_t height)
      : handle_(stream), width_(width), height_(height) {}

  static void tell(void* user, const char* phase, std::uint64_t done, std::uint64_t total) {
    (*static_cast<Progress*>(user))(phase, done, total);
  }

  template <class Call>
  std::optional<Picture> result(Call call) {
    Picture picture(width_, height_);
    vsr_image into = picture.image();
    vsr_error* error = nullptr;
    const vsr_status status = call(&into, &error);
    if (!detail::check(status, error)) return std::nullopt;
    return picture;
  }

  std::unique_ptr<Progress> progress_;
  std::unique_ptr<vsr_stream, Destroy> handle_;
  std::uint32_t width_, height_;
};

template <class Frames>
class Stream::Range {
 public:
  struct End {};
  class Iterator {
   public:
    explicit Iterator(Range& range) : range_(&range) { range_->next(); }
    Picture& operator*() const { return *range_->now_; }
    Iterator& operator++() {
      range_->next();
      return *this;
    }
    bool operator!=(End) const { return range_->now_.has_value(); }

   private:
    Range* range_;
  };

  Range(Stream& stream, Frames& frames) : stream_(stream), next_(std::begin(frames)), end_(std::end(frames)) {}
  Iterator begin() { return Iterator(*this); }
  End end() const { return {}; }

 private:
  void next() {
    now_.reset();
    while (!now_ && next_ != end_) {
      now_ = stream_.push(*next_);
      ++next_;
    }
    if (!now_) now_ = stream_.flush();
  }

  Stream& stream_;
  decltype(std::begin(std::declval<Frames&>())) next_;
  decltype(std::end(std::declval<Frames&>())) end_;
  std::optional<Picture> now_;
};

// An opened bundle; shared by any number of threads.
class Model {
 public:
  using Options = std::vector<std::pair<std::string, std::string>>;

  explicit Model(const std::string& bundle, const Options& options = {}) {
    std::vector<vsr_option> given;
    for (const auto& option : options) given.push_back({option.first.c_str(), option.second.c_str()});
    vsr_model* model = nullptr;
    vsr_error* error = nullptr;
    const vsr_status status = vsr_open(bundle.c_str(), given.data(), given.size(), &model, &error);
    detail::check(status, error);
    handle_.reset(model);
  }

  // How many times larger the sides of a result are than a frame's.
  std::uint32_t scale() const noexcept { return vsr_scale(handle_.get()); }

  // What frames of a size take.
  vsr_memory plan(std::uint32_t width, std::uint32_t height) const {
    vsr_memory memory{};
    memory.struct_size = sizeof memory;
    vsr_error* error = nullptr;
    const vsr_status status = vsr_plan(handle_.get(), width, height, &memory, &error);
    detail::check(status, error);
    return memory;
  }

  // A stream for frames of a size.
  Stream stream(std::uint32_t width, std::uint32_t height) const {
    const vsr_memory memory = plan(width, height);
    vsr_stream* stream = nullptr;
    vsr_error* error = nullptr;
    const vsr_status status = vsr_stream_create(handle_.get(), width, height, &stream, &error);
    detail::check(status, error);
    return {stream, memory.result_width, memory.result_height};
  }

 private:
  struct Close {
    void operator()(vsr_model* model) const noexcept { vsr_close(model); }
  };
  std::unique_ptr<vsr_model, Close> handle_;
};

}  // namespace vsr

#endif
