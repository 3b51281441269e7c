#include "snapshotter/holder/service_fd_store.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/base/unix_socket.h"

namespace kapsule::holder {
namespace {

using absl::StatusCode;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

UniqueFd Null() { return UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC)); }

// A service manager's socket, on which nothing is done with what comes.
class ServiceFdStoreTest : public testing::Test {
 protected:
  ServiceFdStoreTest() {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path_.copy(address.sun_path, path_.size());
    unlink(path_.c_str());  // of a run that was killed
    EXPECT_EQ(bind(manager_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    mirror_ = ServiceFdStore::Make(path_).value();
    store_ = std::make_unique<control::HolderStore>(1'000'000, mirror_.get());
    mirror_->StartSending();
  }
  ~ServiceFdStoreTest() override { unlink(path_.c_str()); }

  StatusCode Put(const std::string& name, size_t count) {
    UniqueFd fds[3];
    for (UniqueFd& fd : fds) fd = Null();
    return store_->Put(name, std::span(fds).first(count));
  }
  // What has come: the text, and "+fd" for each descriptor.
  std::vector<std::string> Received() {
    std::vector<std::string> all;
    EXPECT_TRUE(SetTimeout(manager_.get(), 1).ok());
    while (true) {
      const absl::StatusOr<Packet> packet = ReceivePacket(manager_.get());
      if (!packet.ok()) return all;
      all.push_back(packet->bytes + (packet->fds.size() == 1 ? "+fd" : ""));
    }
  }

  const std::string path_ = fmt::format("/tmp/kapsule-fdstore-{}", getpid());
  const UniqueFd manager_{socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
  std::unique_ptr<ServiceFdStore> mirror_;
  std::unique_ptr<control::HolderStore> store_;
};

TEST_F(ServiceFdStoreTest, EveryChangeIsTold) {
  Put("view/ab", 2);
  EXPECT_THAT(Received(), ElementsAre("FDSTORE=1\nFDNAME=view/ab.02\nFDPOLL=0+fd",
                                      "FDSTORE=1\nFDNAME=view/ab.12\nFDPOLL=0+fd"));
  Put("view/ab", 1);
  EXPECT_THAT(Received(), ElementsAre("FDSTOREREMOVE=1\nFDNAME=view/ab.02",
                                      "FDSTOREREMOVE=1\nFDNAME=view/ab.12",
                                      "FDSTORE=1\nFDNAME=view/ab.01\nFDPOLL=0+fd"));
  store_->Clear();
  EXPECT_THAT(Received(), ElementsAre("FDSTOREREMOVE=1\nFDNAME=view/ab.01"));
}

TEST_F(ServiceFdStoreTest, NamesThatSystemdCouldNotPassOnAreNotStored) {
  const auto name = [](size_t i) { return fmt::format("view/{:064x}", i); };
  size_t stored = 0, bytes = 0;
  for (size_t i = 0; i < 600; ++i) {
    ASSERT_EQ(Put(name(i), 3), StatusCode::kOk);
    for (const std::string& message : Received()) {
      bytes += message.size() - std::string_view("FDSTORE=1\nFDNAME=\nFDPOLL=0+fd").size() + 1;
      ++stored;
    }
  }
  EXPECT_LE(bytes, ServiceFdStore::kMaxNameBytes);
  EXPECT_GE(stored, 3 * 500u);  // 500 layers
  EXPECT_EQ(store_->names(), 600u);
  store_->Drop(name(599));  // is not there
  EXPECT_THAT(Received(), IsEmpty());
  store_->Drop(name(0));
  EXPECT_EQ(Received().size(), 3u);
  Put(name(599), 3);
  EXPECT_EQ(Received().size(), 3u);
}

TEST_F(ServiceFdStoreTest, AServiceManagerThatHangsOrHasGoneCostsNothingButTheCopy) {
  int buffer = 1;
  setsockopt(manager_.get(), SOL_SOCKET, SO_RCVBUF, &buffer, sizeof(buffer));
  for (int i = 0; i < 14; ++i) ASSERT_EQ(Put(fmt::format("view/{}", i), 1), StatusCode::kOk);
  unlink(path_.c_str());
  EXPECT_EQ(Put("fuse", 1), StatusCode::kOk);
  EXPECT_EQ(store_->names(), 15u);
}

TEST_F(ServiceFdStoreTest, WhatIsNoSocketsPathIsRefused) {
  for (const std::string& address :
       {std::string(""), std::string("x"), std::string("vsock:2:5"), "/" + std::string(108, 'a')})
    EXPECT_EQ(ServiceFdStore::Make(address).status().code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(ServiceFdStore::Make("@abstract").ok());
}

// Descriptors as a service manager passes them: from a number on, without gaps.
class RestoreTest : public testing::Test {
 protected:
  static constexpr int kFirst = 500;
  size_t Give(const std::vector<std::string>& names) {
    std::string all;
    for (size_t i = 0; i < names.size(); ++i) {
      UniqueFd file = SealedMemfd("x", AsBytes(names[i])).value();
      EXPECT_EQ(dup2(file.get(), kFirst + static_cast<int>(i)), kFirst + static_cast<int>(i));
      all += (i == 0 ? "" : ":") + names[i];
    }
    const size_t restored = Restore(store_, kFirst, all);
    for (size_t i = 0; i < names.size(); ++i)
      EXPECT_EQ(fcntl(kFirst + static_cast<int>(i), F_GETFD) != -1,
                Has(kFirst + static_cast<int>(i)))
          << names[i] << " is held or closed";
    return restored;
  }
  bool Has(int fd) const {
    for (const char* name : {"fuse", "view/ab", "view/cd"})
      for (const UniqueFd& held : store_.Get(name))
        if (held.get() == fd) return true;
    return false;
  }
  std::string Text(const char* name, size_t i) {
    return ReadSealedMemfd(store_.Get(name)[i].get(), 100).value();
  }
  control::HolderStore store_{100};
};

TEST_F(RestoreTest, DescriptorsComeBackInTheirOrderWhateverTheStores) {
  EXPECT_EQ(Give({"view/ab.23", "fuse.01", "view/ab.03", "view/cd.01", "view/ab.13"}), 5u);
  ASSERT_EQ(store_.Get("view/ab").size(), 3u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(Text("view/ab", i), StoredName("view/ab", i, 3));
  EXPECT_EQ(Text("fuse", 0), "fuse.01");
  EXPECT_NE(fcntl(store_.Get("fuse")[0].get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST_F(RestoreTest, WhatIsStrangeOrIncompleteIsClosed) {
  EXPECT_EQ(Give({"view/ab.03", "view/ab.23", "socket", "stored", "fuse.01", ".01", "fuse.10",
                  "fuse.04", "A.01", "view/ef.0", "fuse.0x", "view/cd.02", "view/cd.02"}),
            1u);
  EXPECT_EQ(store_.names(), 1u);
  EXPECT_EQ(Text("fuse", 0), "fuse.01");
}

}  // namespace
}  // namespace kapsule::holder
