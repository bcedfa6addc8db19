// An opened bundle, and a clip's way through it.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>

#include "windows.hpp"

namespace vsr {

class Model {
 public:
  Model(const std::string& directory, const std::vector<std::pair<std::string, std::string>>& options);

  // The stored schedule of a phase for frames of a size, in windows of so many frames. Failure: there is none.
  Schedule schedule(Sides frame, const Phase& phase, std::int64_t frames) const;
  // What a schedule's steps are done with; networks are loaded once for all streams.
  std::unique_ptr<Run> open(Schedule schedule);
  // Whether networks run on ONNX Runtime's CPU provider, in the form for it.
  bool on_cpu() const { return settings_.provider == "CPU"; }

  Bundle bundle;

 private:
  std::shared_ptr<Session> session(const std::string& graph);

  Settings settings_;
  std::map<std::string, std::string> chosen_;  // options that are not the default's, for messages
  std::shared_ptr<Runtime> runtime_;
  std::mutex loading_;
  std::map<std::string, std::shared_ptr<Session>> sessions_;
};

// Windows of one length through one schedule.
class Windows {
 public:
  Windows(std::unique_ptr<Run> run, const Phase& phase)
      : run_(std::move(run)), overlap_(phase.window.overlap), gatherer_(window(), overlap_) {}

  std::vector<Row> push(Row frame, std::int64_t number);  // `number`: of the frame in the clip
  std::vector<Row> flush();
  std::vector<Row> begin();  // the next frame has no predecessor; results of those that waited
  const std::string& takes() const { return run_->schedule().takes.front().name; }

 private:
  std::int64_t window() const { return static_cast<std::int64_t>(run_->schedule().window()); }
  std::vector<Row> execute(std::optional<Gathered> gathered);

  std::unique_ptr<Run> run_;
  std::int64_t overlap_;
  Gatherer gatherer_;
  bool first_ = true;
};

// A clip: what runtime/restore/restorer.py does with frames, without threads.
class Stream {
 public:
  using Progress = std::function<void(const std::string& phase, std::uint64_t done, std::uint64_t total)>;

  Stream(std::shared_ptr<Model> model, Sides frame);

  void push(const Bytes& pixels);
  void end_clip();  // as if no frame followed; results of the last phase come with `next`
  void reset();
  bool next(Bytes& result);  // takes the oldest result; false where there is none
  Sides frame() const { return frame_; }
  Sides result() const { return picture_.result(); }

  Progress progress;
  std::atomic_flag busy = ATOMIC_FLAG_INIT;

 private:
  void take_on(std::vector<Row> rows);
  void finish(std::vector<Row> rows);
  std::vector<Row> windows_of(const Phase& phase, const std::vector<Row>& rows, std::size_t& done);
  void guard(const std::function<void()>& work);
  void tell(const Phase& phase, std::uint64_t done, std::uint64_t total);

  std::shared_ptr<Model> model_;
  Sides frame_;
  Picture picture_;
  std::string broken_;                // why it is of no use any more
  std::unique_ptr<Windows> running_;  // of the first phase, or of the last one while its results are taken
  std::int64_t pushed_ = 0;           // frames of the clip
  std::vector<Row> rows_;             // what earlier phases made of each frame
  std::vector<Row> rest_;             // rows of a clip whose last phase is under way
  std::size_t done_ = 0;              // of those
  std::deque<Bytes> results_;
};

}  // namespace vsr
