// Runs a program where there is no Python: the operations of agent.py as a command.
//
//   runner OPERATION key=value...     operations: hello, run, measure, blocks, memory, count
//
// It writes one line to stdout: {"edgekit-native": 1, "ok": true, "result": {...}}, or "ok": false and "error" with
// "kind" and "message". Tensors travel as raw bytes: a file of inputs holds sample after sample, and in each of them the
// inputs in the order of the request; outputs likewise. A runtime that crashes ends the process, which the host sees.
#pragma once

#include "native_machine.hpp"

#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <new>
#include <sstream>
#include <string>
#include <vector>

namespace edgekit {

using Bytes = std::vector<uint8_t>;
using Shape = std::vector<int64_t>;

struct Failure {
    std::string kind, message;
};

struct Output {
    Shape shape;
    const uint8_t *data;
    size_t size;
};

// A loaded program; inputs and outputs by position in the request.
class Program {
  public:
    virtual ~Program() = default;
    virtual void allocate(const std::vector<Shape> &shapes) = 0;
    virtual size_t input_bytes(size_t position) = 0;
    virtual void feed(size_t position, const uint8_t *data) = 0;
    virtual void invoke() = 0;
    virtual size_t outputs() = 0;
    // Calls `take` with the output; its data is valid only there.
    virtual void read(size_t position, void (*take)(const Output &, void *), void *context) = 0;
};

class Request {
  public:
    std::map<std::string, std::string> fields;

    const std::string &text(const std::string &key) const
    {
        auto found = fields.find(key);
        if (found == fields.end())
            throw Failure{"request", "the request has no " + key};
        return found->second;
    }
    double number(const std::string &key) const { return std::strtod(text(key).c_str(), nullptr); }
    size_t count(const std::string &key) const { return std::strtoull(text(key).c_str(), nullptr, 10); }
    // "1x96x96x3;1x4" as shapes; a scalar is an empty part, and "-" means no tensor at all.
    std::vector<Shape> shapes(const std::string &key) const
    {
        std::vector<Shape> found;
        if (text(key) == "-")
            return found;
        std::stringstream parts(text(key) + ";");
        for (std::string part; std::getline(parts, part, ';');) {
            std::stringstream sizes(part);
            found.emplace_back();
            for (std::string size; std::getline(sizes, size, 'x');)
                found.back().push_back(std::strtoll(size.c_str(), nullptr, 10));
        }
        return found;
    }
    std::vector<long> integers(const std::string &key) const
    {
        std::vector<long> found;
        std::stringstream parts(text(key));
        for (std::string part; std::getline(parts, part, ',');)
            found.push_back(std::strtol(part.c_str(), nullptr, 10));
        return found;
    }
};

// Each runtime defines this.
std::unique_ptr<Program> open_program(const Request &request);

// ---- samples ----

// The samples of a file, one after another.
class Samples {
  public:
    Samples(Program &program, const Request &request)
        : program_(program), shapes_(request.shapes("shapes")), file_(request.text("inputs"), std::ios::binary)
    {
        if (!file_)
            throw Failure{"system", "the file of inputs cannot be read"};
        program_.allocate(shapes_);
        for (size_t i = 0; i < shapes_.size(); i++)
            held_.emplace_back(program_.input_bytes(i));
    }
    void next()
    {
        for (size_t i = 0; i < held_.size(); i++)
            if (!file_.read(reinterpret_cast<char *>(held_[i].data()), static_cast<std::streamsize>(held_[i].size())))
                throw Failure{"run", "input " + std::to_string(i) + " needs " + std::to_string(held_[i].size()) +
                                         " bytes, and the file has fewer"};
        feed();
    }
    void feed()
    {
        for (size_t i = 0; i < held_.size(); i++)
            program_.feed(i, held_[i].data());
    }
    void finish()
    {
        if (file_.peek() != std::ifstream::traits_type::eof())
            throw Failure{"run", "the samples are larger than the program's inputs"};
    }

