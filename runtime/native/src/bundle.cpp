#include "bundle.hpp"

#include <algorithm>
#include <cctype>
#include <system_error>

namespace fs = std::filesystem;

namespace vsr {
namespace {

constexpr std::int64_t kSchema = 5;
constexpr const char* kManifest = "bundle.json";

bool starts_with(const std::string& text, const char* beginning) { return text.rfind(beginning, 0) == 0; }

bool is_below(const fs::path& path, const fs::path& folder) {
  return std::mismatch(folder.begin(), folder.end(), path.begin(), path.end()).first == folder.end();
}

// A relative path, with forward slashes, that cannot leave the bundle.
bool is_inside(const std::string& name) {
  const fs::path path(name);
  const bool climbs = std::any_of(path.begin(), path.end(), [](const fs::path& part) { return part == ".."; });
  const bool odd = name.find_first_of(std::string("\\:\0", 3)) != std::string::npos;
  return !name.empty() && !path.is_absolute() && !climbs && !odd;
}

// The repository in a hub's cache that a bundle is a snapshot of, or is stored in a snapshot of; empty elsewhere.
fs::path repository(const fs::path& bundle) {
  for (fs::path folder = bundle.parent_path(); folder != folder.parent_path(); folder = folder.parent_path()) {
    const std::string owner = folder.parent_path().filename().string();
    const bool named =
        starts_with(owner, "models--") || starts_with(owner, "datasets--") || starts_with(owner, "spaces--");
    if (folder.filename() == "snapshots" && named) return folder.parent_path();
  }
  return {};
}

// Whether a path is one link, straight to a file in the blobs of the repository that the bundle is a snapshot of.
bool is_blob(const fs::path& path, const fs::path& bundle) {
  const fs::path found = repository(bundle), folder = fs::canonical(path.parent_path());
  if (found.empty() || !fs::is_symlink(path) || !is_below(folder, bundle)) return false;
  const fs::path target = folder / fs::read_symlink(path), blobs = found / "blobs";
  return target.filename() != ".." && fs::weakly_canonical(target.parent_path()) == blobs && !fs::is_symlink(blobs) &&
         !fs::is_symlink(blobs / target.filename());
}

bool is_whole(const std::string& text) {
  const std::size_t sign = !text.empty() && text[0] == '-' ? 1 : 0;
  return text.size() > sign && std::all_of(text.begin() + static_cast<std::ptrdiff_t>(sign), text.end(),
                                           [](unsigned char c) { return std::isdigit(c) != 0; });
}

std::uint64_t bits_of(const std::string& text) {
  std::uint64_t found = 0;
  for (const char c : text) {
    if (c != '-') found = found * 10 + static_cast<std::uint64_t>(c - '0');
  }
  return text[0] == '-' ? 0 - found : found;
}

Window window(const Node& node) {
  Window found;
  found.frames = node["frames"].null() ? 0 : node["frames"].integer(1, 1 << 20);
  found.overlap = node.has("overlap") ? node["overlap"].integer(0, std::max<std::int64_t>(found.frames, 1) - 1) : 0;
  if (node.has("last")) {
    const std::string last = node["last"].text();
    if (last != "full" && last != "short") node["last"].misfit("is neither full nor short");
    found.last_is_short = last == "short";
  }
  if (found.last_is_short && found.overlap != 0) node.misfit("overlaps, and its last window is short");
  return found;
}

}  // namespace

Bundle::Bundle(const fs::path& folder) : directory(folder) {
  std::error_code error;
  const fs::path path = folder / kManifest;
  real_ = fs::canonical(folder, error);
  if (error || !fs::exists(path, error)) {
    throw Failure(VSR_MISSING, folder.string() + " is not a bundle: it has no " + kManifest +
                                   ". Make one with: vsr-build bundle --sd DIR --checkpoint FILE --out BUNDLE");
  }
  files[kManifest] = 0;
  manifest_ = std::make_unique<Document>(file(kManifest));
  files.clear();
  try {
    read(manifest());
  } catch (const Failure& failure) {
    if (failure.status() != VSR_DAMAGED) throw;
    throw Failure(VSR_DAMAGED, path.string() + " is damaged: " + failure.message() + " Build the bundle again.");
  }
  look_at_files();
}

void Bundle::read(const Node& manifest) {
  const std::int64_t version = manifest["schema_version"].integer(1);
  if (version > kSchema || version < kSchema) {
    throw Failure(VSR_TOO_NEW, (directory / kManifest).string() + " has schema version " + std::to_string(version) +
                                   ", this library reads version 5. " +
                                   (version > kSchema ? "Take a newer library, or build the bundle again."
                                                      : "vsr-build schedule BUNDLE --size WxH writes that version."));
  }
  scale = manifest["scale"].integer(1, 64);
  output = manifest["output"].text();
  for (const auto& [name, node] : manifest["files"].fields()) {
    if (!is_inside(name)) node.misfit("leaves the bundle");
    files[name] = static_cast<std::uint64_t>(node["bytes"].integer(0));
  }
  if (manifest.has("phases")) {
    for (const auto& [name, node] : manifest["phases"].fields()) phases.push_back({name, window(node)});
  }
  if (phases.empty()) phases.push_back({"", manifest.has("window") ? window(manifest["window"]) : Window()});
  if (phases.front().window.frames == 0 || phases.front().window.last_is_short) {
    manifest.misfit("begins with a window of a whole clip, or a short one");
  }
  if (!manifest.has("options")) return;
  for (const auto& [name, node] : manifest["options"].fields()) {
    const Node usual = node["default"];
    if (node["type"].text() == "choice" ? !usual.is_text() : !usual.is_number()) usual.misfit("is of another type");
    choose(name, usual.written());
  }
}

Node Bundle::manifest() const { return manifest_->root(kManifest); }

void Bundle::choose(const std::string& option, const std::string& text) {
  if (!manifest().has("options") || !manifest()["options"].has(option.c_str())) {
    std::string known;
    for (const auto& item : values_) known += (known.empty() ? "" : ", ") + item.first;
    throw Failure(VSR_ARGUMENT, "this bundle has no option '" + option + "'; it has " +
                                    (known.empty() ? "none" : known) +
                                    ", and the library has threads, provider, provider.KEY, session.KEY, plugin, "
                                    "onnxruntime.");
  }
  const Node node = manifest()["options"][option.c_str()];
  const std::string type = node["type"].text();
  const auto refuse = [&](const std::string& expected) {
    throw Failure(VSR_ARGUMENT, option + " is '" + text + "'; expected " + expected + ".");
  };
  Value value;
  value.text = text;
  if (type == "choice") {
    std::string known;
    bool found = false;
    for (const Node& choice : node["choices"].items()) {
      found = found || choice.text() == text;
      known += (known.empty() ? "" : ", ") + choice.text();
    }
    if (!found) refuse("one of " + known);
  } else if (type == "integer" || type == "number") {
    const bool whole = type == "integer";
    value.is_number = is_number(text, value.number);
    value.is_whole = is_whole(text);
    if (!value.is_number || (whole && !value.is_whole)) refuse(whole ? "a whole number" : "a number");
    if (value.is_whole) value.bits = bits_of(text);
    for (const bool low : {true, false}) {
      const char* name = low ? "least" : "most";
      if (!node.has(name) || node[name].null()) continue;
      const double limit = node[name].number();
      if (low ? value.number < limit : value.number > limit) {
        refuse(std::string("a number ") + (low ? "from " : "to ") + node[name].written());
      }
    }
  } else {
    node.misfit("is of the type " + type + ", which this library does not know");
  }
  values_[option] = value;
}

const Value& Bundle::value(const std::string& option) const {
  const auto found = values_.find(option);
  if (found == values_.end()) throw Failure(VSR_DAMAGED, "the bundle has no option '" + option + "'.");
  return found->second;
}

std::uint64_t Bundle::weights(const std::string& network, bool on_cpu) const {
  const Node graphs = manifest()["networks"][network.c_str()]["graphs"];
  const auto bytes = [&](const char* form) -> std::uint64_t {
    const auto found = graphs.has(form) ? files.find(graphs[form].text() + ".data") : files.end();
    return found == files.end() ? 0 : found->second;
  };
  // what the CPU's form has itself is in FP16, half as large as in the native form's file
  const std::uint64_t native = bytes("native");
  return native - (on_cpu ? std::min(native, bytes("cpu")) : 0);
}

fs::path Bundle::file(const std::string& name) const {
  if (files.find(name) == files.end()) throw Failure(VSR_DAMAGED, "'" + name + "' is not among the bundle's files.");
  const fs::path path = directory / name;
  std::error_code error;
  const fs::path target = fs::weakly_canonical(path, error);
  if (error) throw Failure(VSR_DAMAGED, path.string() + " cannot be followed: " + error.message() + ".");
  if (!is_below(target, real_) && !is_blob(path, real_)) {
    throw Failure(VSR_DAMAGED, directory.string() + ": " + name + " leads out of the bundle, to " + target.string() +
                                   "; it was not opened.");
  }
  return path;
}

void Bundle::look_at_files() const {
  for (const auto& [name, bytes] : files) {
    const fs::path path = file(name);
    std::error_code error;
    const std::uint64_t found = fs::file_size(path, error);
    if (error) throw Failure(VSR_MISSING, directory.string() + " lost the file " + name + ". Copy the bundle again.");
    if (found != bytes) {
      throw Failure(VSR_DAMAGED, directory.string() + ": " + name + " was changed: it has " + std::to_string(found) +
                                     " bytes, expected " + std::to_string(bytes) + ". Copy the bundle again.");
    }
  }
}

}  // namespace vsr
