"""A container's memory limit, from what the kernel shows a process of its control groups."""

import pytest

from jaxinfer.engine.cgroup import cgroup_memory_limit

V1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
V1 += "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
V2 = "29 23 0:26 {root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"


@pytest.fixture
def limit_of(tmp_path):
    """``limit_of(groups, mounts, limits) ->`` the limit; ``limits`` by file, below the cgroups."""

    def limit_of(groups, mounts, limits):
        texts = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}
        texts |= {f"sys/fs/cgroup/{name}": f"{limit}\n" for name, limit in limits.items()}
        for name, text in texts.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return cgroup_memory_limit(tmp_path)

    return limit_of


@pytest.mark.parametrize(
    ("limits", "smallest"),
    [
        ({"memory.max": 300, "a/memory.max": 200, "a/b/memory.max": 100}, 100),
        ({"memory.max": 300, "a/memory.max": 50, "a/b/memory.max": 100}, 50),
        ({"memory.max": 30, "a/memory.max": 50, "a/b/memory.max": "max"}, 30),
        ({"a/memory.max": 50}, 50),
        ({"a/memory.max": "max", "a/b/memory.max": "max", "other/memory.max": 1}, None),
        ({}, None),
    ],
)
def test_the_smallest_limit_from_the_own_group_to_the_mount_counts(limit_of, limits, smallest):
    assert limit_of("0::/a/b\n", V2.format(root="/"), limits) == smallest


@pytest.mark.parametrize(
    ("mounted", "limits", "smallest"),
    [
        ("/", {"docker/7/job": 40, "docker/7": 50, "docker": 60, ".": 70}, 40),
        ("/docker/7", {"job": 40, ".": 50}, 40),
        ("/docker/7", {".": 50}, 50),
        ("/elsewhere", {".": 50, "docker/7": 1}, 50),
    ],
)
def test_version_one_is_read_where_its_memory_controller_is_mounted(
    limit_of, mounted, limits, smallest
):
    groups = "5:cpu,cpuacct:/docker/7\n4:hugetlb,memory:/docker/7/job\n1:name=systemd:/x:y\n0::/\n"
    limits = {f"memory/{group}/memory.limit_in_bytes": limit for group, limit in limits.items()}
    assert limit_of(groups, V1.format(root=mounted), limits) == smallest


def test_where_both_versions_are_mounted_the_smaller_limit_counts(limit_of):
    groups, mounts = "4:memory:/a\n0::/b\n", HYBRID.format(root="/")
    limits = {"memory/a/memory.limit_in_bytes": 90, "unified/b/memory.max": 80}
    assert limit_of(groups, mounts, limits) == 80
    assert limit_of(groups, mounts, limits | {"unified/b/memory.max": "max"}) == 90


def test_a_group_above_the_namespace_has_the_limits_of_the_mount(limit_of):
    limits = {"memory.max": 70, "a/memory.max": 10}
    assert limit_of("0::/../a\n", V2.format(root="/"), limits) == 70


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert cgroup_memory_limit(tmp_path) is None
