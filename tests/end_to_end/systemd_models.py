"""What is published for machines, and read in them."""

import pathlib
import shutil
import tempfile

from node import BIN, PROJECT, make_base_image, run, sha256_of, unique_name
from systemd_machine import REGISTRY

MODEL = "/models/llama/model.gguf"


class Publisher:
    """A model, its images in the registry of machines, and keys by name."""

    def __init__(self):
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="kapsule-publisher-"))
        self.model = self.work / "tiny.gguf"
        run(PROJECT / "scripts" / "make-tiny-gguf", self.model, "--pad-mib", 16)
        self.digest = sha256_of(self.model)
        (self.work / "Modelfile").write_text(f"FROM {self.model}\n")
        self.base = make_base_image(self.work / "base")

    def remove(self):
        shutil.rmtree(self.work)

    def key(self, name):
        """The folder of a pair of keys."""
        folder = self.work / name
        if not folder.exists():
            run(BIN / "kapsule-ctl", "keys", "generate", "--type", "rsa-2048", "-o", folder)
        return folder

    def build(self, machine, tag, key="ours", base=True):
        name = f"{REGISTRY}/acme/llama:{tag}"
        machine.from_host(BIN / "kapsule-ctl", "build", "-f", self.work / "Modelfile", "-t", name,
                          "--insecure", "--encryption-key", self.key(key) / "public.pem",
                          *(("--base", self.base) if base else ()), self.work)
        return name


class Reader:
    """A container that compares every byte of the model with its source, again and again. Whether
    containerd is restarted meanwhile is all the same to it."""

    def __init__(self, machine, publisher, image):
        self.machine, self.name = machine, unique_name()
        folder = machine.path("/srv")
        if not (folder / "model").exists():
            folder.mkdir(exist_ok=True)
            shutil.copy(publisher.model, folder / "model")
            shutil.copy(BIN / "verifying_reader", folder)
        self.log = machine.path(f"/var/log/{self.name}")
        machine.ctr("run", "--detach", "--log-uri", f"file:///var/log/{self.name}",
                    "--snapshotter", "kapsule",
                    "--mount", "type=bind,src=/srv,dst=/srv,options=rbind:ro", image, self.name,
                    "/srv/verifying_reader", "read", MODEL, "/srv/model", f"/srv/{self.name}")

    def state(self):
        lines = self.machine.ctr("tasks", "list").stdout.splitlines()
        return next((line.split()[2] for line in lines if line.split()[0] == self.name), None)

    def lines(self):
        return self.log.read_text(errors="replace").splitlines()

    def stop(self):
        """Ends it; raises where one read failed or was wrong, or it hangs."""
        self.machine.path(f"/srv/{self.name}").touch()
        self.machine.wait_for(f"{self.name} ends", lambda: self.state() == "STOPPED")
        self.remove()
        lines = [line for line in self.lines() if not line.startswith("slow")]
        assert len(lines) == 1 and lines[0].split()[3] == "0", lines
        assert int(lines[0].split()[1]) > 0, lines

    def remove(self):
        self.machine.ctr("tasks", "delete", "--force", self.name, check=False)
        self.machine.ctr("containers", "delete", self.name)
