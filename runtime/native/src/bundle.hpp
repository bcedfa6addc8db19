// A bundle: what its manifest says to a host that executes stored schedules, and its files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "json.hpp"

namespace vsr {

// Frames that go through at once; `frames` is 0 where a whole clip does.
struct Window {
  std::int64_t frames = 1;
  std::int64_t overlap = 0;
  bool last_is_short = false;
};

// A phase of a family, or all of a family without phases, whose name is empty.
struct Phase {
  std::string name;
  Window window;
};

// The value that an option of the family has.
struct Value {
  std::string text;  // as it was given
  double number = 0;
  bool is_number = false, is_whole = false;
  std::uint64_t bits = 0;  // of a whole number, modulo 2^64
};

class Bundle {
 public:
  // Opens a directory. Failure: missing, damaged, of another version, or a path that leads out.
  explicit Bundle(const std::filesystem::path& directory);

  // The path of one of the manifest's files. Failure: it is not among them, or leads out of the bundle.
  std::filesystem::path file(const std::string& name) const;
  // Takes a value of an option of the family. Failure: there is none of that name, or it cannot have that value.
  void choose(const std::string& option, const std::string& text);
  // The value of an option. Failure: there is none of that name.
  const Value& value(const std::string& option) const;

  // Bytes of the weights that a network has in files of their own, in the form for the CPU or for other providers.
  std::uint64_t weights(const std::string& network, bool on_cpu) const;

  std::filesystem::path directory;
  std::map<std::string, std::uint64_t> files;  // name -> bytes
  std::vector<Phase> phases;                   // at least one
  std::int64_t scale = 1;
  std::string output;

 private:
  void read(const Node& manifest);
  Node manifest() const;
  void look_at_files() const;

  std::filesystem::path real_;
  std::unique_ptr<Document> manifest_;
  std::map<std::string, Value> values_;
};

}  // namespace vsr
