// The golden test: does this machine compute what the build computed? Exit code 1 where something differs.
// Usage: golden_test FOLDER, with the model and golden.bin in it; --preprocessing leaves the model out.
#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>

#include "@@SNAKE@@.hpp"

namespace m = @@SNAKE@@;

static int failures = 0;

static void fail(const std::string& text) {
  ++failures;
  std::fprintf(stderr, "FAIL: %s\n", text.c_str());
}

static m::Bytes read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + " cannot be read");
  return m::Bytes(std::istreambuf_iterator<char>(file), {});
}

static std::uint32_t number(const m::Bytes& data, std::size_t at) {
  if (at + 4 > data.size()) throw std::runtime_error("golden.bin is cut off");
  return data[at] | data[at + 1] << 8 | data[at + 2] << 16 | static_cast<std::uint32_t>(data[at + 3]) << 24;
}

static std::map<std::string, m::Bytes> entries(const m::Bytes& data) {
  if (data.size() < 12 || std::memcmp(data.data(), "EKGOLD01", 8) != 0) throw std::runtime_error("golden.bin is none");
  std::map<std::string, m::Bytes> found;
  std::size_t at = 12;
  for (std::uint32_t i = 0; i < number(data, 8); ++i) {
    m::Bytes parts[2];
    for (auto& part : parts) {
      const std::uint32_t length = number(data, at);
      if (at + 4 + length > data.size()) throw std::runtime_error("golden.bin is cut off");
      part.assign(data.begin() + at + 4, data.begin() + at + 4 + length);
      at += 4 + length;
    }
    found[std::string(parts[0].begin(), parts[0].end())] = parts[1];
  }
  return found;
}

static m::Floats floats(const m::Bytes& bytes) {
  m::Floats made(bytes.size() / 4);
  std::memcpy(made.data(), bytes.data(), made.size() * 4);
  return made;
}

