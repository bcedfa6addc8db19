#include "ort.hpp"

#include <dlfcn.h>

#include <cstdlib>

#ifndef VSR_ONNXRUNTIME
#define VSR_ONNXRUNTIME ""
#endif

namespace vsr {
namespace {

using Entry = const OrtApiBase* (*)();

// The library's entry: of the file that was named; of what the process has loaded; of where this was built; by name.
Entry entry_of(const std::string& named, std::string& why) {
  const char* environment = std::getenv("VSR_ONNXRUNTIME");
  const std::string asked = !named.empty() ? named : environment != nullptr ? environment : "";
  std::vector<std::string> files;
  if (!asked.empty()) {
    files = {asked};
  } else {
    if (void* found = dlsym(RTLD_DEFAULT, "OrtGetApiBase")) return reinterpret_cast<Entry>(found);
    files = {VSR_ONNXRUNTIME, "libonnxruntime.so.1", "libonnxruntime.so"};
  }
  for (const std::string& file : files) {
    if (file.empty()) continue;
    void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (void* found = library != nullptr ? dlsym(library, "OrtGetApiBase") : nullptr) {
      log_line("ONNX Runtime: " + file);
      return reinterpret_cast<Entry>(found);
    }
    const char* text = dlerror();
    why = text != nullptr ? text : file;
  }
  return nullptr;
}

// One arena for all sessions, as the Python runtime has it (runtime/onnxruntime/scratch.py says why).
void share_memory(const Runtime& runtime) {
  const char* keys[] = {"arena_extend_strategy", "initial_chunk_size_bytes", "initial_growth_chunk_size_bytes",
                        "max_dead_bytes_per_chunk"};
  const std::size_t values[] = {0, 1 << 20, 1 << 30, 1 << 20};
  OrtArenaCfg* config = nullptr;
  OrtMemoryInfo* arena = nullptr;
  runtime.check(runtime.api->CreateArenaCfgV2(keys, values, 4, &config), VSR_DEVICE, "the arena");
  runtime.check(runtime.api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &arena), VSR_DEVICE,
                "the arena");
  // somebody else in the process may have registered one: then that one serves
  if (OrtStatus* status = runtime.api->CreateAndRegisterAllocator(runtime.env, arena, config)) {
    runtime.api->ReleaseStatus(status);
  }
  runtime.api->ReleaseMemoryInfo(arena);
  runtime.api->ReleaseArenaCfg(config);
}

// Asks for a provider by name; CUDA and TensorRT have calls of their own.
void add_provider(const Runtime& runtime, OrtSessionOptions* options, const Settings& settings) {
  std::vector<const char*> keys, values;
  for (const auto& [key, value] : settings.provider_options) {
    keys.push_back(key.c_str());
    values.push_back(value.c_str());
  }
  const OrtApi& api = *runtime.api;
  const std::string what = "the provider " + settings.provider;
  if (settings.provider == "CUDA") {
    OrtCUDAProviderOptionsV2* cuda = nullptr;
    runtime.check(api.CreateCUDAProviderOptions(&cuda), VSR_DEVICE, what);
    OrtStatus* status = api.UpdateCUDAProviderOptions(cuda, keys.data(), values.data(), keys.size());
    if (status == nullptr) status = api.SessionOptionsAppendExecutionProvider_CUDA_V2(options, cuda);
    api.ReleaseCUDAProviderOptions(cuda);
    runtime.check(status, VSR_DEVICE, what);
  } else if (settings.provider == "TensorRT") {
    OrtTensorRTProviderOptionsV2* tensorrt = nullptr;
    runtime.check(api.CreateTensorRTProviderOptions(&tensorrt), VSR_DEVICE, what);
    OrtStatus* status = api.UpdateTensorRTProviderOptions(tensorrt, keys.data(), values.data(), keys.size());
    if (status == nullptr) status = api.SessionOptionsAppendExecutionProvider_TensorRT_V2(options, tensorrt);
    api.ReleaseTensorRTProviderOptions(tensorrt);
    runtime.check(status, VSR_DEVICE, what);
  } else {
    runtime.check(api.SessionOptionsAppendExecutionProvider(options, settings.provider.c_str(), keys.data(),
                                                            values.data(), keys.size()),
                  VSR_DEVICE, what);
  }
}

// A plugin is a library of its own, which the environment is told of first, and whose devices are then asked for.
void add_plugin(const Runtime& runtime, OrtSessionOptions* options, const Settings& settings) {
#if ORT_API_VERSION >= 22
  const OrtApi& api = *runtime.api;
  const std::string what = "the provider " + settings.provider + " of " + settings.plugin;
  // registered twice is an error: whether it is there is seen below
  if (OrtStatus* status =
          api.RegisterExecutionProviderLibrary(runtime.env, settings.provider.c_str(), settings.plugin.c_str())) {
    log_line(what + ": " + api.GetErrorMessage(status));
    api.ReleaseStatus(status);
  }
  const OrtEpDevice* const* devices = nullptr;
  std::size_t number = 0;
  runtime.check(api.GetEpDevices(runtime.env, &devices, &number), VSR_DEVICE, what);
  std::vector<const char*> keys, values;
  for (const auto& [key, value] : settings.provider_options) {
    keys.push_back(key.c_str());
    values.push_back(value.c_str());
  }
  for (std::size_t i = 0; i < number; ++i) {
    const std::string name = api.EpDevice_EpName(devices[i]);
    if (name != settings.provider && name != settings.provider + "ExecutionProvider") continue;
    return runtime.check(api.SessionOptionsAppendExecutionProvider_V2(options, runtime.env, &devices[i], 1, keys.data(),
                                                                      values.data(), keys.size()),
                         VSR_DEVICE, what);
  }
  throw Failure(VSR_DEVICE, what + " finds no device that it serves.");
#else
  (void)runtime;
  (void)options;
  throw Failure(VSR_DEVICE, "the provider " + settings.provider +
                                " is a plugin, and this library was built with headers of "
                                "ONNX Runtime " +
                                std::to_string(ORT_API_VERSION) + "; plugins need those of 1.22 or newer.");
#endif
}

}  // namespace

