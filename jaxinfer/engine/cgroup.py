"""What a container allows its processes: memory limits of Linux control groups, both versions."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def cgroup_memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that this process may use: the smallest limit of its own group and those above it.

    Groups above the mount, such as those outside of a container, cannot be seen. ``root`` stands
    for the root directory. None: no limit, or no control groups.
    """
    groups = dict(_memory_groups(root))
    limits = [
        limit
        for version, mounted, mount in _memory_mounts(root)
        if version in groups
        for folder in _up_to_mount(groups[version], mounted, mount)
        if (limit := _read_int(folder / _LIMIT_FILES[version])) is not None
    ]
    return min(limits, default=None)


_LIMIT_FILES = {1: "memory.limit_in_bytes", 2: "memory.max"}


def _memory_groups(root: Path) -> Iterator[tuple[int, PurePosixPath]]:
    """Of each version (1, 2), this process's group: lines such as ``4:memory:/a`` and ``0::/a``."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield 1, PurePosixPath(path)
        elif number == "0":
            yield 2, PurePosixPath(path)


def _memory_mounts(root: Path) -> Iterator[tuple[int, PurePosixPath, Path]]:
    """Version, the group that is mounted, and where it is (proc_pid_mountinfo(5))."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        mount, _, filesystem = line.partition(" - ")
        _, _, _, mounted, place, *_ = mount.split(" ")
        kind, _, options = filesystem.split(" ", 2)
        where = root / place.removeprefix("/")
        if kind == "cgroup2":
            yield 2, PurePosixPath(mounted), where
        elif kind == "cgroup" and "memory" in options.split(","):
            yield 1, PurePosixPath(mounted), where


def _up_to_mount(group: PurePosixPath, mounted: PurePosixPath, mount: Path) -> Iterator[Path]:
    """The folders of a group and of all above it, as far as they are mounted."""
    below = group.relative_to(mounted) if group.is_relative_to(mounted) else PurePosixPath()
    # A group outside of what is mounted ("/.."): only the limits of the mount itself are known.
    parts = () if ".." in below.parts else below.parts
    for depth in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:depth])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _read_int(path: Path) -> int | None:
    """None where there is no such file, or no limit in it ("max")."""
    text = _read(path).strip()
    return int(text) if text.isdigit() else None
