"""A repository of a registry on loopback, to put together there what no builder makes."""

import hashlib
import json
import urllib.request

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Repository:
    def __init__(self, registry, path):
        self.registry, self.path = registry, path

    def name(self, tag):
        """As pulls take it."""
        return f"{self.registry}/{self.path}:{tag}"

    def url(self, kind, reference):
        return f"http://{self.registry}/v2/{self.path}/{kind}/{reference}"

    def raw_manifest(self, tag):
        request = urllib.request.Request(self.url("manifests", tag), headers={"Accept": MANIFEST})
        with urllib.request.urlopen(request) as answer:
            return answer.read()

    def manifest(self, tag):
        return json.loads(self.raw_manifest(tag))

    def document(self, digest):
        """A blob of JSON, such as a config."""
        with urllib.request.urlopen(self.url("blobs", digest)) as answer:
            return json.load(answer)

    def put_blob(self, data):
        """Uploads a blob; returns digest and size of its descriptor."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        start = urllib.request.Request(self.url("blobs", "uploads/"), data=b"", method="POST")
        with urllib.request.urlopen(start) as answer:
            location = answer.headers["Location"]
        urllib.request.urlopen(urllib.request.Request(
            f"{location}&digest={digest}", data=data, method="PUT",
            headers={"Content-Type": "application/octet-stream"})).close()
        return {"digest": digest, "size": len(data)}

    def put_document(self, document):
        return self.put_blob(json.dumps(document).encode())

    def put_manifest(self, tag, manifest):
        """Of its media type, or an OCI image; returns its name."""
        urllib.request.urlopen(urllib.request.Request(
            self.url("manifests", tag), data=json.dumps(manifest).encode(), method="PUT",
            headers={"Content-Type": manifest.get("mediaType", MANIFEST)})).close()
        return self.name(tag)
