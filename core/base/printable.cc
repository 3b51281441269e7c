#include "core/base/printable.h"

namespace kapsule {
namespace {

bool IsControl(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; }
bool IsContinuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

}  // namespace

std::string Printable(std::string_view text, size_t limit) {
  size_t length = text.size();
  if (length > limit) {
    length = limit;
    while (length > 0 && IsContinuation(text[length])) --length;
  }
  std::string shown(text.substr(0, length));
  for (char& c : shown)
    if (IsControl(c)) c = '?';
  return length < text.size() ? shown + "…" : shown;
}

std::string PrintableAscii(std::string_view text, size_t limit) {
  std::string shown(text.substr(0, limit));
  for (char& c : shown)
    if (c < ' ' || c > '~') c = '?';
  return shown;
}

}  // namespace kapsule
