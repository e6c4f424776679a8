"""infra/: what is applied to clusters is what their schemas allow, and names what this repository has."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from pathspec import PathSpec

from segworker.cli_nightly import _add_night
from segworker.config_flags import make_parser
from segworker.engine.metrics import METRICS, published

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
OVERLAYS = sorted(path.name for path in (INFRA / "kubernetes" / "overlays").iterdir())
CRDS = ROOT.parent / "shared" / "crds"
KUBERNETES = "1.32"
JOBS = {"RayJob": ("spec",), "RayCronJob": ("spec", "jobTemplate")}


def rendered(overlay: str) -> list[dict[str, Any]]:
    """Return an overlay's manifests, as kustomize makes them."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl (with kustomize inside) is not installed")
    return [manifest for manifest in yaml.safe_load_all(rendered_text(overlay)) if manifest]


def plain_files() -> list[Path]:
    """Return the manifests that kustomize puts together, so that much is checked where it is absent."""
    found = (INFRA / "kubernetes").rglob("*.yaml")
    return sorted(path for path in found if path.name != "kustomization.yaml" and path.parent.name != "gpu")


@lru_cache
def rendered_text(overlay: str) -> str:
    command = ["kubectl", "kustomize", str(INFRA / "kubernetes" / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()
    return done.stdout


@lru_cache
def crd(kind: str) -> dict[str, Any]:
    """Return KubeRay's schema of a kind, made strict: names that it does not have are errors."""
    path = CRDS / f"ray.io_{kind.lower()}s.yaml"
    if not path.is_file():
        pytest.skip("KubeRay's schemas (../shared/crds) are not on this machine")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # these are of many thousand lines
    versions = yaml.load(path.read_text(), loader)["spec"]["versions"]
    schema = strict(next(v for v in versions if v["name"] == "v1")["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        result["properties"] = {key: strict(value) for key, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
    if result.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
    return result


def check(manifest: dict[str, Any]) -> None:
    """Check a manifest against the schema of its kind."""
    if manifest["apiVersion"].startswith("ray.io/"):
        schema = crd(manifest["kind"])
        errors = list(jsonschema.Draft7Validator(schema).iter_errors(manifest))
        assert not errors, [f"{'.'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in errors[:5]]
    else:
        import kubernetes_validate

        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def pods_of(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every pod specification in a manifest."""
    if isinstance(manifest, dict):
        if "containers" in manifest:
            yield manifest
        for value in manifest.values():
            yield from pods_of(value)
    elif isinstance(manifest, list):
        for value in manifest:
            yield from pods_of(value)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_renders_to_what_the_schemas_allow(overlay: str) -> None:
    manifests = rendered(overlay)
    for manifest in manifests:
        check(manifest)
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == "segworker"
    kinds = {manifest["kind"] for manifest in manifests}
    assert {"Namespace", "ServiceAccount", "ConfigMap", "NetworkPolicy"} < kinds
    expected = {"cluster": {"RayCluster"}, "run": {"RayJob"}, "nightly": {"RayCronJob"},
                "nightly-cronjob": {"RayCluster", "CronJob"}}  # fmt: skip
    assert kinds & {"RayCluster", "RayJob", "RayCronJob", "CronJob"} == expected[overlay]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_bounded_and_have_no_rights(overlay: str) -> None:
    pods = [pod for manifest in rendered(overlay) for pod in pods_of(manifest)]
    assert pods
    for pod in pods:
        assert pod["serviceAccountName"] == "segworker"
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["image"] == "segworker:0.1.0"
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert not [env for env in container.get("env", ()) if "KEY" in env["name"]], "no secret in a manifest"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_clusters_grow_within_limits_and_have_gpus_on_spot_nodes(overlay: str) -> None:
    clusters = [m["spec"] for m in rendered(overlay) if m["kind"] == "RayCluster"]
    for manifest in rendered(overlay):
        if manifest["kind"] in JOBS:
            spec = manifest
            for key in JOBS[manifest["kind"]]:
                spec = spec[key]
            clusters.append(spec["rayClusterSpec"])
    (cluster,) = clusters
    assert cluster["enableInTreeAutoscaling"] is True
    for group in cluster["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] <= 100
        assert group["template"]["spec"]["nodeSelector"]["karpenter.sh/capacity-type"] == "spot"
        assert group["template"]["metadata"]["annotations"]["prometheus.io/scrape"] == "true"
    gpu = next(group for group in cluster["workerGroupSpecs"] if group["groupName"] == "gpu")
    assert gpu["minReplicas"] >= 1, "a run counts the GPUs that are there when it begins"
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    account = next(m for m in rendered(overlay) if m["kind"] == "ServiceAccount")
    assert "eks.amazonaws.com/role-arn" in account["metadata"]["annotations"]


@pytest.mark.parametrize("path", plain_files(), ids=lambda path: path.name)
def test_every_manifest_is_checked_without_kustomize_too(path: Path) -> None:
    for manifest in yaml.safe_load_all(path.read_text()):
        check(manifest)


def test_a_schema_finds_what_is_wrong() -> None:
    manifest = yaml.safe_load((INFRA / "kubernetes" / "base" / "raycluster.yaml").read_text())
    manifest["spec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(AssertionError, match="maxReplica"):
        check(manifest)


def entrypoints() -> list[list[str]]:
    """Return the commands that jobs in the manifests run."""
    found = []
    for path in plain_files():
        for manifest in yaml.safe_load_all(path.read_text()):
            if manifest["kind"] == "RayJob":
                found.append(shlex.split(manifest["spec"]["entrypoint"]))
            elif manifest["kind"] == "RayCronJob":
                found.append(shlex.split(manifest["spec"]["jobTemplate"]["entrypoint"]))
            elif manifest["kind"] == "CronJob":
                arguments = next(pods_of(manifest))["containers"][0]["args"]
                found.append(arguments[arguments.index("--") + 1 :])
    return found


def test_jobs_run_scripts_and_flags_that_exist() -> None:
    commands = entrypoints()
    assert len(commands) == 3
    for python, script, *arguments in commands:
        name = script.removeprefix("/opt/segworker/")
        assert python == "python"
        assert (ROOT / name).is_file()
        parser = make_parser(prog="p", description="")
        if name.endswith("nightly.py"):
            _add_night(parser)
        found = parser.parse_args(arguments)
        assert found.scenes == ["s3://scenes/incoming/"]


# The image


def dockerfile() -> list[list[str]]:
    """Return the instructions of the Dockerfile's last stage, split at their first blank."""
    text = (INFRA / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    last = max(k for k, line in enumerate(lines) if line[0] == "FROM")
    return lines[last:]


def run_here(command: list[str]) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PATH": path})


def test_the_image_runs_what_it_says_as_nobody_special() -> None:
    stage = dockerfile()
    told = {name: value for name, value in stage if name in ("USER", "ENTRYPOINT", "CMD", "HEALTHCHECK")}
    assert told["USER"].split(":")[0].isdecimal()
    assert told["USER"] != "0"
    done = run_here([*json.loads(told["ENTRYPOINT"]), *json.loads(told["CMD"])])
    assert done.returncode == 0, done.stderr
    assert "usage: segworker COMMAND" in done.stdout
    assert run_here(json.loads(told["HEALTHCHECK"].partition(" CMD ")[2])).returncode == 0


def test_the_image_copies_what_is_there() -> None:
    text = (INFRA / "docker" / "Dockerfile").read_text()
    ignored = PathSpec.from_lines("gitignore", (ROOT / ".dockerignore").read_text().splitlines())
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            probe = source if (ROOT / source).is_file() else f"{source}/__init__.py"
            assert not ignored.match_file(probe), f"{source} is not sent to the build"


def test_the_locked_versions_are_all_there_and_what_the_project_asks_for() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    text = (INFRA / "docker" / "requirements.txt").read_text()
    locked = {Requirement(line).name: Requirement(line) for line in text.splitlines() if re.match(r"[a-z]", line)}
    assert all(len(r.specifier) == 1 and next(iter(r.specifier)).operator == "==" for r in locked.values())
    extras = project["project"]["optional-dependencies"]
    asked = [*project["project"]["dependencies"], *extras["query"], *extras["geo"]]
    asked += project["tool"]["uv"]["constraint-dependencies"]
    for line in asked:
        wanted = Requirement(line)
        version = Version(next(iter(locked[wanted.name].specifier)).version)
        assert wanted.specifier.contains(version), f"{wanted.name} {version} is not {wanted.specifier}: run `make lock`"


def test_versions_agree() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    version = project["project"]["version"]
    ray = next(c for c in project["tool"]["uv"]["constraint-dependencies"] if c.startswith("ray=="))
    cluster = yaml.safe_load((INFRA / "kubernetes" / "base" / "raycluster.yaml").read_text())
    assert cluster["spec"]["rayVersion"] == ray.removeprefix("ray==")
    for path in [*(INFRA / "kubernetes").rglob("kustomization.yaml"), INFRA / "aws" / "cluster.yaml"]:
        text = path.read_text()
        assert set(re.findall(r"(?:newTag: |/segworker:)(\S+)", text)) <= {version}, path


# The launcher, Prometheus, Grafana


def test_rays_own_validator_takes_the_launcher_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((INFRA / "aws" / "cluster.yaml").read_text())
    prepared = prepare_config(config)
    validate_config(prepared)
    workers = config["available_node_types"]["gpu"]
    assert workers["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert workers["resources"]["GPU"] == 1
    assert config["head_node_type"] in config["available_node_types"]
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepared | {"idle_timeout": 10})


def queries() -> dict[str, str]:
    """Return the expressions of the dashboard's panels and of the alerts by their titles."""
    dashboard = json.loads((INFRA / "monitoring" / "grafana-dashboard.json").read_text())
    rules = yaml.safe_load((INFRA / "monitoring" / "alerts.yml").read_text())
    found = {f"{p['title']} {t['refId']}": t["expr"] for p in dashboard["panels"] for t in p["targets"]}
    return found | {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}


def test_queries_name_metrics_and_labels_that_runs_publish() -> None:
    names = {published(name): metric for name, metric in METRICS.items()}
    used: set[str] = set()
    for title, expression in queries().items():
        found = set(re.findall(r"ray_segworker_\w+", expression))
        assert found, title
        assert found <= names.keys(), title
        used |= found
        groupings = re.findall(r"by \(([^)]*)\)", expression)
        grouped = {label.strip() for text in groupings for label in text.split(",")}
        assert grouped <= {tag for name in found for tag in names[name].tags}, title
        for name in found:
            rated = re.search(rf"(?:rate|increase)\({name}\[", expression) is not None
            assert rated == name.endswith("_total"), f"{title}: counters are rated, gauges are not"
    assert used == names.keys(), "every metric is on the dashboard or in an alert"


def test_prometheus_scrapes_the_port_that_pods_name() -> None:
    config = yaml.safe_load((INFRA / "monitoring" / "prometheus.yml").read_text())
    assert [(INFRA / "monitoring" / name).is_file() for name in config["rule_files"]] == [True]
    pods = config["scrape_configs"][0]
    relabels = {tuple(r["source_labels"]): r for r in pods["relabel_configs"]}
    assert relabels["__meta_kubernetes_pod_container_port_name",]["regex"] == "metrics"
    cluster = yaml.safe_load((INFRA / "kubernetes" / "base" / "raycluster.yaml").read_text())
    for pod in pods_of(cluster):
        ports = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
        assert ports["metrics"] == 8080
