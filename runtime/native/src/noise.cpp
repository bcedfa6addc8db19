// Nothing here may be contracted to fused multiply-adds (-ffp-contract=off): IEEE 754 then defines every bit.
#include "noise.hpp"

#include <array>
#include <cmath>

namespace vsr {
namespace {

using Words = std::array<std::uint32_t, 4>;
using Ratio = std::array<double, 16>;  // coefficients of a numerator and a denominator, from the highest power down

// AS 241, PPND16
constexpr Ratio kCentre = {2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
                           13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608,
                           5226.495278852854561,  28729.085735721942674, 39307.89580009271061,  21213.794301586595867,
                           5394.1960214247511077, 687.1870074920579083,  42.313330701600911252, 1.0};
constexpr Ratio kMiddle = {
    7.7454501427834140764e-4,  0.0227238449892691845833, 0.24178072517745061177,   1.27045825245236838258,
    3.64784832476320460504,    5.7694972214606914055,    4.6303378461565452959,    1.42343711074968357734,
    1.05075007164441684324e-9, 5.475938084995344946e-4,  0.0151986665636164571966, 0.14810397642748007459,
    0.68976733498510000455,    1.6763848301838038494,    2.05319162663775882187,   1.0};
constexpr Ratio kFar = {
    2.01033439929228813265e-7,  2.71155556874348757815e-5, 0.0012426609473880784386, 0.026532189526576123093,
    0.29656057182850489123,     1.7848265399172913358,     5.4637849111641143699,    6.6579046435011037772,
    2.04426310338993978564e-15, 1.4215117583164458887e-7,  1.8463183175100546818e-5, 7.868691311456132591e-4,
    0.0148753612908506148525,   0.13692988092273580531,    0.59983220655588793769,   1.0};
constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;

std::uint32_t crc32(const std::string& text) {
  std::uint32_t crc = 0xFFFFFFFFU;
  for (const char c : text) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1U) != 0 ? 0xEDB88320U : 0U);
  }
  return ~crc;
}

// Philox 4x32-10.
Words philox(Words c, std::uint64_t seed) {
  auto low = static_cast<std::uint32_t>(seed), high = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t left = std::uint64_t{c[0]} * 0xD2511F53U, right = std::uint64_t{c[2]} * 0xCD9E8D57U;
    c = {static_cast<std::uint32_t>(right >> 32) ^ c[1] ^ low, static_cast<std::uint32_t>(right),
         static_cast<std::uint32_t>(left >> 32) ^ c[3] ^ high, static_cast<std::uint32_t>(left)};
    low += 0x9E3779B9U;
    high += 0xBB67AE85U;
  }
  return c;
}

double ratio(const Ratio& coefficients, double x) {
  double above = coefficients[0], below = coefficients[8];
  for (std::size_t i = 1; i < 8; ++i) {
    above = above * x + coefficients[i];
    below = below * x + coefficients[8 + i];
  }
  return above / below;
}

// The natural logarithm: 2 atanh((m - 1) / (m + 1)) of the mantissa m in [sqrt(1/2), sqrt(2)), 12 terms.
double logarithm(double x) {
  int exponent = 0;
  double mantissa = std::frexp(x, &exponent);
  if (mantissa < std::sqrt(0.5)) {
    mantissa = 2.0 * mantissa;
    exponent -= 1;
  }
  const double s = (mantissa - 1.0) / (mantissa + 1.0), square = s * s;
  double series = 1.0 / 23.0;
  for (int k = 10; k >= 0; --k) series = series * square + 1.0 / (2 * k + 1);
  return exponent * kLn2High + (exponent * kLn2Low + 2.0 * (s * series));
}

// The normal quantile of 0 < p < 1.
double quantile(double p) {
  const double q = p - 0.5;
  if (std::fabs(q) <= 0.425) return q * ratio(kCentre, 0.180625 - q * q);
  const double tail = std::sqrt(-logarithm(std::fmin(p, 1.0 - p)));
  const double outer = tail <= 5.0 ? ratio(kMiddle, tail - 1.6) : ratio(kFar, tail - 5.0);
  return q < 0 ? -outer : outer;
}

}  // namespace

void draw(std::uint64_t seed, const std::string& purpose, std::uint32_t step, std::uint32_t frame, std::size_t count,
          float* numbers) {
  const std::uint32_t name = crc32(purpose);
  for (std::size_t place = 0; place < count; place += 4) {
    const Words words = philox({static_cast<std::uint32_t>(place / 4), frame, step, name}, seed);
    for (std::size_t i = 0; i < 4 && place + i < count; ++i) {
      numbers[place + i] = static_cast<float>(quantile((words[i] + 0.5) / 4294967296.0));
    }
  }
}

}  // namespace vsr
