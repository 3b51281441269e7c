// A sequence of FUSE requests of any content: never a crash, always a reply that
// the kernel could take. Each request is preceded by its length, u16.
#include <cstdlib>

#include "snapshotter/fuse/session.h"
#include "snapshotter/fuse/test_views.h"

namespace {

using namespace kapsule;

struct World {
  std::unique_ptr<fuse::testing::TestView> made =
      fuse::testing::MakeTestView(fuse::testing::DigestStarting("cd"), 300'000);
  std::unique_ptr<fuse::RequestMemory> memory = fuse::testing::MakeMemory();
  fuse::LockedBuffer buffer = fuse::LockedBuffer::Make(fuse::Reply::kBufferSize).value();
};

void CheckReply(ByteSpan request, ByteSpan reply) {
  if (reply.empty()) return;
  const auto header = LoadLe<fuse_out_header>(reply.data());
  const auto in = LoadLe<fuse_in_header>(request.data());
  const bool good = header.len == reply.size() && header.unique == in.unique && header.error <= 0 &&
                    header.error > -512 && (header.error == 0 || reply.size() == sizeof(header));
  if (!good) std::abort();
}

void CheckRead(const fuse::Session::PendingRead& read) {
  const uint64_t size = read.view->size();
  const bool good = read.length > 0 && read.length <= fuse::kMaxRead && read.in.offset < size &&
                    read.length <= size - read.in.offset;
  if (!good) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const World* const world = new World;
  fuse::ViewTable table(*world->memory);
  for (fuse::SharedView& view : world->memory->views()) view.used.store(0);
  table.Restore({});
  {
    const fuse::ViewTable::Opening opening(table, world->made->view->name());
    if (!table.Publish(opening, world->made->view).ok()) std::abort();
  }
  fuse::Session session(table);
  const fuse::Reply reply(world->buffer.bytes());
  ByteSpan left(reinterpret_cast<const std::byte*>(data), size);
  while (left.size() >= 2) {
    const size_t length = std::min<size_t>(LoadLe<uint16_t>(left.data()), left.size() - 2);
    const ByteSpan request = left.subspan(2, length);
    const fuse::RequestSlot slot = world->memory->slot(0);
    const fuse::Session::Outcome outcome = session.Handle(request, reply, slot);
    CheckReply(request, outcome.reply);
    if (outcome.read) CheckRead(*outcome.read);
    slot.Clear();
    left = left.subspan(2 + length);
  }
  return 0;
}
