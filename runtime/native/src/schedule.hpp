// A stored schedule, read and checked: whatever it says can be executed without leaving its buffers.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bundle.hpp"

namespace vsr {

enum class Type { u8, f32, f16, i32, i64, boolean };
std::size_t size_of(Type type);

enum class Block { slot, staging, shared, none };
enum class Action { host, network, cut, blend, copy, frames };

using Shape = std::vector<std::int64_t>;
// Product of the sides from `first` to before `last`; sizes were checked when the schedule was read.
std::size_t count(const Shape& shape, std::size_t first, std::size_t last);

struct Buffer {
  std::string name;
  Shape shape;
  Type type = Type::u8;
  Block block = Block::none;
  bool constant = false;
  std::size_t offset = 0;
  std::size_t bytes = 0;
};

struct Port {
  std::string name;  // of what comes in or goes out
  std::size_t buffer = 0;
  std::size_t axis = 0;  // along which a window's frames are counted
};

struct Grid {
  std::vector<std::int64_t> tops, lefts;  // in numbers of the operand
  std::int64_t height = 0, width = 0;
  std::size_t weights = 0;  // of a blend: which of the schedule's
  std::size_t tiles() const { return tops.size() * lefts.size(); }
};

struct Span {
  std::size_t axis = 0;
  std::int64_t source = 0, target = 0, count = 0;
};

struct Step {
  std::string name, stage, network;
  Action action = Action::host;
  std::vector<std::pair<std::string, std::size_t>> reads, writes;  // operand -> buffer
  bool partial = false;  // takes pictures from `from` to before `to` of the batch
  std::int64_t from = 0, to = 0;
  bool first = false;  // only where a frame has no predecessor
  Grid grid;
  Span span;
};

struct Sides {
  std::int64_t height = 0, width = 0;
};

struct Picture {
  Sides frame, inner, given, corner;
  std::uint8_t border = 0;
  std::int64_t scale = 1;
  Sides result() const { return {frame.height * scale, frame.width * scale}; }
};

struct Source {
  enum class Kind { zeros, file, option, noise } kind = Kind::zeros;
  std::string name, seed;
  std::optional<std::int64_t> row;  // of a table; the step of noise
};

struct Graphs {
  std::string cpu, provider;  // files of the bundle
};

struct Weights {
  std::string window;
  std::int64_t height = 0, width = 0, overlap = 0;
  std::vector<float> values;  // height rows of width
};

struct Schedule {
  std::vector<Buffer> buffers;
  std::vector<Step> steps;
  std::vector<Port> takes, gives;
  std::vector<Weights> weights;
  std::map<std::string, Graphs> networks;
  std::map<std::string, Source> inputs;
  std::map<Block, std::size_t> blocks;  // bytes
  Picture picture;
  bool last = true;

  std::size_t window() const;  // frames that go through at once
  std::size_t buffer(const std::string& name, const Node& from) const;

  // Whether a file was written for the values that the bundle's options have.
  static bool was_written_for(const Node& file, const Bundle& bundle);
  // Reads a file. Failure: of another format, damaged, or without what a host needs.
  static Schedule parse(const Node& file);
};

}  // namespace vsr