  private:
    Program &program_;
    std::vector<Shape> shapes_;
    std::ifstream file_;
    std::vector<Bytes> held_;
};

inline void write_all(std::ofstream &file, const void *data, size_t size)
{
    file.write(static_cast<const char *>(data), static_cast<std::streamsize>(size));
    if (!file)
        throw Failure{errno == ENOSPC || errno == EDQUOT ? "disk" : "system", std::strerror(errno)};
}

inline void close_all(std::ofstream &file)
{
    file.flush();
    write_all(file, "", 0);
}

struct Collected {
    std::ofstream file;
    std::vector<Shape> shapes;
    size_t position;
};

inline void collect(const Output &output, void *context)
{
    auto &kept = *static_cast<Collected *>(context);
    if (kept.shapes.size() == kept.position)
        kept.shapes.push_back(output.shape);
    if (kept.shapes[kept.position] != output.shape)
        throw Failure{"run", "the shape of output " + std::to_string(kept.position) + " changes from sample to sample"};
    write_all(kept.file, output.data, output.size);
}

inline void read_back(Program &program)
{
    // As a caller would: every output is copied out of the runtime's memory.
    static Bytes kept;
    for (size_t i = 0; i < program.outputs(); i++)
        program.read(i, [](const Output &o, void *) { kept.assign(o.data, o.data + o.size); }, nullptr);
}

// ---- operations ----

inline std::string milliseconds(int64_t from, int64_t to) { return std::to_string(static_cast<double>(to - from) / 1e6); }

inline std::string run(const Request &request)
{
    int64_t started = now_ns();
    auto program = open_program(request);
    Samples samples(*program, request);
    int64_t loaded = now_ns();
    Collected kept{std::ofstream(request.text("outputs"), std::ios::binary), {}, 0};
    size_t total = request.count("samples");
    for (size_t n = 0; n < total; n++) {
        samples.next();
        program->invoke();
        for (kept.position = 0; kept.position < program->outputs(); kept.position++)
            program->read(kept.position, collect, &kept);
    }
    samples.finish();
    close_all(kept.file);
    std::string shapes;
    for (const auto &shape : kept.shapes)
        shapes += (shapes.empty() ? "" : ", ") + joined(shape);
    return "{\"samples\": " + std::to_string(total) + ", \"shapes\": [" + shapes +
           "], \"load_ms\": " + milliseconds(started, loaded) + ", \"peak_rss_kib\": " + std::to_string(peak_kib()) + "}";
}

template <class T> T median(std::vector<T> values)
{
    std::sort(values.begin(), values.end());
    size_t middle = values.size() / 2;
    return values.size() % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

inline bool is_stable(const std::vector<double> &durations, size_t window, double tolerance)
{
    if (window == 0 || durations.size() < 2 * window)
        return false;
    auto end = durations.end();
    double before = median(std::vector<double>(end - 2 * static_cast<long>(window), end - static_cast<long>(window)));
    double last = median(std::vector<double>(end - static_cast<long>(window), end));
    return std::abs(last - before) <= tolerance * before;
}

struct Timed {
    std::vector<int64_t> durations, starts;
    size_t runs = 0;
    double seconds = 0;
};

// At least `runs` and `seconds`, at most `max_seconds`; of a very long measurement every second sample is kept.
template <class F> Timed timed_loop(F once, const Request &request)
{
    const size_t most = size_t{1} << 21, wanted = request.count("runs");
    const double shortest = request.number("seconds"), longest = request.number("max_seconds");
    Timed timed;
    size_t stride = 1;
    const int64_t begin = now_ns();
    while ((timed.runs < wanted || timed.seconds < shortest) && (timed.seconds < longest || !timed.runs)) {
        int64_t start = now_ns();
        once();
        int64_t end = now_ns();
        if (timed.runs % stride == 0) {
            timed.durations.push_back(end - start), timed.starts.push_back(start - begin);
            if (timed.durations.size() >= most) {
                for (size_t i = 0; i < most / 2; i++)
                    timed.durations[i] = timed.durations[2 * i], timed.starts[i] = timed.starts[2 * i];
                timed.durations.resize(most / 2), timed.starts.resize(most / 2), stride *= 2;
            }
        }
        timed.runs++;
        timed.seconds = static_cast<double>(end - begin) / 1e9;
    }
    return timed;
}

struct Warmed {
    size_t runs;
    bool stable;
};

// Runs until the rule of the request holds or its cap is reached.
template <class F> Warmed warm_up(F once, const Request &request)
{
    std::vector<double> durations;
    for (int64_t begin = now_ns();;) {
        int64_t start = now_ns();
        once();
        int64_t end = now_ns();
        durations.push_back(static_cast<double>(end - start));
        double elapsed = static_cast<double>(end - begin) / 1e9;
        bool stable = is_stable(durations, request.count("warm_window"), request.number("warm_tolerance"));
        bool enough = durations.size() >= request.count("warm_runs") && elapsed >= request.number("warm_seconds");
        if ((enough && stable) || elapsed >= request.number("warm_cap_s"))
            return {durations.size(), stable};
    }
}

// Median times in ms of an inference's parts: inputs copied in, run, outputs read back.
inline std::string spans(Program &program, Samples &samples, size_t runs)
{
    std::vector<double> parts[3];
    for (size_t i = 0, most = std::max(size_t{16}, std::min(size_t{2000}, runs / 4)); i < most; i++) {
        int64_t begin = now_ns();
        samples.feed();
        int64_t copied = now_ns();
        program.invoke();
        int64_t ran = now_ns();
        read_back(program);
        int64_t end = now_ns();
        parts[0].push_back(static_cast<double>(copied - begin) / 1e6);
        parts[1].push_back(static_cast<double>(ran - copied) / 1e6);
        parts[2].push_back(static_cast<double>(end - ran) / 1e6);
    }
    return "{\"copy_in_ms\": " + std::to_string(median(parts[0])) + ", \"run_ms\": " + std::to_string(median(parts[1])) +
           ", \"read_back_ms\": " + std::to_string(median(parts[2])) + "}";
}

inline std::string measure(const Request &request)
{
    int64_t started = now_ns();
    auto program = open_program(request);
    Samples samples(*program, request);
    int64_t loaded = now_ns();
    samples.next();
    program->invoke();
    read_back(*program);
    int64_t first = now_ns();
    auto once = [&] { samples.feed(), program->invoke(), read_back(*program); };

    timespec pause{static_cast<time_t>(request.number("cooldown_s")), 0};
    nanosleep(&pause, nullptr);
    std::vector<int64_t> overheads;
    for (int i = 0; i < 1000; i++) {
        int64_t a = now_ns();
        overheads.push_back(now_ns() - a);
    }
    Warmed warmed = warm_up(once, request);
    std::string before = environment();
    Timed timed = timed_loop(once, request);
    std::string after = environment();
    std::string parts = spans(*program, samples, timed.runs);
    std::ofstream file(request.text("samples"), std::ios::binary);
    write_all(file, timed.durations.data(), timed.durations.size() * sizeof(int64_t));
    write_all(file, timed.starts.data(), timed.starts.size() * sizeof(int64_t));
    close_all(file);
    return "{\"load_ms\": " + milliseconds(started, loaded) + ", \"first_ms\": " + milliseconds(loaded, first) +
           ", \"spans\": " + parts + ", \"warm_up_runs\": " + std::to_string(warmed.runs) +
           ", \"warm_up_stable\": " + (warmed.stable ? "true" : "false") +
           ", \"timer_overhead_ns\": " + std::to_string(median(overheads)) +
           ", \"clock\": \"CLOCK_MONOTONIC_RAW\", \"runs\": " + std::to_string(timed.runs) +
           ", \"duration_s\": " + std::to_string(timed.seconds) + ", \"before\": " + before + ", \"after\": " + after + "}";
}

// ---- a comparison ----

// One of two programs that take turns; its fields in the request have `prefix` in front.
class Side {
  public:
    Side(const Request &whole, const std::string &prefix)
    {
        for (const auto &[key, value] : whole.fields)
            if (key.compare(0, prefix.size(), prefix) == 0)
                request_.fields[key.substr(prefix.size())] = value;
        program_ = open_program(request_);
        samples_ = std::make_unique<Samples>(*program_, request_);
        samples_->next();
        once();
    }
    void once() { samples_->feed(), program_->invoke(), read_back(*program_); }

  private:
    Request request_;
    std::unique_ptr<Program> program_;
    std::unique_ptr<Samples> samples_;
};

// Warms a program up and returns how many of its runs fill a block.
inline size_t block_runs(Side &side, const Request &request)
{
    warm_up([&] { side.once(); }, request);
    std::vector<double> times;
    for (int i = 0; i < 9; i++) {
        int64_t start = now_ns();
        side.once();
        times.push_back(static_cast<double>(now_ns() - start));
    }
    double fill = request.number("block_s") * 1e9 / std::max(1.0, median(times));
    return std::max(size_t{2}, static_cast<size_t>(fill + 0.5));
}

// How often the system has taken a processor from this process to give it to another.
inline int64_t preemptions()
{
    rusage own{};
    getrusage(RUSAGE_SELF, &own);
    return own.ru_nivcsw;
}

// Groups of four blocks, A B B A or B A A B: `firsts` names the side that each group begins with, `loads` the side that
// is loaded first. Rows of (group, place, side, nanoseconds, preemptions) go to the file `samples`, as agents write them.
inline std::string blocks(const Request &request)
{
    const std::vector<long> firsts = request.integers("firsts");
    const size_t order[] = {request.count("loads") % 2, 1 - request.count("loads") % 2};
    std::unique_ptr<Side> sides[2];
    size_t runs[2];
    for (size_t side : order)
        sides[side] = std::make_unique<Side>(request, std::to_string(side) + ".");
    for (size_t side : order)
        runs[side] = block_runs(*sides[side], request);
    std::string before = environment();
    std::vector<int64_t> rows;
    for (size_t group = 0; group < firsts.size(); group++) {
        for (size_t place = 0; place < 4; place++) {
            const size_t side = (static_cast<size_t>(firsts[group]) + (place == 1 || place == 2)) % 2;
            sides[side]->once();  // the other program has left the caches to itself
            // Runs from which the system took the processor do not count; they are made up for, within limits.
            for (size_t quiet = 0, made = 0; quiet < runs[side] && made < 3 * runs[side]; made++) {
                int64_t lost = preemptions(), start = now_ns();
                sides[side]->once();
                int64_t taken = now_ns() - start;
                lost = preemptions() - lost;
                for (int64_t value : {static_cast<int64_t>(group), static_cast<int64_t>(place),
                                      static_cast<int64_t>(side), taken, lost})
                    rows.push_back(value);
                quiet += lost == 0;
            }
        }
    }
    std::string after = environment();
    std::ofstream file(request.text("samples"), std::ios::binary);
    write_all(file, rows.data(), rows.size() * sizeof(int64_t));
    close_all(file);
    return "{\"before\": " + before + ", \"after\": " + after + ", \"runs\": [" + std::to_string(runs[0]) + ", " +
           std::to_string(runs[1]) + "]}";
}

inline std::string memory(const Request &request)
{
    long before = peak_kib();
    auto program = open_program(request);
    Samples samples(*program, request);
    long loaded = peak_kib();
    samples.next();
    program->invoke();
    read_back(*program);
    return "{\"before_kib\": " + std::to_string(before) + ", \"loaded_kib\": " + std::to_string(loaded) +
           ", \"peak_kib\": " + std::to_string(peak_kib()) + "}";
}

// Runs between marks: a system call that a plug-in of the emulator looks for.
inline std::string count(const Request &request)
{
    auto program = open_program(request);
    Samples samples(*program, request);
    samples.next();
    program->invoke();
    size_t runs = request.count("runs");
    getppid();
    for (size_t i = 0; i < runs; i++)
        program->invoke(), getppid();
    return "{\"runs\": " + std::to_string(runs) + "}";
}

inline std::string perform(const std::string &operation, const Request &request)
{
    if (operation == "hello")
        return hello();
    if (operation == "run")
        return run(request);
    if (operation == "measure")
        return measure(request);
    if (operation == "blocks")
        return blocks(request);
    if (operation == "memory")
        return memory(request);
    if (operation == "count")
        return count(request);
    throw Failure{"request", "operation " + operation + " is unknown; accepted: hello, run, measure, blocks, memory, count"};
}

inline int answer(bool fine, const std::string &key, const std::string &value)
{
    std::printf("\n{\"edgekit-native\": 1, \"ok\": %s, \"%s\": %s}\n", fine ? "true" : "false", key.c_str(), value.c_str());
    std::fflush(stdout);
    // Destructors of a runtime that has just failed are not to be trusted with the answer.
    _exit(0);
}

inline int refuse(const std::string &kind, const std::string &message)
{
    return answer(false, "error", "{\"kind\": " + quoted(kind) + ", \"message\": " + quoted(message) + "}");
}

inline int main_of(int count, char **words)
{
    Request request;
    for (int i = 2; i < count; i++) {
        std::string word = words[i];
        size_t at = word.find('=');
        if (at == std::string::npos)
            return refuse("request", "a word of the request has no value");
        request.fields[word.substr(0, at)] = word.substr(at + 1);
    }
    try {
        return answer(true, "result", perform(count > 1 ? words[1] : "", request));
    } catch (const Failure &failure) {
        return refuse(failure.kind, failure.message);
    } catch (const std::bad_alloc &) {
        return refuse("memory", "the device ran out of memory");
    } catch (const std::exception &error) {
        return refuse("agent", error.what());
    }
}

}  // namespace edgekit
