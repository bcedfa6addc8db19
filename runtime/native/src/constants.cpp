#include "constants.hpp"

#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>

namespace vsr {
namespace {

struct Table {
  Shape shape;
  Bytes numbers;
};

// A file of numpy's format, little-endian, in C's order.
Table read_npy(const std::filesystem::path& file, Type type) {
  static const std::map<Type, std::string> names = {{Type::u8, "|u1"},  {Type::f32, "<f4"}, {Type::f16, "<f2"},
                                                    {Type::i32, "<i4"}, {Type::i64, "<i8"}, {Type::boolean, "|b1"}};
  const auto refuse = [&](const char* what) { throw Failure(VSR_DAMAGED, file.string() + ": " + what + "."); };
  std::ifstream stream(file, std::ios::binary);
  if (!stream) throw Failure(VSR_MISSING, file.string() + " cannot be read.");
  Bytes bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  if (bytes.size() < 12 || std::memcmp(bytes.data(), "\x93NUMPY", 6) != 0) refuse("it is no .npy file");
  const std::size_t wide = bytes[6] == 1 ? 2 : 4;  // bytes of the header's length
  std::size_t length = 0;
  for (std::size_t i = wide; i-- > 0;) length = length << 8 | bytes[8 + i];
  const std::size_t begin = 8 + wide;
  if (length > bytes.size() - begin) refuse("its header is longer than the file");
  const std::string header(bytes.begin() + static_cast<std::ptrdiff_t>(begin),
                           bytes.begin() + static_cast<std::ptrdiff_t>(begin + length));
  if (header.find("'descr': '" + names.at(type) + "'") == std::string::npos) refuse("its numbers are of another type");
  if (header.find("'fortran_order': False") == std::string::npos) refuse("it is in Fortran's order");
  std::size_t at = header.find("'shape': (");
  if (at == std::string::npos) refuse("it has no shape");
  Table found;
  for (at += 10; at < header.size() && header[at] != ')';) {
    std::int64_t side = 0;
    const std::size_t start = at;
    for (; at < header.size() && header[at] >= '0' && header[at] <= '9' && at - start < 12; ++at) {
      side = side * 10 + (header[at] - '0');
    }
    if (at == start) refuse("its shape cannot be read");
    found.shape.push_back(side);
    while (at < header.size() && (header[at] == ',' || header[at] == ' ')) ++at;
  }
  std::size_t expected = size_of(type);
  for (const std::int64_t side : found.shape) {
    if (side != 0 && expected > bytes.size() / static_cast<std::size_t>(side)) refuse("it is shorter than its shape");
    expected *= static_cast<std::size_t>(side);
  }
  found.numbers.assign(bytes.begin() + static_cast<std::ptrdiff_t>(begin + length), bytes.end());
  if (found.numbers.size() != expected) refuse("it is not as long as its shape");
  return found;
}

template <class T>
void fill(Bytes& bytes, T value) {
  for (std::size_t at = 0; at + sizeof(T) <= bytes.size(); at += sizeof(T)) std::memcpy(&bytes[at], &value, sizeof(T));
}

Bytes filled(const Buffer& buffer, const Value& value) {
  if (!value.is_number) throw Failure(VSR_DAMAGED, buffer.name + " is of an option that is no number.");
  Bytes bytes(buffer.bytes);
  const double number = value.number;
  const bool fits = std::fabs(number) < 9e18 && (buffer.type != Type::i32 || std::fabs(number) < 2147483648.0) &&
                    (buffer.type != Type::u8 || (number >= 0 && number < 256));
  const auto whole = fits ? static_cast<std::int64_t>(number) : 0;
  switch (buffer.type) {
    case Type::f32:
      fill(bytes, static_cast<float>(number));
      break;
    case Type::f16:
      fill(bytes, to_half(static_cast<float>(number)));
      break;
    case Type::i64:
      fill(bytes, value.is_whole ? static_cast<std::int64_t>(value.bits) : whole);
      break;
    case Type::i32:
      fill(bytes, static_cast<std::int32_t>(whole));
      break;
    case Type::u8:
      fill(bytes, static_cast<std::uint8_t>(whole));
      break;
    case Type::boolean:
      fill(bytes, static_cast<std::uint8_t>(number != 0));
      break;
  }
  if (!fits) throw Failure(VSR_ARGUMENT, buffer.name + " cannot have this value.");
  return bytes;
}

}  // namespace

Bytes constant(const Bundle& bundle, const Schedule& schedule, const Buffer& buffer) {
  const Source& source = schedule.inputs.at(buffer.name);
  if (source.kind == Source::Kind::zeros) return Bytes(buffer.bytes);
  if (source.kind == Source::Kind::option) return filled(buffer, bundle.value(source.name));
  if (source.kind == Source::Kind::noise) throw Failure(VSR_DAMAGED, buffer.name + " is noise, and a constant.");
  Table table = read_npy(bundle.file(source.name), buffer.type);
  if (!source.row) {
    if (table.shape != buffer.shape) throw Failure(VSR_DAMAGED, "the constant " + buffer.name + " has another shape.");
    return std::move(table.numbers);
  }
  if (table.shape.empty() || *source.row >= table.shape[0]) {
    throw Failure(VSR_DAMAGED, source.name + " has fewer rows than the loop has steps.");
  }
  const std::size_t row = table.numbers.size() / static_cast<std::size_t>(table.shape[0]);
  if (row != buffer.bytes) throw Failure(VSR_DAMAGED, "a row of " + source.name + " has another size.");
  const auto begin = table.numbers.begin() + static_cast<std::ptrdiff_t>(row * static_cast<std::size_t>(*source.row));
  return Bytes(begin, begin + static_cast<std::ptrdiff_t>(row));
}

std::uint16_t to_half(float number) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &number, sizeof bits);
  const std::uint32_t sign = bits >> 16 & 0x8000U, size = bits & 0x7FFFFFFFU;
  std::uint32_t half = 0;
  if (size > 0x7F800000U) {
    half = 0x7C00U | (size >> 13 & 0x3FFU);  // not a number; numpy keeps its upper bits, and never makes it infinite
    if (half == 0x7C00U) half = 0x7C01U;
  } else if (size >= 0x47800000U) {
    half = 0x7C00U;
  } else if (size >= 0x38800000U) {
    half = (size + 0xFFFU + (size >> 13 & 1U) - 0x38000000U) >> 13;
  } else if (size >= 0x33000000U) {
    const std::uint32_t shift = 126U - (size >> 23), mantissa = (size & 0x7FFFFFU) | 0x800000U;
    const std::uint32_t rest = mantissa & ((1U << shift) - 1U), middle = 1U << (shift - 1U);
    half = mantissa >> shift;
    if (rest > middle || (rest == middle && (half & 1U) != 0)) half += 1;
  }
  return static_cast<std::uint16_t>(sign | half);
}

float from_half(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16, size = half & 0x7FFFU;
  std::uint32_t bits = size << 13;
  if (size >= 0x7C00U) {
    bits += 0x70000000U;
  } else if (size >= 0x400U) {
    bits += 0x38000000U;
  } else {
    const float small = static_cast<float>(size) * 5.9604644775390625e-8F;  // 2^-24
    std::memcpy(&bits, &small, sizeof bits);
  }
  bits |= sign;
  float number = 0;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

}  // namespace vsr
