"""kapsule-ctl doctor and the metrics of a real node, and the files that set one up.

Needs root and the programs of build/bin (KAPSULE_BIN names another folder).
"""

import importlib.machinery
import importlib.util
import json
import pathlib
import re
import shutil
import signal
import tempfile
import time
import tomllib
import unittest
import urllib.error
import urllib.request

from node import (BIN, FETCH_UID, FUSE_UID, PROJECT, Node, free_port, make_base_image, run)

CONFIGS = PROJECT / "configs"
# In a unit, each of these makes a mount namespace: containerd would not see its mounts.
NAMESPACES = re.compile(
    r"^(Protect(System|Home|Kernel\w+|ControlGroups|Proc)|Private(Tmp|Devices|Mounts|Users)|"
    r"RootDirectory|RootImage|(ReadOnly|ReadWrite|Inaccessible|Bind|BindReadOnly|Exec|NoExec)Paths|"
    r"TemporaryFileSystem|DynamicUser|MountFlags|MountAPIVFS)=", re.MULTILINE)

CRI_CONFIG = """version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.example.com/pause:1"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = true
"""


class DoctorTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.metrics_address = f"127.0.0.1:{free_port()}"
        cls.node = Node(settings=f'metrics_address = "{cls.metrics_address}"\n')
        cls.addClassCleanup(cls.node.stop)
        cls.node.start_all()
        cls.wait_for_fetch()
        node = cls.node
        (node.folder / "certs.d").mkdir()
        (node.folder / "kapsule.toml").write_text(f"""
root = "{node.kapsule_root}"
address = "{node.folder}/snapshotter.sock"
containerd_address = "{node.socket}"
content_root = "{node.containerd_root}/io.containerd.content.v1.content"
keyprovider_socket = "{node.keys_folder}/keys.sock"
fuse_user = "{FUSE_UID}"
fetch_user = "{FETCH_UID}"
fetch_cache = "{node.folder}/fetched"
fetch_cache_bytes = 67108864
hosts_dir = "{node.folder}/certs.d"
""")

    @classmethod
    def wait_for_fetch(cls):
        """The snapshotter serves before it has started kapsule-fetch."""
        cls.node.wait_for("snapshotter", lambda: cls.node.pids_of("kapsule-fetch") and
                          (cls.node.kapsule_root / "fetch.pid").exists())

    def doctor(self, *arguments):
        """What it says: name -> check."""
        done = run(BIN / "kapsule-ctl", "doctor", "--json", "--config",
                   self.node.folder / "kapsule.toml", *arguments, check=False)
        answer = json.loads(done.stdout)
        self.assertEqual(done.returncode, 1 if answer["problems"] else 0, done.stderr)
        return {check["name"]: check for check in answer["checks"]}

    def assert_grades(self, checks, grade, *names):
        self.assertEqual({name: checks[name]["grade"] for name in names},
                         {name: grade for name in names}, checks)

    def test_a_node_that_works_is_found_to_work(self):
        checks = self.doctor()
        self.assert_grades(checks, "ok", "containerd", "containerd config", "proxy plugin",
                           "user namespaces", "differs", "CRI snapshotter", "labels", "image root",
                           "unpacking", "snapshotter", "failover", "keyprovider", "kapsule-fetch",
                           "fetch user", "hosts_dir", "fetch cache")
        # It is the one that this containerd runs with, though nobody named it.
        self.assertIn(f"{self.node.folder}/containerd.toml", checks["containerd config"]["seen"])
        self.assertIn("containerd 1.6", checks["containerd config"]["seen"])

    def test_a_secret_of_root_that_kapsule_fetch_needs_is_named(self):
        secret = self.node.folder / "certs.d" / "client.key"
        secret.write_text("x")
        secret.chmod(0o600)
        try:
            checks = self.doctor()
            self.assert_grades(checks, "problem", "hosts_dir")
            self.assertIn(str(secret), checks["hosts_dir"]["seen"])
        finally:
            secret.unlink()

    def test_a_config_that_is_named_is_the_one_that_is_judged(self):
        config = self.node.folder / "pods.toml"
        config.write_text(self.node.folder.joinpath("containerd.toml").read_text().replace(
            "snapshotter.sock", "other.sock").replace("disabled_plugins", "#") + """
[proxy_plugins.differ]
  type = "diff"
  address = "/run/differ.sock"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "kapsule"
""")
        checks = self.doctor("--containerd-config", config)
        self.assert_grades(checks, "problem", "proxy plugin", "differs", "image root")
        self.assert_grades(checks, "warning", "labels")
        self.assertIn(f"{self.node.folder}/snapshotter.sock", checks["proxy plugin"]["fix"])
        self.assertIn("panics", checks["differs"]["seen"])
        config.write_text("version = 2\n[proxy_plugins\n")
        checks = self.doctor("--containerd-config", config)
        self.assertIn("pods.toml:2: ", checks["containerd config"]["seen"])
        self.assert_grades(checks, "warning", "proxy plugin", "labels")

    def test_what_does_not_run_is_said(self):
        node = self.node
        node.stop_daemon("containerd")
        node.stop_daemon("snapshotter", signal.SIGINT)
        node.stop_daemon("keyprovider")
        try:
            checks = self.doctor("--containerd-config", node.folder / "containerd.toml")
            self.assert_grades(checks, "problem", "containerd", "snapshotter", "keyprovider",
                               "kapsule-fetch")
            self.assertIn("start containerd", checks["containerd"]["fix"])
            self.assert_grades(checks, "ok", "proxy plugin")
        finally:
            node.start_keyprovider()
            node.start_snapshotter()
            node.start_containerd()
        self.wait_for_fetch()
        self.assert_grades(self.doctor(), "ok", "containerd", "snapshotter", "kapsule-fetch")


    def page(self, path):
        """Status and text."""
        try:
            with urllib.request.urlopen(f"http://{self.metrics_address}{path}", timeout=10) as page:
                return page.status, page.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metrics(self):
        lines = (line.rsplit(" ", 1) for line in self.page("/metrics")[1].splitlines()
                 if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    def build(self, tag, key):
        node, work = self.node, self.node.folder / tag
        work.mkdir()
        run(PROJECT / "scripts" / "make-tiny-gguf", work / "tiny.gguf", "--pad-mib", 1)
        (work / "Modelfile").write_text(f"FROM {work}/tiny.gguf\n")
        run(BIN / "kapsule-ctl", "keys", "generate", "--type", "ec-p256", "-o", work / "keys")
        if key:
            node.install_key(work / "keys" / "private.pem")
        image = f"{node.registry}/acme/{tag}:enc"
        run(BIN / "kapsule-ctl", "build", "-f", work / "Modelfile", "-t", image, "--insecure",
            "--encryption-key", work / "keys" / "public.pem",
            "--base", make_base_image(work / "base"), work)
        return image

    def test_metrics_tell_of_layers_and_calls(self):
        before = self.metrics()
        image = self.build("ours", key=True)
        self.node.pull(image)
        self.node.run_container(image, "/bin/ls", "/models")
        foreign = self.build("foreign", key=False)
        self.node.pull(foreign)
        self.node.run_container(foreign, "/bin/ls", "/models", check=False)
        after = self.metrics()

        def grown(name):
            return after.get(name, 0) - before.get(name, 0)

        self.assertGreaterEqual(grown('kapsule_layers{state="mounted"}'), 3)
        self.assertGreaterEqual(grown("kapsule_layer_open_seconds_count"), 3)
        self.assertGreater(sum(grown(name) for name in after
                               if name.startswith("kapsule_layer_open_failures_total")), 0)
        self.assertGreaterEqual(grown("kapsule_data_plane_views"), 3)
        self.assertGreater(grown('kapsule_snapshots{kind="committed"}'), 3)
        self.assertGreater(grown('kapsule_rpc_seconds_count{method="Snapshots/Prepare"}'), 3)
        self.assertGreater(after['kapsule_process_resident_memory_bytes{program="kapsule-fuse"}'], 0)
        # A disk that takes seconds for a write is bad for as long.
        well = 200, "ok data plane\nok failover\nok fetcher\nok metadata\n"
        deadline = time.monotonic() + 60
        while (health := self.page("/healthz")) != well and time.monotonic() < deadline:
            time.sleep(0.5)
        self.assertEqual(health, well)
        self.assertEqual(self.page("/else")[0], 404)


class ConfigsTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="kapsule-configs-"))
        self.addCleanup(shutil.rmtree, self.folder)

    def test_systemd_takes_the_units(self):
        if not shutil.which("systemd-analyze"):
            self.skipTest("no systemd-analyze")
        units = []
        for unit in (CONFIGS / "systemd").glob("*.service"):
            units.append(self.folder / unit.name)
            units[-1].write_text(unit.read_text().replace("/usr/bin/kapsule-", f"{BIN}/kapsule-"))
        self.assertEqual(len(units), 2)
        done = run("systemd-analyze", "verify", "--man=no", *units, check=False)
        complaints = [line for line in (done.stdout + done.stderr).splitlines() if "kapsule" in line]
        self.assertEqual((done.returncode, complaints), (0, []))

    def test_the_mounts_of_the_snapshotter_are_seen_by_containerd(self):
        unit = (CONFIGS / "systemd" / "kapsule-snapshotter.service").read_text()
        self.assertIsNone(NAMESPACES.search(unit))
        for line in ("KillMode=process", "Restart=always", "Type=notify", "NotifyAccess=all"):
            self.assertIn(f"\n{line}\n", unit)
        self.assertIsNotNone(NAMESPACES.search(
            (CONFIGS / "systemd" / "kapsule-keyprovider.service").read_text()))

    def test_users_and_folders_are_made(self):
        if not shutil.which("systemd-sysusers"):
            self.skipTest("no systemd-sysusers")
        (self.folder / "etc").mkdir()
        run("systemd-sysusers", f"--root={self.folder}", CONFIGS / "systemd" / "kapsule.sysusers")
        run("systemd-tmpfiles", "--create", f"--root={self.folder}",
            CONFIGS / "systemd" / "kapsule.tmpfiles")
        users = dict(line.split(":", 3)[0:3:2] for line in
                     (self.folder / "etc" / "passwd").read_text().splitlines())
        self.assertEqual(len({users[f"kapsule-{name}"] for name in ("fuse", "fetch", "keys")}), 3)
        keys = (self.folder / "etc/kapsule/keys").stat()
        self.assertEqual((keys.st_mode & 0o777, keys.st_uid), (0o750, 0))
        self.assertTrue((self.folder / "run/kapsule-keys").is_dir())

    def test_containerd_takes_the_snippet_of_its_version(self):
        version = re.search(r" v?(\d+\.\d+)", run("containerd", "--version").stdout)[1]
        name = "2" if version.startswith("2.") else version
        dump = run("containerd", "--config", CONFIGS / "containerd" / f"{name}.toml", "config",
                   "dump").stdout
        self.assertRegex(dump, r"\n *snapshotter = .kapsule.\n")
        self.assertRegex(dump, r"\n *\[proxy_plugins.kapsule\]\n")

    def test_the_snippets_say_what_their_version_of_containerd_understands(self):
        snippets = {path.stem: tomllib.loads(path.read_text())
                    for path in (CONFIGS / "containerd").glob("*.toml")}
        self.assertEqual(sorted(snippets), ["1.6", "1.7", "2"])
        for version, snippet in snippets.items():
            proxies = snippet["proxy_plugins"]
            self.assertEqual({proxy["address"] for proxy in proxies.values()},
                             {"/run/kapsule/snapshotter.sock"})
            # 1.6 panics at a differ; 1.x mounts nothing with mapped owners.
            self.assertEqual("kapsule-diff" in proxies, version != "1.6")
            self.assertEqual("capabilities" in proxies["kapsule"], version == "2")
        for version in ("1.7", "2"):
            plugins = snippets[version]["plugins"]
            self.assertEqual(plugins["io.containerd.service.v1.diff-service"]["default"],
                             ["kapsule-diff", "walking"])
            self.assertEqual(
                {entry["snapshotter"]: entry["differ"] for entry in
                 plugins["io.containerd.transfer.v1.local"]["unpack_config"]},
                {"kapsule": "walking", "overlayfs": "walking"})
        runtime = tomllib.loads((CONFIGS / "kubernetes" / "runtime-class.toml").read_text())
        self.assertEqual(runtime["version"], snippets["2"]["version"])
        self.assertEqual(runtime["plugins"]["io.containerd.cri.v1.images"]["runtime_platforms"],
                         {"kapsule": {"platform": "linux/amd64", "snapshotter": "kapsule"}})

    def test_what_a_kubernetes_node_imports_changes_nothing_but_the_snapshotter(self):
        config = self.folder / "config.toml"
        config.write_text(CRI_CONFIG)
        imported = self.folder / "kapsule.toml"
        imported.write_text(run(CONFIGS / "kubernetes" / "install-node", "--show", config).stdout)
        before = self.dump(config)
        config.write_text(f'imports = ["{imported}"]\n{CRI_CONFIG}')
        after = self.dump(config)
        self.assertEqual([line for line in before if line not in after and "imports" not in line],
                         ["disable_snapshot_annotations = true", 'snapshotter = "overlayfs"'])
        self.assertIn('snapshotter = "kapsule"', after)
        self.assertIn("[proxy_plugins.kapsule]", after)
        checks = json.loads(run(BIN / "kapsule-ctl", "doctor", "--json", "--containerd-config",
                                config, check=False).stdout)["checks"]
        grades = {check["name"]: check["grade"] for check in checks}
        for name in ("containerd config", "proxy plugin", "differs", "CRI snapshotter", "labels"):
            self.assertEqual(grades[name], "ok", checks)

    def test_a_kubernetes_node_is_set_up_once_and_upgraded_by_a_restart(self):
        path = CONFIGS / "kubernetes" / "install-node"
        install = importlib.util.module_from_spec(importlib.util.spec_from_loader(
            "install_node", importlib.machinery.SourceFileLoader("install_node", str(path))))
        install.__spec__.loader.exec_module(install)
        host, image, asked = (self.folder / name for name in ("host", "image", "asked"))
        # What the node is asked to run is noted; its containerd is this machine's.
        on_host = self.folder / "on-host"
        on_host.write_text(f"""#!/bin/sh
echo "$@" >> {asked}
[ "$1" != containerd ] || exec containerd --config "{host}$3" config dump
""")
        on_host.chmod(0o755)
        install.HOST, install.PREFIX, install.ON_HOST = host, image, (str(on_host),)
        shutil.copytree(CONFIGS, image / "configs")
        for name in ("bin/kapsule-ctl", "lib/libx.so", "../host/etc/containerd/config.toml"):
            (image / name).parent.mkdir(parents=True, exist_ok=True)
            (image / name).write_text(CRI_CONFIG)

        def set_up():
            asked.write_text("")
            install.install_programs()
            install.configure_containerd()
            return asked.read_text()

        units = "kapsule-keyprovider kapsule-snapshotter"
        first = set_up()
        self.assertIn(f"systemctl restart {units}\n", first)
        self.assertTrue(first.endswith("systemctl restart containerd\n"))
        config = host / "etc/containerd/config.toml"
        self.assertEqual(config.read_text(),
                         f'imports = ["/etc/containerd/conf.d/*.toml"]\n{CRI_CONFIG}')
        self.assertEqual(config.with_name("config.toml.before-kapsule").read_text(), CRI_CONFIG)
        self.assertIn('"kapsule"', (config.parent / "conf.d/kapsule.toml").read_text())
        unit = (host / "etc/systemd/system/kapsule-snapshotter.service").read_text()
        self.assertIn(f"\nExecStart={image}/bin/kapsule-snapshotter --config ", unit)
        again = set_up()
        self.assertIn(f"systemctl start {units}\n", again)
        self.assertNotIn("restart", again)
        (image / "bin/kapsule-ctl").write_text("new")
        self.assertIn(f"systemctl restart {units}\n", set_up())
        self.assertEqual((host / image.relative_to("/") / "bin/kapsule-ctl").read_text(), "new")

    def dump(self, config):
        text = run("containerd", "--config", config, "config", "dump").stdout
        return [line.strip() for line in text.splitlines()]


if __name__ == "__main__":
    unittest.main()
