// A schedule under way: its memory, and what its steps do to it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ort.hpp"
#include "picture.hpp"
#include "schedule.hpp"

namespace vsr {

// What belongs to a frame between phases: numbers by the name of their buffer in the manifest.
using Row = std::map<std::string, std::shared_ptr<const Bytes>>;

class Run {
 public:
  using Sessions = std::function<std::shared_ptr<Session>(const std::string& network, const Graphs&)>;

  // Failure: constants that do not fit, not enough memory, or a network that cannot be loaded.
  Run(const Bundle& bundle, Schedule schedule, std::shared_ptr<Runtime> runtime, const Sessions& sessions);

  const Schedule& schedule() const { return schedule_; }
  // Puts a frame into the window that comes next, as the index-th; noise of the clip's frame `number` with it.
  void put(const Row& row, std::size_t index);
  // Takes the window through all steps. `first`: it has no predecessor. `frame`: of its first frame, for messages.
  void execute(bool first, std::int64_t frame);
  // What came of the index-th frame.
  Row get(std::size_t index) const;
  // Adds to a frame's row the noise that comes in with it.
  void add_noise(Row& row, std::uint32_t frame) const;
  // Bytes of all blocks.
  static std::uint64_t bytes(const Schedule& schedule);

 private:
  struct Free {
    void operator()(void* pointer) const { std::free(pointer); }
  };

  std::uint8_t* data(std::size_t buffer) const;
  void perform(const Step& step, std::size_t index);
  void cut(const Step& step);
  void blend(const Step& step);
  void frames(const Step& step);

  const Bundle& bundle_;
  Schedule schedule_;
  std::map<Block, std::unique_ptr<void, Free>> memory_;
  std::map<Block, std::uint8_t*> begins_;
  std::vector<std::vector<Call>> calls_;  // of each step, none or one
};

}  // namespace vsr
