// From frames to windows of frames and back: runtime/devices/windows.py in C++.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "run.hpp"

namespace vsr {

// A window that is complete: its frames in order, the first one's number in the clip, and which results are returned.
struct Gathered {
  std::vector<Row> frames;
  std::int64_t first = 0;
  std::int64_t from = 0, to = 0;
};

class Gatherer {
 public:
  explicit Gatherer(std::int64_t frames = 1, std::int64_t overlap = 0) : size_(frames), overlap_(overlap) {}

  // Whether frames were taken whose window is not complete.
  bool waiting() const { return first_ + kept() != returned_; }

  // Takes a frame. A window of several waits for the frame behind it, because a clip's last window is another one.
  std::optional<Gathered> push(Row frame) {
    kept_.push_back(std::move(frame));
    if (first_ + kept() - (start_ + size_) < (size_ == 1 ? 0 : 1)) return {};
    const std::int64_t later = overlap_ - overlap_ / 2;  // results that are the next window's
    Gathered found = gathered(start_, start_ + size_ - later);
    start_ += size_ - overlap_;
    const std::int64_t drop = size_ == 1 ? kept() : std::max<std::int64_t>(kept() - size_, 0);
    kept_.erase(kept_.begin(), kept_.begin() + static_cast<std::ptrdiff_t>(drop));
    first_ += drop;
    return found;
  }

  // The window for the frames that wait, as if the clip ended here.
  std::optional<Gathered> flush() {
    const std::int64_t end = first_ + kept();
    if (end == returned_) return {};
    Gathered found = gathered(std::max(end - size_, first_), end);
    kept_.clear();
    first_ = start_ = returned_ = end;
    return found;
  }

 private:
  std::int64_t kept() const { return static_cast<std::int64_t>(kept_.size()); }

  // The window from `start` on, and of its results those up to frame `end` that nobody was asked for.
  Gathered gathered(std::int64_t start, std::int64_t end) {
    Gathered found;
    for (std::int64_t i = start - first_; i < kept() && i - (start - first_) < size_; ++i) {
      found.frames.push_back(kept_[static_cast<std::size_t>(i)]);
    }
    while (static_cast<std::int64_t>(found.frames.size()) < size_) found.frames.push_back(Row(found.frames.back()));
    found.first = start;
    found.from = returned_ - start;
    found.to = end - start;
    returned_ = end;
    return found;
  }

  std::int64_t size_, overlap_;
  std::vector<Row> kept_;  // the last frames, at least those that the next window begins with
  std::int64_t first_ = 0, start_ = 0, returned_ = 0;
};

}  // namespace vsr
