// What a daemon tells systemd, and gets of it (sd_notify(3), sd_listen_fds(3)), without
// libsystemd, which brings five libraries along. Does nothing where systemd does not ask.
#pragma once

#include <string>
#include <vector>

namespace kapsule::daemon {

void NotifyReady();
void NotifyReloading();  // NotifyReady() ends it
void NotifyStopping();
void NotifyStatus(const std::string& text);  // one line for `systemctl status`

// The descriptors that systemd passed to this very process, from 3 on, closed at exec.
// They stay open; each call gives the same.
std::vector<int> PassedDescriptors();

}  // namespace kapsule::daemon
