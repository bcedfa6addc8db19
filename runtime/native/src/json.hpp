// Reading JSON that may hold anything: every value is looked at before it is used.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "failure.hpp"

namespace vsr {

using Json = nlohmann::ordered_json;  // the order of phases and of what is taken in matters

// A value, and what it is called in messages.
class Node {
 public:
  Node(const Json& value, std::string where) : value_(&value), where_(std::move(where)) {}

  Node operator[](const char* name) const;  // a field, which must be there
  bool has(const char* name) const { return value_->is_object() && value_->contains(name); }
  bool null() const { return value_->is_null(); }
  const Json& value() const { return *value_; }
  const std::string& where() const { return where_; }

  std::int64_t integer(std::int64_t least, std::int64_t most = INT64_MAX) const;
  double number() const;
  bool boolean() const;
  std::string text() const;
  std::vector<Node> items() const;                            // of a list
  std::vector<std::pair<std::string, Node>> fields() const;   // of an object
  std::vector<std::int64_t> integers(std::int64_t least) const;
  [[noreturn]] void misfit(const std::string& clause) const;  // throws: damaged

 private:
  const Json* value_;
  std::string where_;
};

// Reads a file of JSON; Failure if it cannot be read or is none.
Json read_json(const std::filesystem::path& file);

}  // namespace vsr
