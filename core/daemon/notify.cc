#include "core/daemon/notify.h"

#include <systemd/sd-daemon.h>
#include <time.h>

namespace kapsule::daemon {

void NotifyReady() { sd_notify(0, "READY=1"); }

void NotifyReloading() {
  // Newer systemd wants the time, to tell this reload from an earlier one.
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%lld",
             static_cast<long long>(now.tv_sec) * 1'000'000 + now.tv_nsec / 1000);
}

void NotifyStopping() { sd_notify(0, "STOPPING=1"); }

void NotifyStatus(const std::string& text) { sd_notifyf(0, "STATUS=%s", text.c_str()); }

}  // namespace kapsule::daemon
