// Reading JSON that may hold anything: every value is looked at before it is used.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

#include "failure.hpp"

namespace vsr {

using Json = nlohmann::ordered_json;  // the order of phases and of what is taken in matters

// A value, and what it is called in messages.
class Node {
 public:
  Node(const Json& value, std::string where) : value_(&value), where_(std::move(where)) {}

  Node operator[](const char* name) const;  // a field, which must be there
  bool has(const char* name) const;
  bool null() const;
  bool is_text() const;
  bool is_number() const;
  std::string written() const;  // as it would be written

  std::int64_t integer(std::int64_t least, std::int64_t most = INT64_MAX) const;
  double number() const;
  bool boolean() const;
  std::string text() const;
  std::vector<Node> items() const;                           // of a list
  std::vector<std::pair<std::string, Node>> fields() const;  // of an object
  std::vector<std::int64_t> integers(std::int64_t least) const;
  [[noreturn]] void misfit(const std::string& clause) const;  // throws: damaged

 private:
  const Json* value_;
  std::string where_;
};

// A file of JSON. Failure if it cannot be read or is none.
class Document {
 public:
  explicit Document(const std::filesystem::path& file);
  ~Document();
  Document(const Document&) = delete;
  Document& operator=(const Document&) = delete;

  Node root(const std::string& where) const { return {*value_, where}; }

 private:
  std::unique_ptr<Json> value_;
};

// Whether a text is a number as JSON has them; then it is stored.
bool is_number(const std::string& text, double& number);

}  // namespace vsr