Runtime::Runtime(const Settings& settings) {
  std::string why;
  const Entry entry = entry_of(settings.library, why);
  if (entry == nullptr) {
    throw Failure(VSR_DEVICE, "ONNX Runtime cannot be loaded: " + why +
                                  ". Name its library with the option onnxruntime, or in "
                                  "the variable VSR_ONNXRUNTIME.");
  }
  api = entry()->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    throw Failure(VSR_DEVICE, std::string("ONNX Runtime ") + entry()->GetVersionString() +
                                  " is older than the headers that "
                                  "this library was built with; it needs 1." +
                                  std::to_string(ORT_API_VERSION) + " or newer.");
  }
  check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "vsr", &env), VSR_DEVICE, "ONNX Runtime");
  share_memory(*this);
  check(api->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory), VSR_DEVICE, "ONNX Runtime");
}

Runtime::~Runtime() {
  if (memory != nullptr) api->ReleaseMemoryInfo(memory);
  if (env != nullptr) api->ReleaseEnv(env);
}

void Runtime::check(OrtStatus* status, vsr_status kind, const std::string& what) const {
  if (status == nullptr) return;
  std::string text = api->GetErrorMessage(status);
  api->ReleaseStatus(status);
  const bool memory_is_gone =
      text.find("bad_alloc") != std::string::npos || text.find("allocate memory") != std::string::npos;
  text = text.substr(0, text.find('\n'));
  throw Failure(memory_is_gone ? VSR_MEMORY : kind, what + ": " + text);
}

Session::Session(std::shared_ptr<Runtime> runtime, const Settings& settings, const std::filesystem::path& graph)
    : runtime_(std::move(runtime)) {
  const OrtApi& api = *runtime_->api;
  OrtSessionOptions* raw = nullptr;
  runtime_->check(api.CreateSessionOptions(&raw), VSR_DEVICE, "ONNX Runtime");
  const std::unique_ptr<OrtSessionOptions, decltype(api.ReleaseSessionOptions)> options(raw, api.ReleaseSessionOptions);
  const auto set = [&](OrtStatus* status) { runtime_->check(status, VSR_DEVICE, graph.string()); };
  // As in runtime/onnxruntime/cpu.py and scratch.py, but that a tensor's memory may be kept for a later one of its
  // shape: ONNX Runtime has a switch for that in Python alone.
  set(api.SetIntraOpNumThreads(raw, settings.threads));
  set(api.SetSessionLogSeverityLevel(raw, 3));
  set(api.DisableMemPattern(raw));
  set(api.AddSessionConfigEntry(raw, "session.intra_op.allow_spinning", "0"));
  set(api.AddSessionConfigEntry(raw, "session.use_env_allocators", "1"));
  set(api.AddSessionConfigEntry(raw, "session.use_device_allocator_for_initializers", "1"));
  for (const auto& [key, value] : settings.session_options) {
    set(api.AddSessionConfigEntry(raw, key.c_str(), value.c_str()));
  }
  if (!settings.plugin.empty()) {
    add_plugin(*runtime_, raw, settings);
  } else if (settings.provider != "CPU") {
    add_provider(*runtime_, raw, settings);
  }
  set(api.CreateSession(runtime_->env, graph.c_str(), raw, &session_));
  log_line(graph.string() + " was loaded");
}

Session::~Session() {
  if (session_ != nullptr) runtime_->api->ReleaseSession(session_);
}

Call::Call(std::shared_ptr<Runtime> runtime, std::shared_ptr<Session> session)
    : runtime_(std::move(runtime)), session_(std::move(session)) {}

Call::Call(Call&& other) noexcept : runtime_(std::move(other.runtime_)), session_(std::move(other.session_)) {
  for (int side = 0; side < 2; ++side) {
    names_[side].swap(other.names_[side]);
    values_[side].swap(other.values_[side]);
  }
}

Call::~Call() {
  for (const auto& side : values_) {
    for (OrtValue* value : side) runtime_->api->ReleaseValue(value);
  }
}

void Call::add(bool input, const std::string& name, void* data, std::size_t bytes, const Shape& shape, Type type) {
  static const std::map<Type, ONNXTensorElementDataType> kinds = {
      {Type::u8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},    {Type::f32, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},
      {Type::f16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16}, {Type::i32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32},
      {Type::i64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64},   {Type::boolean, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL}};
  OrtValue* value = nullptr;
  runtime_->check(runtime_->api->CreateTensorWithDataAsOrtValue(runtime_->memory, data, bytes, shape.data(),
                                                                shape.size(), kinds.at(type), &value),
                  VSR_DEVICE, name);
  names_[input ? 1 : 0].push_back(name);
  values_[input ? 1 : 0].push_back(value);
}

void Call::run(const std::string& network) const {
  std::vector<const char*> names[2];
  for (int side = 0; side < 2; ++side) {
    for (const std::string& name : names_[side]) names[side].push_back(name.c_str());
  }
  std::vector<OrtValue*> outputs = values_[0];
  runtime_->check(runtime_->api->Run(session_->get(), nullptr, names[1].data(), values_[1].data(), names[1].size(),
                                     names[0].data(), names[0].size(), outputs.data()),
                  VSR_FRAME, network);
}

}  // namespace vsr