// SHA-256 as FIPS 180-4 defines it; its constants are fractions of roots of primes.
static std::string sha256(m::Bytes data) {
  std::uint32_t k[64], h[8];
  for (int n = 0, prime = 2; n < 64; ++prime) {
    bool is_prime = true;
    for (int d = 2; d * d <= prime; ++d) is_prime = is_prime && prime % d != 0;
    if (!is_prime) continue;
    const long double root = std::cbrt(static_cast<long double>(prime)), square = std::sqrt(static_cast<long double>(prime));
    k[n] = static_cast<std::uint32_t>((root - std::floor(root)) * 4294967296.0L);
    if (n < 8) h[n] = static_cast<std::uint32_t>((square - std::floor(square)) * 4294967296.0L);
    ++n;
  }
  const std::uint64_t bits = data.size() * 8ull;
  data.push_back(0x80);
  while (data.size() % 64 != 56) data.push_back(0);
  for (int i = 7; i >= 0; --i) data.push_back(static_cast<std::uint8_t>(bits >> (8 * i)));
  const auto turn = [](std::uint32_t x, int n) { return x >> n | x << (32 - n); };
  for (std::size_t block = 0; block < data.size(); block += 64) {
    std::uint32_t w[64], s[8];
    for (int i = 0; i < 16; ++i)
      w[i] = static_cast<std::uint32_t>(data[block + 4 * i]) << 24 | data[block + 4 * i + 1] << 16 | data[block + 4 * i + 2] << 8 | data[block + 4 * i + 3];
    for (int i = 16; i < 64; ++i)
      w[i] = w[i - 16] + (turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] + (turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10);
    std::copy(h, h + 8, s);
    for (int i = 0; i < 64; ++i) {
      const std::uint32_t a = s[7] + (turn(s[4], 6) ^ turn(s[4], 11) ^ turn(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
      const std::uint32_t b = (turn(s[0], 2) ^ turn(s[0], 13) ^ turn(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
      for (int j = 7; j > 0; --j) s[j] = s[j - 1];
      s[4] += a;
      s[0] = a + b;
    }
    for (int i = 0; i < 8; ++i) h[i] += s[i];
  }
  std::string text(64, '0');
  for (int i = 0; i < 64; ++i) text[i] = "0123456789abcdef"[h[i / 8] >> (28 - 4 * (i % 8)) & 15];
  return text;
}

static void preprocessing(const std::map<std::string, m::Bytes>& golden) {
  for (std::size_t i = 0; i < m::inputs().size(); ++i) {
    const auto& spec = m::inputs()[i];
    const std::string number_of = std::to_string(i);
    for (int k = 0; golden.count("image/" + std::to_string(k)); ++k) {
      const auto wanted = golden.find("image/" + std::to_string(k) + "/" + number_of);
      if (wanted == golden.end()) continue;
      const m::Bytes& raw = golden.at("image/" + std::to_string(k));
      const m::Pixels image{static_cast<int>(number(raw, 0)), static_cast<int>(number(raw, 4)), static_cast<int>(number(raw, 8)), m::Bytes(raw.begin() + 12, raw.end())};
      if (m::encode(image, spec) != wanted->second) fail("image " + std::to_string(k) + " becomes another input " + number_of);
    }
    const auto values = golden.find("values/" + number_of);
    if (values != golden.end() && m::encode(floats(values->second), spec) != golden.at("values/" + number_of + "/stored"))
      fail("values become another input " + number_of);
  }
}

static void postprocessing(const std::map<std::string, m::Bytes>& golden) {
  for (int v = 0; v < m::golden_vectors; ++v) {
    std::vector<m::Floats> reals;
    for (std::size_t o = 0; o < m::outputs().size(); ++o)
      reals.push_back(m::decode(golden.at("output/" + std::to_string(o) + "/" + std::to_string(v)), m::outputs()[o]));
    const m::Floats found = m::flat(m::postprocess(reals)), wanted = floats(golden.at("result/" + std::to_string(v)));
    bool same = found.size() == wanted.size();
    for (std::size_t i = 0; same && i < found.size(); ++i)
      same = std::fabs(found[i] - wanted[i]) <= m::tolerance_result * (1 + std::fabs(wanted[i]));
    if (!same) fail("the result of vector " + std::to_string(v) + " differs");
  }
}

static void program(const std::map<std::string, m::Bytes>& golden, const std::string& path, bool exact) {
  m::@@NAME@@ model(path);
  model.warm_up(1);
  for (int v = 0; v < m::golden_vectors; ++v) {
    std::vector<m::Bytes> stored;
    for (std::size_t i = 0; i < m::inputs().size(); ++i) stored.push_back(golden.at("input/" + std::to_string(i) + "/" + std::to_string(v)));
    const auto found = model.run(stored);
    for (std::size_t o = 0; o < found.size(); ++o) {
      const auto& spec = m::outputs()[o];
      const m::Bytes& wanted = golden.at("output/" + std::to_string(o) + "/" + std::to_string(v));
      const std::string name = "output " + std::to_string(o) + " of vector " + std::to_string(v);
      if (exact && found[o] != wanted) fail(name + " is not equal to the golden one");
      const m::Floats a = m::decode(found[o], spec), b = m::decode(wanted, spec);
      double largest = 1e-6, within = 0;
      for (const float value : b) largest = std::max<double>(largest, std::fabs(value));
      const bool is_float = spec.dtype == m::DType::float32;
      const double allowed = is_float ? m::tolerance_relative * largest : m::tolerance_steps * (spec.quantized ? spec.scale : 1) * 1.001;
      for (std::size_t i = 0; i < a.size(); ++i) within += std::fabs(a[i] - b[i]) <= allowed;
      if (within < (is_float ? 1 : m::tolerance_share) * a.size()) fail(name + " differs by more than is allowed");
    }
  }
}

int main(int count, char** arguments) {
  try {
    if (count < 2) throw std::invalid_argument("give the folder of the model");
    const std::string folder = std::string(arguments[1]) + "/", mode = count > 2 ? arguments[2] : "";
    const auto golden = entries(read(folder + "golden.bin"));
    preprocessing(golden);
    if (mode != "--preprocessing") {
      postprocessing(golden);
      if (sha256(read(folder + m::model_file)) != m::model_sha256) fail("the model is not the one of the contract: its digest differs");
      else program(golden, folder + m::model_file, mode == "--exact");
    }
  } catch (const std::exception& error) {
    fail(error.what());
  }
  std::printf("%s: %d golden vectors of @@NAME@@\n", failures ? "failed" : "passed", m::golden_vectors);
  return failures ? 1 : 0;
}
