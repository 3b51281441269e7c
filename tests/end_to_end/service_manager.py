"""systemd's store of descriptors, without systemd."""

import os
import socket
import threading


class ServiceManager:
    """Keeps the descriptors that it is sent by name; a context manager. Daemons that are started
    meanwhile have it, by a socket at `path`."""

    def __init__(self, path):
        self.path = path
        self.stored = {}

    def __enter__(self):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.path.chmod(0o666)
        self.thread = threading.Thread(target=self.receive)
        self.thread.start()
        os.environ["NOTIFY_SOCKET"] = str(self.path)
        return self

    def __exit__(self, *_):
        del os.environ["NOTIFY_SOCKET"]
        self.socket.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.socket.close()
        self.path.unlink()
        for fd in self.stored.values():
            os.close(fd)

    def receive(self):
        while True:
            text, fds, _, _ = socket.recv_fds(self.socket, 4096, 8)
            if not text:
                return
            fields = dict(line.partition("=")[::2] for line in text.decode().splitlines())
            if "FDSTORE" in fields:
                self.stored[fields["FDNAME"]], = fds
            elif "FDSTOREREMOVE" in fields:
                os.close(self.stored.pop(fields["FDNAME"]))
