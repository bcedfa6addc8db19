#include "schedule.hpp"

#include <algorithm>
#include <set>

namespace vsr {
namespace {

constexpr std::int64_t kFormat = 3;
constexpr std::int64_t kMost = std::int64_t{1} << 40;  // of a side, and bytes of a buffer
constexpr std::size_t kAlignment = 512;

const std::map<std::string, Type> kTypes = {{"uint8", Type::u8},  {"float32", Type::f32}, {"float16", Type::f16},
                                            {"int32", Type::i32}, {"int64", Type::i64},   {"bool", Type::boolean}};
const std::map<std::string, Block> kBlocks = {
    {"slot", Block::slot}, {"staging", Block::staging}, {"shared", Block::shared}, {"scratch", Block::none}};
const std::map<std::string, std::string> kKinds = {
    {"slot", "slot"}, {"staging", "staging"}, {"state", "shared"}, {"constant", "shared"}, {"scratch", "scratch"}};
const std::map<std::string, Action> kActions = {
    {"receive", Action::host}, {"deliver", Action::host},  {"network", Action::network},
    {"cut", Action::cut},      {"blend", Action::blend},   {"copy", Action::copy},
    {"upload", Action::copy},  {"download", Action::copy}, {"frames", Action::frames}};

template <class T>
T one_of(const std::map<std::string, T>& known, const Node& node) {
  const auto found = known.find(node.text());
  if (found == known.end()) node.misfit("is '" + node.text() + "', which this library does not know");
  return found->second;
}

Buffer buffer_of(const Node& node) {
  Buffer found;
  found.name = node["name"].text();
  found.shape = node["shape"].integers(0);
  found.type = one_of(kTypes, node["dtype"]);
  found.constant = node["kind"].text() == "constant";
  if (one_of(kKinds, node["kind"]) != node["block"].text()) node.misfit("is in a block that is not its kind's");
  found.block = one_of(kBlocks, node["block"]);
  std::int64_t bytes = static_cast<std::int64_t>(size_of(found.type));
  for (const std::int64_t side : found.shape) {
    if (side != 0 && bytes > kMost / side) node.misfit("is too large");
    bytes *= side;
  }
  if (node["bytes"].integer(0) != bytes) node.misfit("has a size that does not follow from its shape");
  found.bytes = static_cast<std::size_t>(bytes);
  found.offset = static_cast<std::size_t>(node["offset"].integer(0, kMost));
  return found;
}

Sides sides_of(const Node& node, std::int64_t least) {
  const std::vector<Node> items = node.items();
  if (items.size() != 2) node.misfit("is not a height and a width");
  return {items[0].integer(least, 1 << 16), items[1].integer(least, 1 << 16)};
}

Picture picture_of(const Node& node) {
  Picture found;
  found.frame = sides_of(node["frame"], 1);
  found.inner = sides_of(node["inner"], 1);
  found.given = sides_of(node["given"], 1);
  found.corner = sides_of(node["corner"], 0);
  found.border = static_cast<std::uint8_t>(node["border"].integer(0, 255));
  found.scale = node["scale"].integer(1, 64);
  if (found.corner.height + found.inner.height > found.given.height ||
      found.corner.width + found.inner.width > found.given.width) {
    node.misfit("has a frame that leaves its canvas");
  }
  return found;
}

Source source_of(const Node& node) {
  using Kind = Source::Kind;
  static const std::map<std::string, Kind> kinds = {
      {"zeros", Kind::zeros}, {"file", Kind::file}, {"option", Kind::option}, {"noise", Kind::noise}};
  Source found;
  found.kind = one_of(kinds, node["kind"]);
  if (found.kind != Kind::zeros) found.name = node["name"].text();
  if (found.kind == Kind::noise) found.seed = node["seed"].text();
  if (!node["row"].null()) found.row = node["row"].integer(0, 1 << 20);
  return found;
}

Weights weights_of(const Node& node) {
  Weights found;
  found.window = node["window"].text();
  found.height = node["height"].integer(1, 1 << 16);
  found.width = node["width"].integer(1, 1 << 16);
  found.overlap = node["overlap"].integer(0);
  std::vector<double> down, across;
  for (const Node& item : node["down"].items()) down.push_back(item.number());
  for (const Node& item : node["across"].items()) across.push_back(item.number());
  if (static_cast<std::int64_t>(down.size()) != found.height ||
      static_cast<std::int64_t>(across.size()) != found.width) {
    node.misfit("has not as many numbers as its sides");
  }
  found.values.reserve(down.size() * across.size());
  for (const double row : down) {
    for (const double column : across) found.values.push_back(static_cast<float>(row * column));
  }
  return found;
}

std::vector<Port> ports_of(const Schedule& schedule, const Node& node) {
  std::vector<Port> found;
  for (const auto& [name, port] : node.fields()) {
    const std::size_t buffer = schedule.buffer(port["buffer"].text(), port);
    const Shape& shape = schedule.buffers[buffer].shape;
    const std::int64_t axis = port["axis"].integer(0);
    if (schedule.buffers[buffer].block != Block::staging) port.misfit("is no staging buffer");
    if (axis >= static_cast<std::int64_t>(shape.size())) port.misfit("has no such axis");
    found.push_back({name, buffer, static_cast<std::size_t>(axis)});
  }
  if (found.empty()) node.misfit("is empty");
  return found;
}

// The operand of a step, of which an action needs it.
const Buffer& operand(const Schedule& schedule, const std::vector<std::pair<std::string, std::size_t>>& side,
                      const char* name, const Node& node) {
  for (const auto& [found, buffer] : side) {
    if (found == name) return schedule.buffers[buffer];
  }
  node.misfit(std::string("has no ") + name);
}

void check_tiles(const Schedule& schedule, Step& step, const Node& node) {
  const bool cut = step.action == Action::cut;
  const Node grid = node["grid"];
  const std::int64_t factor = node["factor"].integer(1, 1 << 16);
  const auto side = [&](const char* name, std::int64_t least) { return grid[name].integer(least, 1 << 16) * factor; };
  step.grid.height = side("height", 1);
  step.grid.width = side("width", 1);
  for (const std::int64_t top : grid["tops"].integers(0))
    step.grid.tops.push_back(std::min(top, kMost / factor) * factor);
  for (const std::int64_t left : grid["lefts"].integers(0))
    step.grid.lefts.push_back(std::min(left, kMost / factor) * factor);
  const Buffer& picture = operand(schedule, cut ? step.reads : step.writes, "picture", node);
  const Buffer& tiles = operand(schedule, cut ? step.writes : step.reads, "tiles", node);
  const std::size_t rank = picture.shape.size();
  bool fits = rank >= 3 && tiles.shape.size() == rank && picture.type == tiles.type && picture.shape[0] == 1;
  fits = fits && tiles.shape[0] == static_cast<std::int64_t>(step.grid.tiles()) && step.grid.tiles() != 0;
  for (std::size_t axis = 1; fits && axis + 2 < rank; ++axis) fits = picture.shape[axis] == tiles.shape[axis];
  fits = fits && tiles.shape[rank - 2] == step.grid.height && tiles.shape[rank - 1] == step.grid.width;
  for (const std::int64_t top : step.grid.tops) fits = fits && top + step.grid.height <= picture.shape[rank - 2];
  for (const std::int64_t left : step.grid.lefts) fits = fits && left + step.grid.width <= picture.shape[rank - 1];
  if (!fits) node.misfit("has tiles that do not fit its buffers");
  if (cut) return;
  if (picture.type != Type::f32 && picture.type != Type::f16) node.misfit("blends what are no floating point numbers");
  const std::string window = grid["window"].text();
  const std::int64_t overlap = side("overlap", 0);
  const auto found = std::find_if(schedule.weights.begin(), schedule.weights.end(), [&](const Weights& w) {
    return w.window == window && w.height == step.grid.height && w.width == step.grid.width && w.overlap == overlap;
  });
  if (found == schedule.weights.end()) node.misfit("has tiles without weights");
  step.grid.weights = static_cast<std::size_t>(found - schedule.weights.begin());
}

void check_copy(const Schedule& schedule, Step& step, const Node& node) {
  const Buffer& source = operand(schedule, step.reads, "source", node);
  const Buffer& target = operand(schedule, step.writes, "target", node);
  if (source.type != target.type) node.misfit("copies between types");
  if (step.action == Action::copy) {
    if (source.shape != target.shape) node.misfit("copies between sizes");
    return;
  }
  const Node span = node["span"];
  const std::int64_t axis = span["axis"].integer(0);
  step.span = {static_cast<std::size_t>(axis), span["source"].integer(0, kMost), span["target"].integer(0, kMost),
               span["count"].integer(1, kMost)};
  Shape rows = source.shape, into = target.shape;
  if (axis == 0 && step.span.count == 1 && into.size() + 1 == rows.size()) into.insert(into.begin(), 1);
  const std::size_t at = step.span.axis;
  bool fits = rows.size() == into.size() && at < rows.size();
  fits = fits && step.span.source + step.span.count <= rows[at] && step.span.target + step.span.count <= into[at];
  if (fits) into[at] = rows[at];
  if (!fits || rows != into) node.misfit("copies frames that are not in its buffers");
}

void check_network(const Schedule& schedule, Step& step, const Node& node) {
  step.network = node["network"].text();
  if (schedule.networks.find(step.network) == schedule.networks.end()) node.misfit("runs a network that has no graph");
  if (node["part"].null()) return;
  const std::vector<std::int64_t> part = node["part"].integers(0);
  if (part.size() != 2 || part[0] >= part[1]) node.misfit("has a part that is none");
  step.partial = true;
  step.from = part[0];
  step.to = part[1];
  for (const auto* side : {&step.reads, &step.writes}) {
    for (const auto& item : *side) {
      const Shape& shape = schedule.buffers[item.second].shape;
      if (shape.size() >= 4 && step.to > shape[0]) node.misfit("has a part that leaves its batch");
    }
  }
}

Step step_of(const Schedule& schedule, const Node& node) {
  Step step;
  step.name = node["name"].text();
  step.stage = node["stage"].text();
  step.action = one_of(kActions, node["action"]);
  step.first = node["first"].boolean();
  for (const bool reads : {true, false}) {
    auto& side = reads ? step.reads : step.writes;
    for (const auto& [name, buffer] : node[reads ? "reads" : "writes"].fields()) {
      side.emplace_back(name, schedule.buffer(buffer.text(), buffer));
      const Buffer& found = schedule.buffers[side.back().second];
      if (found.block == Block::none) buffer.misfit("is scratch");
      if (found.constant && !reads) buffer.misfit("is a constant, and written");
    }
  }
  if (step.action == Action::network) check_network(schedule, step, node);
  if (step.action == Action::cut || step.action == Action::blend) check_tiles(schedule, step, node);
  if (step.action == Action::copy || step.action == Action::frames) check_copy(schedule, step, node);
  return step;
}

// Buffers of a block are stored one after another, and nowhere else.
void check_places(const Schedule& schedule, const Node& node) {
  std::map<Block, std::size_t> ends = {{Block::slot, 0}, {Block::staging, 0}, {Block::shared, 0}};
  std::set<std::string> names;
  for (const Buffer& buffer : schedule.buffers) {
    if (!names.insert(buffer.name).second) node.misfit("has two buffers of the name " + buffer.name);
    std::size_t& end = ends[buffer.block];
    if (buffer.offset != (buffer.block == Block::none ? 0 : end))
      node.misfit("has " + buffer.name + " at another place");
    if (buffer.block != Block::none) end += (buffer.bytes + kAlignment - 1) / kAlignment * kAlignment;
  }
  for (const auto& [block, bytes] : schedule.blocks) {
    if (ends[block] != bytes) node.misfit("has blocks that are not as large as their buffers");
  }
}

}  // namespace

std::size_t size_of(Type type) {
  switch (type) {
    case Type::f32:
    case Type::i32:
      return 4;
    case Type::f16:
      return 2;
    case Type::i64:
      return 8;
    default:
      return 1;
  }
}

std::size_t count(const Shape& shape, std::size_t first, std::size_t last) {
  std::size_t found = 1;
  for (std::size_t axis = first; axis < last; ++axis) found *= static_cast<std::size_t>(shape[axis]);
  return found;
}

std::size_t Schedule::window() const {
  return static_cast<std::size_t>(buffers[takes.front().buffer].shape[takes.front().axis]);
}

std::size_t Schedule::buffer(const std::string& name, const Node& from) const {
  const auto found = std::find_if(buffers.begin(), buffers.end(), [&](const Buffer& b) { return b.name == name; });
  if (found == buffers.end()) from.misfit("names the unknown buffer '" + name + "'");
  return static_cast<std::size_t>(found - buffers.begin());
}

Schedule Schedule::parse(const Node& node) {
  const std::int64_t format = node["format"].integer(0);
  if (format != kFormat) {
    throw Failure(VSR_TOO_NEW, "a stored schedule has format " + std::to_string(format) + ", this library reads " +
                                   std::to_string(kFormat) +
                                   ". Write it again with: vsr-build schedule BUNDLE --size WxH");
  }
  Schedule found;
  const Node host = node["host"];
  found.picture = picture_of(host["picture"]);
  for (const auto& [name, item] : host["networks"].fields()) {
    found.networks[name] = {item["cpu"].text(), item["provider"].text()};
  }
  for (const auto& [name, item] : host["inputs"].fields()) found.inputs[name] = source_of(item);
  for (const Node& item : host["weights"].items()) found.weights.push_back(weights_of(item));
  for (const Node& item : node["buffers"].items()) found.buffers.push_back(buffer_of(item));
  const Node blocks = node["blocks"];
  for (const char* name : {"slot", "staging", "shared"}) {
    found.blocks[kBlocks.at(name)] = static_cast<std::size_t>(blocks[name].integer(0, kMost));
  }
  check_places(found, node);
  found.takes = ports_of(found, node["takes"]);
  found.gives = ports_of(found, node["gives"]);
  found.last = node["last"].boolean();
  for (const auto* ports : {&found.takes, &found.gives}) {
    for (const Port& port : *ports) {
      const auto frames = static_cast<std::size_t>(found.buffers[port.buffer].shape[port.axis]);
      if (frames == 0 || frames != found.window()) node.misfit("has windows of several lengths");
    }
  }
  for (const Node& item : node["steps"].items()) found.steps.push_back(step_of(found, item));
  for (const Buffer& buffer : found.buffers) {
    if (buffer.constant && found.inputs.find(buffer.name) == found.inputs.end()) {
      node.misfit("does not say where the constant " + buffer.name + " is from");
    }
  }
  return found;
}

bool Schedule::was_written_for(const Node& file, const Bundle& bundle) {
  if (!file.has("host") || file["host"].null()) return true;  // is refused when it is parsed, with a sentence
  for (const auto& [name, value] : file["host"]["choices"].fields()) {
    const Value& chosen = bundle.value(name);
    if (value.is_number() ? !chosen.is_number || chosen.number != value.number() : chosen.text != value.text())
      return false;
  }
  return true;
}

}  // namespace vsr
