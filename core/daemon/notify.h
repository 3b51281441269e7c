// What a daemon tells systemd (sd_notify). Does nothing without NOTIFY_SOCKET.
#pragma once

#include <string>

namespace kapsule::daemon {

void NotifyReady();
void NotifyReloading();  // NotifyReady() ends it
void NotifyStopping();
void NotifyStatus(const std::string& text);  // one line for `systemctl status`

}  // namespace kapsule::daemon
