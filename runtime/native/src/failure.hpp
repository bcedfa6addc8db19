// What the library throws inside: a status and a sentence; and the lines of its log.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <utility>

#include "vsr.h"

namespace vsr {

class Failure : public std::exception {
 public:
  Failure(vsr_status status, std::string message) : status_(status), message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }
  vsr_status status() const noexcept { return status_; }
  const std::string& message() const noexcept { return message_; }

 private:
  vsr_status status_;
  std::string message_;
};

// A frame that failed in a step of a stage.
class FrameFailure : public Failure {
 public:
  FrameFailure(vsr_status status, const std::string& message, std::string stage, std::int64_t frame)
      : Failure(status, message), stage_(std::move(stage)), frame_(frame) {}
  const std::string& stage() const noexcept { return stage_; }
  std::int64_t frame() const noexcept { return frame_; }

 private:
  std::string stage_;
  std::int64_t frame_;
};

// Writes a line to the application's log, if it has one.
void log_line(const std::string& line);

}  // namespace vsr
