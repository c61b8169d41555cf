// What a machine is and the state that it is in, as JSON: the fields of agent.py's answers.
#pragma once

#include <glob.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

namespace edgekit {

// ---- JSON ----

inline std::string quoted(const std::string &text)
{
    std::string made = "\"";
    for (unsigned char c : text) {
        char escaped[8];
        if (c == '"' || c == '\\')
            made += '\\', made += static_cast<char>(c);
        else if (c < 0x20 || c >= 0x7f)  // bytes of other encodings become single code points: always valid JSON
            std::snprintf(escaped, sizeof escaped, "\\u%04x", c), made += escaped;
        else
            made += static_cast<char>(c);
    }
    return made + '"';
}

template <class T> std::string joined(const T &values)
{
    std::string made;
    for (const auto &value : values)
        made += (made.empty() ? "" : ", ") + std::to_string(value);
    return "[" + made + "]";
}

inline std::string or_null(const std::string &text) { return text.empty() ? "null" : quoted(text); }

// ---- the machine ----

inline std::string content(const std::string &path)
{
    std::ifstream file(path, std::ios::binary);
    std::string text((std::istreambuf_iterator<char>(file)), {});
    while (!text.empty() && (text.back() == '\0' || text.back() == '\n' || text.back() == ' '))
        text.pop_back();
    return text;
}

inline std::string field(const std::string &text, const std::string &name, char separator = ':')
{
    std::stringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        size_t at = line.find(separator);
        if (at == std::string::npos || line.compare(0, name.size(), name) != 0)
            continue;
        if (line.find_first_not_of(" \t", name.size()) != at)
            continue;
        size_t begin = line.find_first_not_of(" \t\"", at + 1);
        size_t end = line.find_last_not_of(" \t\"");
        return begin == std::string::npos ? "" : line.substr(begin, end - begin + 1);
    }
    return "";
}

inline std::string integer(const std::string &path)
{
    std::string text = content(path);
    bool fine = !text.empty() && text.find_first_not_of("0123456789", text[0] == '-') == std::string::npos;
    return fine && text != "-" ? text : "null";
}

inline std::vector<std::string> matching(const char *pattern)
{
    glob_t found{};
    std::vector<std::string> paths;
    if (glob(pattern, 0, nullptr, &found) == 0)
        paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
    globfree(&found);
    return paths;
}

inline std::string base_name(const std::string &path) { return path.substr(path.rfind('/') + 1); }

inline std::string model_name()
{
    std::string name = content("/proc/device-tree/model"), cpu = content("/proc/cpuinfo");
    if (name.empty())
        name = content("/sys/firmware/devicetree/base/model");
    if (name.empty())
        name = field(cpu, "model name");
    return name.empty() ? field(cpu, "Hardware") : name;
}

inline std::string throttled()
{
    std::string text = content("/sys/devices/platform/soc/soc:firmware/get_throttled");
    if (text.empty() && std::getenv("PATH")) {
        FILE *tool = popen("vcgencmd get_throttled 2>/dev/null", "r");
        char line[128] = "";
        if (tool && std::fgets(line, sizeof line, tool))
            text = line;
        if (tool)
            pclose(tool);
    }
    size_t at = text.rfind("0x") == std::string::npos ? 0 : text.rfind("0x") + 2;
    char *end = nullptr;
    unsigned long value = std::strtoul(text.c_str() + at, &end, 16);
    return end == text.c_str() + at ? "null" : std::to_string(value);
}

inline std::string frequencies()
{
    std::string made;
    for (const auto &folder : matching("/sys/devices/system/cpu/cpufreq/policy*")) {
        made += made.empty() ? "" : ", ";
        made += "{\"name\": " + quoted(base_name(folder)) +
                ", \"governor\": " + or_null(content(folder + "/scaling_governor")) +
                ", \"current_khz\": " + integer(folder + "/scaling_cur_freq") +
                ", \"min_khz\": " + integer(folder + "/scaling_min_freq") +
                ", \"max_khz\": " + integer(folder + "/scaling_max_freq") + "}";
    }
    return "[" + made + "]";
}

