"""What `cluster check` finds: each case is cluster.yaml or a cloud's file with one thing spoilt."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from chip_core.utils.errors import ConfigError
from orchestrator.cluster.check import check_cluster, require_valid
from orchestrator.cluster.checks.capacity import ResourceNeed, compute_capacity, study_resource_need
from orchestrator.cluster.checks.node_config import known_keys
from orchestrator.cluster.checks.node_types import NodeType
from orchestrator.cluster.checks.start_commands import HEAD_COMMANDS, iter_calls
from orchestrator.cluster.config import ClusterFile
from orchestrator.study.model import Study

ROOT = Path(__file__).parent.parent.parent.parent
Tree = dict[str, Any]


def load_example(name: str) -> Tree:
    """Return a shipped file with its places filled in."""
    text = (ROOT / name).read_text().replace("FILL-IN", "mine")
    loaded: Tree = yaml.safe_load(re.sub(r"192\.0\.2\.(\d+)", r"10.0.0.\1", text))
    return loaded


def find_problems(
    tree: Tree, folder: Path, need: ResourceNeed | None = None
) -> list[tuple[str, str]]:
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(tree))
    return [(each.key, each.message) for each in check_cluster(path, need).problems]


def replace_text(tree: Tree, key: str, old: str, new: str) -> None:
    before = json.dumps(tree[key])
    tree[key] = json.loads(before.replace(old, new))
    assert json.dumps(tree[key]) != before


def spoil_top(tree: Tree) -> None:
    tree["idle_timeout_minute"] = 5


def spoil_type(tree: Tree) -> None:
    tree["max_workers"] = "two"


def spoil_token(tree: Tree) -> None:
    replace_text(tree, "worker_start_ray_commands", "RAY_AUTH_MODE=token ", "")


def spoil_making(tree: Tree) -> None:
    del tree["head_start_ray_commands"][1]


def spoil_syncing(tree: Tree) -> None:
    tree["cluster_synced_files"] = []


def spoil_path(tree: Tree) -> None:
    replace_text(
        tree, "worker_start_ray_commands", "/opt/chip-ablate/.venv/bin/ray start", "ray start"
    )


def spoil_dashboard(tree: Tree) -> None:
    replace_text(tree, "head_start_ray_commands", "host=127.0.0.1", "host=0.0.0.0")


def spoil_mlflow(tree: Tree) -> None:
    tree["head_start_ray_commands"].append("/opt/venv/bin/chip-ablate ui --host 0.0.0.0 &")


def spoil_driver(tree: Tree) -> None:
    replace_text(tree, "head_start_ray_commands", "chip_driver", "other")


def spoil_workers_driver(tree: Tree) -> None:
    tree["worker_start_ray_commands"][-1] += " --resources='{\"chip_driver\": 4}'"


def spoil_resources(tree: Tree) -> None:
    replace_text(tree, "head_start_ray_commands", '{\\"chip_driver\\": 64}', "chip_driver=64")


def spoil_autoscaler(tree: Tree) -> None:
    replace_text(tree, "head_start_ray_commands", "RAY_enable_autoscaler_v2=0 ", "")


def spoil_bootstrap(tree: Tree) -> None:
    old = "--autoscaling-config=~/ray_bootstrap_config.yaml"
    replace_text(tree, "head_start_ray_commands", old, "")


def spoil_workdir(tree: Tree) -> None:
    tree["metadata"]["chip_ablate"]["workdir"] = "/home/ubuntu/chip-runs"


def spoil_shared(tree: Tree) -> None:
    tree["metadata"]["chip_ablate"] |= {"shared": "/tmp/x", "workdir": "/tmp/x/runs"}


def remove_shared_disk(tree: Tree) -> None:
    del tree["metadata"]["chip_ablate"]["shared"]
    tree["metadata"]["chip_ablate"] |= {"storage": "s3://b/x", "workdir": "/home/u/chip-runs"}


def spoil_storage(tree: Tree) -> None:
    remove_shared_disk(tree)
    tree["metadata"]["chip_ablate"]["storage"] = "s4://b/x"


def spoil_both(tree: Tree) -> None:
    tree["metadata"]["chip_ablate"]["storage"] = "s3://b/x"


def spoil_neither(tree: Tree) -> None:
    del tree["metadata"]["chip_ablate"]["shared"]


def spoil_versions(tree: Tree) -> None:
    tree["metadata"]["chip_ablate"]["versions"] = {
        "python": "3.9", "ray": "2.9.0", "chip-ablate": "0.0.1",
    }  # fmt: skip


def spoil_settings(tree: Tree) -> None:
    tree["metadata"]["chip_ablate"]["venvs"] = "/opt"


def spoil_metadata(tree: Tree) -> None:
    del tree["metadata"]


def spoil_head(tree: Tree) -> None:
    tree["provider"]["worker_ips"].append(tree["provider"]["head_ip"])


def spoil_counts(tree: Tree) -> None:
    tree["min_workers"] = 1


def spoil_quotes(tree: Tree) -> None:
    tree["setup_commands"].append("echo 'never closed")


def spoil_docker(tree: Tree) -> None:
    tree["docker"] = {"image": "some/image", "container_name": "ray"}


def spoil_nothing_by_exporting(tree: Tree) -> None:
    replace_text(
        tree, "worker_start_ray_commands", "RAY_AUTH_MODE=token ", "export RAY_AUTH_MODE=token; "
    )


def spoil_install(tree: Tree) -> None:
    tree["setup_commands"].append("/opt/v/bin/pip install 'ray[default]==2.9.0'")


LOCAL_CASES: list[tuple[Callable[[Tree], None], list[tuple[str, str]]]] = [
    (spoil_top, [("idle_timeout_minute", "did you mean 'idle_timeout_minutes'")]),
    (spoil_type, [("max_workers", "'two' is not of type 'integer'")]),
    (spoil_token, [("worker_start_ray_commands[1]", "put RAY_AUTH_MODE=token before it")]),
    (spoil_making, [("head_start_ray_commands", "no command creates a token")]),
    (spoil_syncing, [("cluster_synced_files", "write [~/.ray/auth_token] here")]),
    (spoil_path, [("worker_start_ray_commands[1]", "write the absolute path")]),
    (spoil_dashboard, [("head_start_ray_commands[2]", "write 127.0.0.1")]),
    (spoil_mlflow, [("head_start_ray_commands[4]", "opens MLflow")]),
    (spoil_driver, [("head_start_ray_commands", "offers no chip_driver")]),
    (spoil_workers_driver, [("worker_start_ray_commands", "offer it only on the head")]),
    (
        spoil_resources,
        [
            ("head_start_ray_commands[2]", "is not a JSON mapping of names and amounts"),
            ("head_start_ray_commands", "offers no chip_driver"),
        ],
    ),
    (spoil_autoscaler, [("head_start_ray_commands", "put RAY_enable_autoscaler_v2=0")]),
    (spoil_bootstrap, [("head_start_ray_commands[2]", "no worker is ever started")]),
    (spoil_workdir, [("metadata.chip_ablate.workdir", "is not in /mnt/chip-ablate")]),
    (spoil_shared, [("metadata.chip_ablate.shared", "each machine has its own /tmp")]),
    (remove_shared_disk, []),
    (
        spoil_storage,
        [("metadata.chip_ablate.storage", "s4://: is not a supported kind of object store")],
    ),
    (spoil_both, [("metadata.chip_ablate", "or `storage`, a URI such as s3://BUCKET/FOLDER")]),
    (spoil_neither, [("metadata.chip_ablate", "set the storage that all machines share")]),
    (
        spoil_versions,
        [
            ("metadata.chip_ablate.versions.python", "3.9, but this machine has python 3."),
            ("metadata.chip_ablate.versions.ray", "2.9.0, but this machine has ray 2."),
            (
                "metadata.chip_ablate.versions.chip-ablate",
                "0.0.1, but this machine has chip-ablate 0.",
            ),
        ],
    ),
    (spoil_settings, [("metadata.chip_ablate.venvs", "did you mean 'venv'")]),
    (spoil_metadata, [("metadata.chip_ablate", "is missing: set venv, shared and workdir")]),
    (
        spoil_head,
        [
            ("provider.worker_ips", "would stop the head"),
            ("min_workers", "the others stay unused: write 3"),
            ("max_workers", "the others stay unused: write 3"),
        ],
    ),
    (spoil_counts, [("min_workers", "1, but there are 2 worker_ips")]),
    (spoil_quotes, [("setup_commands[1]", "is not a shell command")]),
    (spoil_docker, [("docker.image", "reaches machines, not containers")]),
    (spoil_nothing_by_exporting, []),
    (spoil_install, [("setup_commands[1]", "installs ray 2.9.0")]),
]


@pytest.mark.parametrize(
    ("spoil", "told"), LOCAL_CASES, ids=lambda case: getattr(case, "__name__", "")
)
def test_what_is_wrong_is_told_at_its_key_and_nothing_else_is(
    spoil: Callable[[Tree], None], told: list[tuple[str, str]], tmp_path: Path
) -> None:
    tree = load_example("cluster.yaml")
    spoil(tree)
    found = find_problems(tree, tmp_path)
    assert [key for key, _ in found] == [key for key, _ in told]
    for (_, what), (_, words) in zip(found, told, strict=True):
        assert words in what


def test_everything_is_told_at_once(tmp_path: Path) -> None:
    tree = load_example("cluster.yaml")
    for spoil in (spoil_token, spoil_workdir, spoil_versions, spoil_top):
        spoil(tree)
    assert len(find_problems(tree, tmp_path)) == 1 + 1 + 3 + 1
    with pytest.raises(ConfigError) as raised:
        require_valid(tmp_path / "cluster.yaml")
    assert len(raised.value.problems) == 6
    assert all(line.startswith(f"{tmp_path}/cluster.yaml: ") for line in raised.value.problems)


@pytest.mark.parametrize(
    ("file", "path", "key", "near"),
    [
        ("aws", (), "InstanceTyp", "InstanceType"),
        ("aws", ("InstanceMarketOptions",), "MarketTyp", "MarketType"),
        ("aws", ("BlockDeviceMappings", 0, "Ebs"), "VolumeSiz", "VolumeSize"),
        ("gcp", (), "machineTyp", "machineType"),
        ("gcp", ("scheduling",), "provisioningModell", "provisioningModel"),
        ("gcp", ("disks", 0, "initializeParams"), "diskSizeGB", "diskSizeGb"),
    ],
)
def test_unknown_keys_of_a_machine_are_found_at_any_depth(
    file: str, path: tuple[str | int, ...], key: str, near: str, tmp_path: Path
) -> None:
    tree = load_example(f"clusters/{file}.yaml")
    node: Any = tree["available_node_types"]["worker"]["node_config"]
    where = "available_node_types.worker.node_config"
    for part in path:
        node = node[part]
        where += f"[{part}]" if isinstance(part, int) else f".{part}"
    node[key] = "x"
    ((told, what),) = find_problems(tree, tmp_path)
    assert told == f"{where}.{key}"
    assert f"did you mean '{near}'" in what


def test_what_ray_sets_itself_is_refused(tmp_path: Path) -> None:
    tree = load_example("clusters/aws.yaml")
    tree["available_node_types"]["worker"]["node_config"]["MaxCount"] = 3
    ((key, what),) = find_problems(tree, tmp_path)
    assert key.endswith("worker.node_config.MaxCount")
    assert "leave it out" in what


def test_a_head_type_of_no_name_at_all(tmp_path: Path) -> None:
    tree = load_example("clusters/gcp.yaml")
    tree["head_node_type"] = []
    assert "head_node_type" in [key for key, _ in find_problems(tree, tmp_path)]


def test_keys_of_other_providers_are_not_known() -> None:
    assert known_keys("azure") is None


@pytest.mark.parametrize(
    ("rule", "fine"),
    [
        ({"FromPort": 22, "ToPort": 22, "IpProtocol": "tcp"}, True),
        ({"FromPort": 8265, "ToPort": 8265, "IpProtocol": "tcp"}, False),
        ({"FromPort": 22, "ToPort": 9000, "IpProtocol": "tcp"}, False),
        ({"FromPort": -1, "ToPort": -1, "IpProtocol": "-1"}, False),
    ],
)
def test_a_group_that_opens_more_than_ssh_is_told(rule: Tree, fine: bool, tmp_path: Path) -> None:
    tree = load_example("clusters/aws.yaml")
    tree["provider"]["security_group"]["IpPermissions"] = [rule]
    found = find_problems(tree, tmp_path)
    assert (found == []) is fine
    assert all(key == "provider.security_group.IpPermissions[0]" for key, _ in found)


def test_workers_with_a_public_address_are_told(tmp_path: Path) -> None:
    aws, gcp = load_example("clusters/aws.yaml"), load_example("clusters/gcp.yaml")
    del aws["provider"]["use_internal_ips"]
    ((key, what),) = find_problems(aws, tmp_path)
    assert (key, "public address" in what) == ("available_node_types.worker.node_config", True)
    worker = gcp["available_node_types"]["worker"]["node_config"]
    worker["networkInterfaces"][0]["accessConfigs"] = [{"type": "ONE_TO_ONE_NAT"}]
    ((key, what),) = find_problems(gcp, tmp_path)
    assert key.endswith("networkInterfaces[0].accessConfigs")
    del worker["networkInterfaces"]
    ((key, what),) = find_problems(gcp, tmp_path)
    assert key.endswith("worker.node_config.networkInterfaces")


def test_a_cloud_must_mount_its_storage(tmp_path: Path) -> None:
    tree = load_example("clusters/aws.yaml")
    mount = tree["setup_commands"].pop(0)
    ((key, what),) = find_problems(tree, tmp_path)
    assert (key, "no command mounts /mnt/chip-ablate" in what) == (
        "metadata.chip_ablate.shared", True,
    )  # fmt: skip
    tree["head_setup_commands"] = [mount]  # on the head alone: workers would have none
    assert [key for key, _ in find_problems(tree, tmp_path)] == ["metadata.chip_ablate.shared"]


def test_node_types_that_cannot_be(tmp_path: Path) -> None:
    tree = load_example("clusters/gcp.yaml")
    tree["head_node_type"] = "heads"
    assert (
        "head_node_type",
        "'heads' is none of available_node_types: head, worker",
    ) in find_problems(tree, tmp_path)
    tree = load_example("clusters/gcp.yaml")
    tree["available_node_types"]["worker"]["max_workers"] = 0
    assert [key for key, _ in find_problems(tree, tmp_path)] == [
        "available_node_types.worker.max_workers"
    ]


def make_node_type(max_count: int, *, head: bool = False, **resources: float) -> NodeType:
    return NodeType(key="k", head=head, max_count=max_count, resources=resources)


HEAD_KIND = make_node_type(1, head=True, CPU=0, chip_driver=64)


@pytest.mark.parametrize(
    ("workers", "each", "trials", "slots", "at_once"),
    [
        # Machines of 4 and 3 GPUs hold 2 + 1 trials of two workers, not 7 // 2 = 3.5.
        (2, {"CPU": 1.0, "GPU": 1.0}, 40, 7, 3),
        # No machine holds six: over both there is room for 7 // 6 = 1.
        (6, {"CPU": 1.0, "GPU": 1.0}, 40, 7, 1),
        # Fewer trials than places.
        (1, {"CPU": 1.0, "GPU": 1.0}, 2, 7, 2),
        # CPUs bound: 8 // 4 = 2 on each.
        (1, {"CPU": 4.0, "GPU": 0.5}, 40, 4, 4),
        # 3 GPUs hold fifteen shares of 0.2, which floats deny (0.2 * 15 > 3): 8 CPUs bound both.
        (1, {"CPU": 1.0, "GPU": 0.2}, 40, 16, 16),
    ],
)
def test_room_by_the_arithmetic(
    workers: int, each: dict[str, float], trials: int, slots: int, at_once: int
) -> None:
    kinds = [HEAD_KIND, make_node_type(1, CPU=8, GPU=4), make_node_type(1, CPU=8, GPU=3)]
    found = compute_capacity(
        kinds, ResourceNeed(num_workers=workers, per_worker=each, trials=trials)
    )
    assert (found.slots, found.at_once) == (slots, at_once)


def test_drivers_places_bound_what_runs_at_once() -> None:
    kinds = [make_node_type(1, head=True, CPU=0, chip_driver=2), make_node_type(4, CPU=8, GPU=1)]
    assert (
        compute_capacity(
            kinds, ResourceNeed(num_workers=1, per_worker={"CPU": 1.0}, trials=40)
        ).at_once
        == 2
    )


def test_a_trial_that_finds_no_room_is_told(tmp_path: Path) -> None:
    need = ResourceNeed(num_workers=16, per_worker={"CPU": 1.0, "GPU": 1.0}, trials=4)
    ((key, what),) = find_problems(load_example("cluster.yaml"), tmp_path, need)
    assert key == "provider.worker_ips"
    assert (
        "16 worker(s) of 1 CPU and 1 GPU each, but there is room for 8" in what
    )  # 2 machines of 4


def test_machines_of_ones_own_must_say_what_they_have(tmp_path: Path) -> None:
    tree = load_example("cluster.yaml")
    del tree["metadata"]["chip_ablate"]["worker"]
    assert find_problems(tree, tmp_path) == []
    ((key, _),) = find_problems(
        tree, tmp_path, ResourceNeed(num_workers=1, per_worker={"CPU": 1.0}, trials=1)
    )
    assert key == "metadata.chip_ablate.worker"


def test_what_a_study_needs_is_its_largest_trial(load: Callable[..., Study]) -> None:
    assert study_resource_need(load()) == ResourceNeed(
        num_workers=1, per_worker={"CPU": 1.0}, trials=4 * 2
    )
    found = study_resource_need(
        load(overrides={"engine.workers_per_trial": 2, "engine.gpus_per_worker": 1})
    )
    assert (found.num_workers, found.per_worker) == (2, {"CPU": 1.0, "GPU": 1.0})


def test_programs_of_a_command_are_read_as_a_shell_does() -> None:
    text = (
        "umask 077; A=1 B='x y' /v/ray start --head --port 6379 && { ray stop || "
        "C=2 setsid nohup python3 -c 1 >log 2>&1 & }"
    )
    tree = {HEAD_COMMANDS: [text]}
    found = list(
        iter_calls(ClusterFile(path=Path("c"), content=tree, settings=None), HEAD_COMMANDS)
    )
    assert [call.program for call in found] == ["umask", "/v/ray", "ray", "python3"]
    assert found[1].environment == {"A": "1", "B": "x y"}
    assert found[1].option("--port") == "6379"
    assert found[1].key == "head_start_ray_commands[0]"


def list_paths(tree: Any, parent: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the path of every value of a tree."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found_paths = []
    for key, value in entries:
        found_paths.append((*parent, key))
        if isinstance(value, dict | list):
            found_paths += list_paths(value, (*parent, key))
    return found_paths


ODD: tuple[Any, ...] = (
    None,
    [],
    {},
    "x 'y",
    -1,
    [None],
    {"a": None},
    1e30,
    True,
    [[1]],
    {"": [{}]},
)


@pytest.mark.parametrize("name", ["cluster.yaml", "clusters/aws.yaml", "clusters/gcp.yaml"])
def test_an_odd_value_anywhere_is_no_traceback(name: str, tmp_path: Path) -> None:
    need = ResourceNeed(num_workers=1, per_worker={"CPU": 4.0, "GPU": 1.0}, trials=12)
    refused = 0
    for index, path in enumerate(list_paths(load_example(name))[::3]):
        tree = load_example(name)
        node: Any = tree
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = ODD[index % len(ODD)]
        refused += bool(find_problems(tree, tmp_path, need))
    assert refused > 10  # the others are sound: a list that may be empty, a name of one's own
