#include "run.hpp"

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <new>

#include "constants.hpp"
#include "noise.hpp"

namespace vsr {
namespace {

constexpr std::size_t kAlignment = 512;

std::size_t size(std::int64_t number) { return static_cast<std::size_t>(number); }

// Copies `count` frames along an axis from one array to another; those have `from` and `to` frames.
struct Frames {
  std::size_t outer, inner;  // pieces, and bytes of a frame in each
  void copy(const std::uint8_t* source, std::size_t from, std::size_t first, std::uint8_t* target, std::size_t to,
            std::size_t at, std::size_t number) const {
    for (std::size_t piece = 0; piece < outer; ++piece) {
      std::memcpy(target + (piece * to + at) * inner, source + (piece * from + first) * inner, number * inner);
    }
  }
};

Frames along(const Buffer& buffer, std::size_t axis) {
  return {count(buffer.shape, 0, axis), count(buffer.shape, axis + 1, buffer.shape.size()) * size_of(buffer.type)};
}

std::size_t operand(const std::vector<std::pair<std::string, std::size_t>>& side, const char* name) {
  for (const auto& [found, buffer] : side) {
    if (found == name) return buffer;
  }
  throw Failure(VSR_DAMAGED, std::string("a step has no ") + name + ".");  // was checked when the schedule was read
}

// The planes (all axes but the last two) of a picture or of a tile.
std::size_t planes(const Buffer& buffer) { return count(buffer.shape, 1, buffer.shape.size() - 2); }

}  // namespace

std::uint64_t Run::bytes(const Schedule& schedule) {
  std::uint64_t found = 0;
  for (const auto& block : schedule.blocks) found += block.second;
  return found;
}

Run::Run(const Bundle& bundle, Schedule schedule, std::shared_ptr<Runtime> runtime, const Sessions& sessions)
    : bundle_(bundle), schedule_(std::move(schedule)) {
  const auto machine =
      static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  if (bytes(schedule_) > machine)
    throw Failure(VSR_MEMORY, "the buffers of this size are larger than the machine's memory.");
  for (const auto& [block, bytes] : schedule_.blocks) {
    memory_[block].reset(std::calloc(bytes + kAlignment, 1));  // zeros, which take no memory until they are written
    if (!memory_[block]) throw std::bad_alloc();
    const auto address = reinterpret_cast<std::uintptr_t>(memory_[block].get());
    begins_[block] =
        static_cast<std::uint8_t*>(memory_[block].get()) + (kAlignment - address % kAlignment) % kAlignment;
  }
  for (std::size_t i = 0; i < schedule_.buffers.size(); ++i) {
    const Buffer& buffer = schedule_.buffers[i];
    if (!buffer.constant) continue;
    const Bytes numbers = constant(bundle_, schedule_, buffer);
    if (!numbers.empty()) std::memcpy(data(i), numbers.data(), numbers.size());
  }
  for (const Step& step : schedule_.steps) {
    calls_.emplace_back();
    if (step.action != Action::network) continue;
    Call call(runtime, sessions(step.network, schedule_.networks.at(step.network)));
    for (const bool input : {true, false}) {
      for (const auto& [name, index] : input ? step.reads : step.writes) {
        const Buffer& buffer = schedule_.buffers[index];
        Shape shape = buffer.shape;
        std::size_t offset = 0, bytes = buffer.bytes;
        if (step.partial && shape.size() >= 4 && shape[0] > 0) {
          const std::size_t each = bytes / size(shape[0]);
          offset = each * size(step.from);
          bytes = each * size(step.to - step.from);
          shape[0] = step.to - step.from;
        }
        call.add(input, name, data(index) + offset, bytes, shape, buffer.type);
      }
    }
    calls_.back().push_back(std::move(call));
  }
}

std::uint8_t* Run::data(std::size_t buffer) const {
  return begins_.at(schedule_.buffers[buffer].block) + schedule_.buffers[buffer].offset;
}

void Run::put(const Row& row, std::size_t index) {
  for (const Port& port : schedule_.takes) {
    const Buffer& buffer = schedule_.buffers[port.buffer];
    const Frames frames = along(buffer, port.axis);
    const auto found = row.find(port.name);
    if (found == row.end() || found->second->size() != frames.outer * frames.inner) {
      throw Failure(VSR_DAMAGED, "the schedule takes in " + port.name + ", and there is none of that size.");
    }
    frames.copy(found->second->data(), 1, 0, data(port.buffer), size(buffer.shape[port.axis]), index, 1);
  }
}

Row Run::get(std::size_t index) const {
  Row row;
  for (const Port& port : schedule_.gives) {
    const Buffer& buffer = schedule_.buffers[port.buffer];
    const Frames frames = along(buffer, port.axis);
    Bytes bytes(frames.outer * frames.inner);
    frames.copy(data(port.buffer), size(buffer.shape[port.axis]), index, bytes.data(), 1, 0, 1);
    row[port.name] = std::make_shared<const Bytes>(std::move(bytes));
  }
  return row;
}

void Run::add_noise(Row& row, std::uint32_t frame) const {
  for (const Port& port : schedule_.takes) {
    const auto found = schedule_.inputs.find(port.name);
    if (found == schedule_.inputs.end() || found->second.kind != Source::Kind::noise) continue;
    const Buffer& buffer = schedule_.buffers[port.buffer];
    if (buffer.type != Type::f32) throw Failure(VSR_DAMAGED, port.name + " is noise, and no float32.");
    const Frames frames = along(buffer, port.axis);
    std::vector<float> numbers(frames.outer * frames.inner / sizeof(float));
    draw(bundle_.value(found->second.seed).bits, found->second.name,
         static_cast<std::uint32_t>(found->second.row.value_or(0)), frame, numbers.size(), numbers.data());
    Bytes bytes(numbers.size() * sizeof(float));
    if (!bytes.empty()) std::memcpy(bytes.data(), numbers.data(), bytes.size());
    row[port.name] = std::make_shared<const Bytes>(std::move(bytes));
  }
}

void Run::execute(bool first, std::int64_t frame) {
  for (std::size_t index = 0; index < schedule_.steps.size(); ++index) {
    const Step& step = schedule_.steps[index];
    if (step.first && !first) continue;
    try {
      perform(step, index);
    } catch (const Failure& failure) {
      throw FrameFailure(failure.status() == VSR_MEMORY ? VSR_MEMORY : VSR_FRAME,
                         "frame " + std::to_string(frame) + ": " + step.stage + ": " + failure.message(), step.stage,
                         frame);
    }
  }
}

void Run::perform(const Step& step, std::size_t index) {
  switch (step.action) {
    case Action::host:
      return;
    case Action::network:
      return calls_[index].front().run(step.network);
    case Action::cut:
      return cut(step);
    case Action::blend:
      return blend(step);
    case Action::frames:
      return frames(step);
    case Action::copy:
      const std::size_t source = operand(step.reads, "source");
      std::memcpy(data(operand(step.writes, "target")), data(source), schedule_.buffers[source].bytes);
  }
}

void Run::cut(const Step& step) {
  const std::size_t from = operand(step.reads, "picture"), to = operand(step.writes, "tiles");
  const Buffer& picture = schedule_.buffers[from];
  const std::size_t each = size_of(picture.type), rank = picture.shape.size();
  const std::size_t wide = size(picture.shape[rank - 1]) * each, high = size(picture.shape[rank - 2]);
  const std::size_t row = size(step.grid.width) * each;
  std::uint8_t* tile = data(to);
  for (const std::int64_t top : step.grid.tops) {
    for (const std::int64_t left : step.grid.lefts) {
      for (std::size_t plane = 0; plane < planes(picture); ++plane) {
        const std::uint8_t* source = data(from) + (plane * high + size(top)) * wide + size(left) * each;
        for (std::int64_t y = 0; y < step.grid.height; ++y, tile += row, source += wide) std::memcpy(tile, source, row);
      }
    }
  }
}

// Tiles times their weights, added up in their order, and divided by the sum of the weights; in FP32.
void Run::blend(const Step& step) {
  const std::size_t from = operand(step.reads, "tiles"), to = operand(step.writes, "picture");
  const Buffer& picture = schedule_.buffers[to];
  const bool half = picture.type == Type::f16;
  const std::size_t rank = picture.shape.size(), each = size_of(picture.type);
  const std::size_t high = size(picture.shape[rank - 2]), wide = size(picture.shape[rank - 1]);
  const std::vector<float>& weights = schedule_.weights[step.grid.weights].values;
  std::vector<float> sums(planes(picture) * high * wide), total(high * wide);
  const std::uint8_t* tile = data(from);
  for (const std::int64_t top : step.grid.tops) {
    for (const std::int64_t left : step.grid.lefts) {
      for (std::size_t plane = 0; plane < planes(picture); ++plane) {
        for (std::size_t y = 0; y < size(step.grid.height); ++y) {
          const std::size_t row = (size(top) + y) * wide + size(left);
          const float* weight = &weights[y * size(step.grid.width)];
          for (std::size_t x = 0; x < size(step.grid.width); ++x, tile += each) {
            float value = 0;
            if (half) {
              std::uint16_t bits = 0;
              std::memcpy(&bits, tile, sizeof bits);
              value = from_half(bits);
            } else {
              std::memcpy(&value, tile, sizeof value);
            }
            sums[plane * high * wide + row + x] += value * weight[x];
            if (plane == 0) total[row + x] += weight[x];
          }
        }
      }
    }
  }
  std::uint8_t* target = data(to);
  for (std::size_t i = 0; i < sums.size(); ++i, target += each) {
    const float value = sums[i] / total[i % total.size()];
    if (half) {
      const std::uint16_t bits = to_half(value);
      std::memcpy(target, &bits, sizeof bits);
    } else {
      std::memcpy(target, &value, sizeof value);
    }
  }
}

void Run::frames(const Step& step) {
  const std::size_t from = operand(step.reads, "source"), to = operand(step.writes, "target");
  const Buffer &source = schedule_.buffers[from], &target = schedule_.buffers[to];
  const std::size_t axis = step.span.axis;
  const bool row = target.shape.size() < source.shape.size();  // the target of a single row may lack the axis
  along(source, axis)
      .copy(data(from), size(source.shape[axis]), size(step.span.source), data(to), row ? 1 : size(target.shape[axis]),
            size(step.span.target), size(step.span.count));
}

}  // namespace vsr
