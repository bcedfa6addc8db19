// ONNX Runtime by its C API: the library, loaded when it is needed, one environment for a process, and sessions.
#pragma once

#include <onnxruntime_c_api.h>

#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "schedule.hpp"

namespace vsr {

// How networks are run.
struct Settings {
  int threads = 0;
  std::string provider = "CPU";
  std::map<std::string, std::string> provider_options, session_options;
  std::string plugin;   // library that brings the provider; empty where it is built in
  std::string library;  // of ONNX Runtime; empty to look for it
};

class Runtime {
 public:
  // Loads the library. Failure: there is none, or an older one than this was built for.
  explicit Runtime(const Settings& settings);
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  // Throws what a call has to say, if anything; running out of memory has a status of its own.
  void check(OrtStatus* status, vsr_status kind, const std::string& what) const;

  const OrtApi* api = nullptr;
  OrtEnv* env = nullptr;
  OrtMemoryInfo* memory = nullptr;
};

class Session {
 public:
  Session(std::shared_ptr<Runtime> runtime, const Settings& settings, const std::filesystem::path& graph);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  OrtSession* get() const { return session_; }

 private:
  std::shared_ptr<Runtime> runtime_;
  OrtSession* session_ = nullptr;
};

// A network on buffers whose places do not change.
class Call {
 public:
  Call(std::shared_ptr<Runtime> runtime, std::shared_ptr<Session> session);
  ~Call();
  Call(Call&& other) noexcept;
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // Adds an operand: where its numbers are, or are written.
  void add(bool input, const std::string& name, void* data, std::size_t bytes, const Shape& shape, Type type);
  void run(const std::string& network) const;

 private:
  std::shared_ptr<Runtime> runtime_;
  std::shared_ptr<Session> session_;
  std::vector<std::string> names_[2];  // of outputs, of inputs
  std::vector<OrtValue*> values_[2];
};

}  // namespace vsr
