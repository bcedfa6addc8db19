#include "model.hpp"

#include <sched.h>

#include <algorithm>

namespace vsr {
namespace {

int available_cores() {
  cpu_set_t cores;
  return sched_getaffinity(0, sizeof cores, &cores) == 0 ? std::max(CPU_COUNT(&cores), 1) : 1;
}

int threads_of(const std::string& text) {
  const bool digits = !text.empty() && text.size() <= 4 && text.find_first_not_of("0123456789") == std::string::npos;
  const int found = digits ? std::stoi(text) : 0;
  if (found < 1 || found > 1024) throw Failure(VSR_ARGUMENT, "threads is '" + text + "'; expected 1 to 1024.");
  return found;
}

std::string sides(Sides size) { return std::to_string(size.width) + "x" + std::to_string(size.height); }

bool ends_with(const std::string& text, const std::string& ending) {
  return text.size() >= ending.size() && text.compare(text.size() - ending.size(), ending.size(), ending) == 0;
}

}  // namespace

Model::Model(const std::string& directory, const std::vector<std::pair<std::string, std::string>>& options)
    : bundle(directory) {
  settings_.threads = available_cores();
  for (const auto& [key, value] : options) {
    if (key == "threads") {
      settings_.threads = threads_of(value);
    } else if (key == "provider") {
      settings_.provider = value;
    } else if (key.rfind("provider.", 0) == 0) {
      settings_.provider_options[key.substr(9)] = value;
    } else if (key.rfind("session.", 0) == 0) {
      settings_.session_options[key] = value;
    } else if (key == "plugin") {
      settings_.plugin = value;
    } else if (key == "onnxruntime") {
      settings_.library = value;
    } else {
      bundle.choose(key, value);
      chosen_[key] = value;
    }
  }
  if (settings_.provider == "CPU" && (!settings_.plugin.empty() || !settings_.provider_options.empty())) {
    throw Failure(VSR_ARGUMENT, "the provider CPU has no options, and is no plugin.");
  }
  runtime_ = std::make_shared<Runtime>(settings_);
}

Schedule Model::schedule(Sides frame, const Phase& phase, std::int64_t frames) const {
  const Sides result = {frame.height * bundle.scale, frame.width * bundle.scale};
  const std::string beginning = "schedules/" + sides(result) + "-s";
  const std::string ending = phase.name.empty() ? "" : "-" + phase.name + "-" + std::to_string(frames) + "f";
  std::string safe = ending;  // file names have underscores for other characters
  for (char& c : safe) {
    const bool plain = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
    if (!plain && c != '.' && c != '_' && c != '=' && c != '-') c = '_';
  }
  for (auto item = bundle.files.lower_bound(beginning); item != bundle.files.end(); ++item) {
    const std::string& name = item->first;
    if (name.rfind(beginning, 0) != 0) break;
    if (!ends_with(name, safe + ".json")) continue;
    const std::filesystem::path file = bundle.file(name);
    const Document document(file);
    const Node root = document.root(file.string());
    if (!Schedule::was_written_for(root, bundle)) continue;
    Schedule found = Schedule::parse(root);
    const Sides stored = found.picture.frame;
    const bool fits = stored.height == frame.height && stored.width == frame.width &&
                      found.picture.scale == bundle.scale && found.window() == static_cast<std::size_t>(frames);
    if (!fits) throw Failure(VSR_DAMAGED, file.string() + " is for another size than its name says.");
    return found;
  }
  std::string command = "vsr-build schedule " + bundle.directory.string() + " --size " + sides(result);
  if (bundle.phases.size() > 1) command += " --frames " + (phase.window.frames == 0 ? std::to_string(frames) : "N");
  for (const auto& [key, value] : chosen_) command += " --set " + key + "=" + value;
  throw Failure(VSR_SIZE,
                "no schedule is stored for frames of " + sides(frame) +
                    (phase.name.empty() ? "" : ", phase " + phase.name + ", " + std::to_string(frames) + " frames") +
                    (chosen_.empty() ? "" : ", with these options") + ". Write one with: " + command);
}

std::shared_ptr<Session> Model::session(const std::string& graph) {
  const std::lock_guard<std::mutex> lock(loading_);
  std::shared_ptr<Session>& found = sessions_[graph];
  if (!found) found = std::make_shared<Session>(runtime_, settings_, bundle.file(graph));
  return found;
}

std::unique_ptr<Run> Model::open(Schedule schedule) {
  return std::make_unique<Run>(bundle, std::move(schedule), runtime_, [&](const std::string&, const Graphs& graphs) {
    return session(on_cpu() ? graphs.cpu : graphs.provider);
  });
}

std::vector<Row> Windows::execute(std::optional<Gathered> gathered) {
  std::vector<Row> rows;
  if (!gathered) return rows;
  for (std::size_t i = 0; i < gathered->frames.size(); ++i) run_->put(gathered->frames[i], i);
  run_->execute(first_, gathered->first);
  first_ = false;
  for (std::int64_t i = gathered->from; i < gathered->to; ++i) rows.push_back(run_->get(static_cast<std::size_t>(i)));
  return rows;
}

std::vector<Row> Windows::push(Row frame, std::int64_t number) {
  run_->add_noise(frame, static_cast<std::uint32_t>(number));
  return execute(gatherer_.push(std::move(frame)));
}

std::vector<Row> Windows::flush() { return execute(gatherer_.flush()); }

std::vector<Row> Windows::begin() {
  std::vector<Row> rows = flush();
  gatherer_ = Gatherer(window(), overlap_);
  first_ = true;
  return rows;
}

Stream::Stream(std::shared_ptr<Model> model, Sides frame) : model_(std::move(model)), frame_(frame) {
  const Phase& phase = model_->bundle.phases.front();
  Schedule schedule = model_->schedule(frame, phase, phase.window.frames);
  picture_ = schedule.picture;
  running_ = std::make_unique<Windows>(model_->open(std::move(schedule)), phase);
}

// Runs what may fail half way: the stream is of no use afterwards.
void Stream::guard(const std::function<void()>& work) {
  if (!broken_.empty()) throw Failure(VSR_DEVICE, "this stream failed (" + broken_ + "); make a new one.");
  try {
    work();
  } catch (const Failure& failure) {
    if (failure.status() != VSR_SIZE) broken_ = failure.message();  // then nothing was begun
    throw;
  } catch (const std::exception& error) {
    broken_ = error.what();
    throw;
  }
}

void Stream::tell(const Phase& phase, std::uint64_t done, std::uint64_t total) {
  if (progress) progress(phase.name, done, total);
}

// Results of the first phase: those of the stream, or what the clip's next phase takes.
void Stream::take_on(std::vector<Row> rows) {
  if (model_->bundle.phases.size() == 1) return finish(std::move(rows));
  for (Row& row : rows) rows_.push_back(std::move(row));
}

void Stream::finish(std::vector<Row> rows) {
  for (const Row& row : rows) {
    const auto pixels =
        static_cast<std::size_t>(picture_.given.height * picture_.given.width * picture_.scale * picture_.scale);
    const auto found = row.find(model_->bundle.output);
    if (found == row.end() || found->second->size() != pixels * 3) {
      throw Failure(VSR_DAMAGED, "the last phase does not give pictures of the size that its schedule says.");
    }
    results_.push_back(take_out(*found->second, picture_));
  }
}

void Stream::push(const Bytes& pixels) {
  guard([&] {
    const std::vector<Phase>& phases = model_->bundle.phases;
    while (done_ < rest_.size()) {  // of the clip before: nobody asked for them yet
      finish(windows_of(phases.back(), rest_, done_));
    }
    const Phase& first = phases.front();
    if (!running_) {
      running_ = std::make_unique<Windows>(model_->open(model_->schedule(frame_, first, first.window.frames)), first);
    }
    const Sides given = picture_.given;
    Bytes placed = place(pixels, picture_);
    if (placed.size() != static_cast<std::size_t>(given.height * given.width) * 3)
      throw Failure(VSR_DAMAGED, "a frame does not fit.");
    Row row;
    row[running_->takes()] = std::make_shared<const Bytes>(std::move(placed));
    take_on(running_->push(std::move(row), pushed_));
    ++pushed_;
    tell(first, static_cast<std::uint64_t>(pushed_), 0);
  });
}

// The next windows of a phase, of one length: those of all rows, or with `done` at the last few those that are shorter.
std::vector<Row> Stream::windows_of(const Phase& phase, const std::vector<Row>& rows, std::size_t& done) {
  const std::size_t usual = phase.window.frames == 0 ? rows.size() : static_cast<std::size_t>(phase.window.frames);
  const std::size_t whole = phase.window.last_is_short ? rows.size() / usual * usual : rows.size();
  const bool rest = done >= whole;
  if (!running_) {
    const std::size_t frames = rest ? rows.size() - whole : usual;
    running_ = std::make_unique<Windows>(
        model_->open(model_->schedule(frame_, phase, static_cast<std::int64_t>(frames))), phase);
  }
  const std::size_t end = rest ? rows.size() : whole;
  std::vector<Row> made;
  while (done < end && made.empty()) {
    Row row = rows[done];
    made = running_->push(std::move(row), static_cast<std::int64_t>(done));
    ++done;
  }
  if (done == end) {
    for (Row& row : running_->flush()) made.push_back(std::move(row));
    running_.reset();
  }
  tell(phase, done, rows.size());
  return made;
}

void Stream::end_clip() {
  guard([&] {
    if (done_ < rest_.size()) return;
    if (running_) take_on(running_->flush());
    if (model_->bundle.phases.size() == 1 || rows_.empty()) return;
    const std::vector<Phase>& phases = model_->bundle.phases;
    for (std::size_t i = 1; i < phases.size(); ++i) {  // before anything is begun: a missing schedule ends nothing
      const std::size_t usual =
          phases[i].window.frames == 0 ? rows_.size() : static_cast<std::size_t>(phases[i].window.frames);
      if (rows_.size() >= usual || !phases[i].window.last_is_short) {
        model_->schedule(frame_, phases[i], static_cast<std::int64_t>(usual));
      }
      if (phases[i].window.last_is_short && rows_.size() % usual != 0) {
        model_->schedule(frame_, phases[i], static_cast<std::int64_t>(rows_.size() % usual));
      }
    }
    running_.reset();
    pushed_ = 0;
    std::vector<Row> rows = std::move(rows_);
    rows_.clear();
    for (std::size_t i = 1; i + 1 < phases.size(); ++i) {
      std::size_t done = 0, place = 0;
      while (done < rows.size() || running_) {
        for (Row& made : windows_of(phases[i], rows, done)) {
          for (auto& [name, numbers] : made) rows[place][name] = numbers;
          ++place;
        }
      }
    }
    rest_ = std::move(rows);
    done_ = 0;
  });
}

void Stream::reset() {
  end_clip();
  guard([&] {
    while (done_ < rest_.size()) finish(windows_of(model_->bundle.phases.back(), rest_, done_));
    if (running_) take_on(running_->begin());
    pushed_ = 0;
  });
}

bool Stream::next(Bytes& result) {
  if (results_.empty() && broken_.empty() && done_ < rest_.size()) {
    guard([&] {
      while (results_.empty() && done_ < rest_.size()) finish(windows_of(model_->bundle.phases.back(), rest_, done_));
    });
  }
  if (done_ == rest_.size()) {
    rest_.clear();
    done_ = 0;
  }
  if (results_.empty()) return false;
  result = std::move(results_.front());
  results_.pop_front();
  return true;
}

}  // namespace vsr
