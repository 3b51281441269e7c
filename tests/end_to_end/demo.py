"""scripts/demo, after the build: one model from a Modelfile to a container's mmap."""

import argparse
import pathlib
import shlex
import sys
import tempfile

import node as nodes
from node import BIN, PROJECT, Node, make_base_image, run, sha256_of

MARKER = "kapsule-demo-marker-4b1fd0e9"


def say(text):
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def show(*command):
    """Prints and runs a command as a user would type it."""
    words = [str(part) for part in command]
    words[0] = pathlib.Path(words[0]).name
    print(f"  $ {shlex.join(words)}", flush=True)
    done = run(*command)
    for line in (done.stdout or done.stderr).strip().splitlines()[-6:]:
        print(f"    {line}", flush=True)
    return done.stdout


def main():
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--model", type=pathlib.Path, help="a GGUF file; else a tiny one is made")
    options = parser.parse_args()
    if options.model and not options.model.is_file():
        parser.error(f"--model {options.model}: no such file")

    with tempfile.TemporaryDirectory(prefix="kapsule-demo-") as work, Node() as node:
        work = pathlib.Path(work)
        model = options.model.resolve() if options.model else work / "tiny.gguf"
        if not options.model:
            say("A tiny llama-architecture model")
            show(PROJECT / "scripts" / "make-tiny-gguf", model, "--marker", MARKER)
        (work / "Modelfile").write_text(
            f"FROM {model}\nTEMPLATE \"\"\"{{{{ .System }}}} {{{{ .Prompt }}}}\"\"\"\n"
            "SYSTEM You are brief.\nPARAMETER temperature 0.2\n")
        image = f"{node.registry}/acme/demo:enc"

        say("The publisher: keys, then an encrypted image straight to a registry")
        show(BIN / "kapsule-ctl", "keys", "generate", "--type", "rsa-4096", "-o", work / "keys")
        base = make_base_image(work / "base", BIN.parent / "release" / "bin" / "probe")
        show(BIN / "kapsule-ctl", "build", "-f", work / "Modelfile", "-t", image, "--insecure",
             "--encryption-key", work / "keys" / "public.pem", "--base", base, work)

        say("The node: its keyprovider has the private key; stock containerd pulls")
        node.install_key(work / "keys" / "private.pem")
        show("ctr", "--address", node.socket, "images", "pull", "--plain-http",
             "--snapshotter", "kapsule", image)

        say("A container reads the model")
        path = "/models/demo/model.gguf"
        name = nodes.unique_name()
        ctr = ("ctr", "--address", node.socket, "run", "--rm", "--snapshotter", "kapsule", image)
        show(*ctr, f"{name}-ls", "/bin/ls", "-li", path, "/ollama/models/blobs")
        by_read = show(*ctr, f"{name}-read", "/bin/sha256sum", path).split()[0]
        by_mmap = show(*ctr, f"{name}-mmap", "/bin/sh", "-c", f"probe mmap {path} | sha256sum").split()[0]

        say("The proof")
        expected = sha256_of(model)
        print(f"  source file   {expected}\n  by read(2)    {by_read}\n  by mmap(2)    {by_mmap}")
        if not expected == by_read == by_mmap:
            sys.exit("the digests differ")
        marker = MARKER if not options.model else None
        if marker:
            assert marker.encode() in model.read_bytes()
            found = node.files_with(marker)
            print(f"  files below {node.folder} that hold the model's marker: {len(found)}")
            if found:
                sys.exit("plaintext on disk: " + ", ".join(found))
    say("Done: every daemon ended, nothing is mounted, the folder is gone.")


if __name__ == "__main__":
    try:
        main()
    except nodes.CommandFailed as error:
        sys.exit(f"\nscripts/demo failed: {error}")
