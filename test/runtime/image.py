# SPDX-License-Identifier: Apache-2.0
"""Writes a container image as a docker archive: image.py OUTPUT.tar NAME ENTRYPOINT FILE...

Every FILE (static programs) is put into the root directory; ENTRYPOINT is one of them."""

import hashlib
import io
import json
import os
import sys
import tarfile


def add(archive, name, data, mode=0o644):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = mode
    archive.addfile(member, io.BytesIO(data))


def main():
    output, name, entrypoint, *files = sys.argv[1:]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for path in files:
            with open(path, "rb") as file:
                add(layer, os.path.basename(path), file.read(), 0o755)
    layer = buffer.getvalue()
    config = json.dumps(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
            "os": "linux",
            "config": {"Entrypoint": ["/" + entrypoint]},
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
        }
    ).encode()
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(output, "w") as image:
        add(image, config_name, config)
        add(image, "layer.tar", layer)
        add(image, "manifest.json", json.dumps(manifest).encode())


if __name__ == "__main__":
    main()