inline std::string temperatures()
{
    std::string made;
    for (const auto &zone : matching("/sys/class/thermal/thermal_zone*")) {
        std::string value = integer(zone + "/temp"), type = content(zone + "/type");
        if (value == "null")
            continue;
        made += made.empty() ? "" : ", ";
        made += quoted(base_name(zone) + (type.empty() ? "" : ":" + type)) + ": " +
                std::to_string(std::strtod(value.c_str(), nullptr) / 1000.0);
    }
    return "{" + made + "}";
}

inline std::string processor_seconds()
{
    std::string name;
    std::stringstream line(content("/proc/stat"));
    std::vector<double> ticks;
    line >> name;
    for (double value; ticks.size() < 8 && line >> value;)
        ticks.push_back(value / static_cast<double>(sysconf(_SC_CLK_TCK)));
    if (name != "cpu" || ticks.size() < 8)
        return "\"busy_s\": null, \"steal_s\": null";
    return "\"busy_s\": " + std::to_string(ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6]) +
           ", \"steal_s\": " + std::to_string(ticks[7]);
}

inline std::string identity()
{
    utsname system{};
    uname(&system);
    return "\"machine\": " + quoted(system.machine) +
           ", \"kernel\": " + quoted(std::string(system.sysname) + " " + system.release) +
           ", \"cpus\": " + std::to_string(std::max(1L, sysconf(_SC_NPROCESSORS_CONF)));
}

inline std::string environment()
{
    cpu_set_t set;
    std::vector<int> cores;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        for (int core = 0; core < CPU_SETSIZE; core++)
            if (CPU_ISSET(core, &set))
                cores.push_back(core);
    double load = 0;
    rusage own{}, ended{};
    getrusage(RUSAGE_SELF, &own), getrusage(RUSAGE_CHILDREN, &ended);
    auto seconds = [](const timeval &t) { return static_cast<double>(t.tv_sec) + t.tv_usec / 1e6; };
    bool known = getloadavg(&load, 1) == 1;
    return "{\"cpu_model\": " + or_null(model_name()) + ", " + identity() + ", \"affinity\": " + joined(cores) +
           ", \"frequencies\": " + frequencies() + ", \"load_average\": " + (known ? std::to_string(load) : "null") +
           ", \"temperatures_c\": " + temperatures() + ", \"throttled\": " + throttled() + ", " +
           processor_seconds() + ", \"own_s\": " +
           std::to_string(seconds(own.ru_utime) + seconds(own.ru_stime) + seconds(ended.ru_utime) +
                          seconds(ended.ru_stime)) +
           "}";
}

inline std::string hello()
{
    std::string cpu = content("/proc/cpuinfo"), features;
    std::stringstream words(field(cpu, "Features"));
    for (std::string word; words >> word;)
        features += (features.empty() ? "" : ", ") + quoted(word);
    unsigned long long kilobytes = std::strtoull(field(content("/proc/meminfo"), "MemTotal").c_str(), nullptr, 10);
    struct statvfs disk {};
    bool known = statvfs(".", &disk) == 0;
    return "{\"model\": " + or_null(model_name()) + ", " + identity() +
           ", \"system\": " + quoted(field(content("/etc/os-release"), "PRETTY_NAME", '=')) +
           ", \"cpu_part\": " + or_null(field(cpu, "CPU part")) + ", \"cpu_features\": [" + features +
           "], \"memory_bytes\": " + (kilobytes ? std::to_string(kilobytes * 1024) : "null") +
           ", \"free_disk_bytes\": " +
           (known ? std::to_string(static_cast<unsigned long long>(disk.f_bavail) * disk.f_frsize) : "null") +
           ", \"page_bytes\": " + std::to_string(sysconf(_SC_PAGESIZE)) +
           ", \"emulated\": " + (content("/etc/edgekit-emulator").empty() ? "false" : "true") + "}";
}

// Not ru_maxrss: that counts the process which started this one too, from before its exec.
inline long peak_kib() { return std::strtol(field(content("/proc/self/status"), "VmHWM").c_str(), nullptr, 10); }

inline int64_t now_ns()
{
    timespec t{};
    clock_gettime(CLOCK_MONOTONIC_RAW, &t);  // no time service slews it
    return int64_t{t.tv_sec} * 1000000000 + t.tv_nsec;
}

}  // namespace edgekit
