#include "json.hpp"

#include <fstream>
#include <nlohmann/json.hpp>

namespace vsr {

Node Node::operator[](const char* name) const {
  if (!value_->is_object()) misfit("is not an object");
  const auto found = value_->find(name);
  if (found == value_->end()) misfit(std::string("lacks the field '") + name + "'");
  return {*found, where_ + "." + name};
}

bool Node::has(const char* name) const { return value_->is_object() && value_->contains(name); }
bool Node::null() const { return value_->is_null(); }
bool Node::is_text() const { return value_->is_string(); }
bool Node::is_number() const { return value_->is_number(); }
std::string Node::written() const { return value_->is_string() ? text() : value_->dump(); }

std::int64_t Node::integer(std::int64_t least, std::int64_t most) const {
  const bool fits = value_->is_number_integer() &&
                    (!value_->is_number_unsigned() || value_->get<std::uint64_t>() <= std::uint64_t{INT64_MAX});
  const std::int64_t found = fits ? value_->get<std::int64_t>() : 0;
  if (!fits || found < least || found > most) misfit("is not a whole number from " + std::to_string(least) + " on");
  return found;
}

double Node::number() const {
  if (!value_->is_number()) misfit("is not a number");
  return value_->get<double>();
}

bool Node::boolean() const {
  if (!value_->is_boolean()) misfit("is neither true nor false");
  return value_->get<bool>();
}

std::string Node::text() const {
  if (!value_->is_string()) misfit("is not a text");
  return value_->get<std::string>();
}

std::vector<Node> Node::items() const {
  if (!value_->is_array()) misfit("is not a list");
  std::vector<Node> found;
  found.reserve(value_->size());
  for (const Json& item : *value_) found.emplace_back(item, where_ + "[" + std::to_string(found.size()) + "]");
  return found;
}

std::vector<std::pair<std::string, Node>> Node::fields() const {
  if (!value_->is_object()) misfit("is not an object");
  std::vector<std::pair<std::string, Node>> found;
  found.reserve(value_->size());
  for (const auto& item : value_->items())
    found.emplace_back(item.key(), Node(item.value(), where_ + "." + item.key()));
  return found;
}

std::vector<std::int64_t> Node::integers(std::int64_t least) const {
  std::vector<std::int64_t> found;
  for (const Node& item : items()) found.push_back(item.integer(least));
  return found;
}

void Node::misfit(const std::string& clause) const { throw Failure(VSR_DAMAGED, where_ + " " + clause + "."); }

Document::Document(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) throw Failure(VSR_MISSING, file.string() + " cannot be read.");
  value_ = std::make_unique<Json>(Json::parse(stream, nullptr, false));
  if (value_->is_discarded()) throw Failure(VSR_DAMAGED, file.string() + " is no JSON.");
}

Document::~Document() = default;

bool is_number(const std::string& text, double& number) {
  const Json found = Json::parse(text, nullptr, false);
  if (!found.is_number()) return false;
  number = found.get<double>();
  return true;
}

}  // namespace vsr
