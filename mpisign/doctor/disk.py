"""Where compiled CUDA kernels are kept, and on which kind of file system."""

from __future__ import annotations

import os
import re
from pathlib import Path

#: File systems that other machines serve: their names in /proc/self/mountinfo.
_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|lustre|gpfs|beegfs|fhgfs|afs|ceph|gfs2?|ocfs2|orangefs|pvfs2|panfs"
    r"|wekafs|9p|virtiofs|glusterfs|fuse\.(sshfs|glusterfs|ceph-fuse|beegfs|s3fs|lustre|juicefs|weka\S*)"
)


def kernel_cache() -> Path:
    """The folder in which CuPy keeps what it compiled."""
    return Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")


def file_system(path: Path, mounts: str | None = None) -> str:
    """The kind of file system that holds ``path`` or would hold it; "" where that is not known.

    ``mounts``: the text of /proc/self/mountinfo, read by default.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text()
        except OSError:  # not Linux
            return ""
    wanted, best, kind = os.path.realpath(path), -1, ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), before.split()[4])
        inside = wanted == point or wanted.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:  # of two on one point the later is seen
            best, kind = len(point), after.split()[0]
    return kind


def is_network(kind: str) -> bool:
    """Whether other machines serve a file system of this kind."""
    return _NETWORK.fullmatch(kind) is not None
