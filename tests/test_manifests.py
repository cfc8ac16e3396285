"""docker/: what can be held to without a container engine, a cluster or a network."""

from __future__ import annotations

import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.main import get_command

from orchestrator.cli import app

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
KUBERAY = [DOCKER / "kuberay" / f"{name}.yaml" for name in ("mlflow", "raycluster", "rayjob")]
CRDS = next(
    (path for path in (ROOT / "shared/kuberay-crds", ROOT.parent / "shared/kuberay-crds") if path.is_dir()),
    None,
)
DOCUMENTS = (DOCKER / "README.md").read_text()
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
RESOURCES = [
    document for path in KUBERAY for document in yaml.safe_load_all(path.read_text()) if document is not None
]
FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
OURS = {"ablate:0.1.0", "ablate-mlflow:0.1.0"}


def found(node: Any, key: str) -> Iterator[Any]:
    """Every value under a key, however deep."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from found(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from found(value, key)


def resource(kind: str) -> Any:
    return next(one for one in RESOURCES if one["kind"] == kind)


# --- images -----------------------------------------------------------------------------------------------------


def test_every_image_is_pinned_to_an_exact_version() -> None:
    images = {*found(COMPOSE, "image"), *found(RESOURCES, "image")}
    assert images > OURS
    for image in images:
        assert re.fullmatch(r"[a-z0-9/-]+:v?\d+\.\d+[\w.-]*", image), image


def test_the_base_image_is_one_and_pinned() -> None:
    [base] = re.findall(r"^ARG BASE=(.+)$", (DOCKER / "Dockerfile").read_text(), re.M)
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    assert {*found(COMPOSE, "BASE")} == {f"${{BASE:-{base}}}"}


def test_the_images_name_no_place_to_download_from() -> None:
    for path in DOCKER.rglob("*"):
        if path.is_file() and path.parent.name != "secrets":
            text = path.read_text()
            assert not re.search(
                r"pypi|pythonhosted|download\.pytorch|debian\.org|--extra-index-url", text
            ), path


def test_no_image_runs_as_root() -> None:
    stages = re.split(r"^FROM ", (DOCKER / "Dockerfile").read_text(), flags=re.M)
    for target in ("mlflow", "ablate"):
        [stage] = [stage for stage in stages if re.match(rf"\S+ AS {target}\n", stage)]
        assert re.findall(r"^USER (.+)$", stage, re.M)[-1] == "1000:1000"
    pods = [one for one in found(RESOURCES, "spec") if "containers" in one]
    assert len(pods) == 2 + 3 + 4
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}


def test_what_the_tracking_server_installs_is_pinned() -> None:
    pins = {line.partition("==")[0].lower() for line in (ROOT / "requirements.lock").read_text().splitlines()}
    for line in (DOCKER / "mlflow-requirements.txt").read_text().splitlines():
        assert line.startswith("#") or "==" in line or line.lower() in pins, line


def test_pins_are_written_for_each_layer(tmp_path: Path) -> None:
    subprocess.run([sys.executable, DOCKER / "pins.py", ROOT, tmp_path], check=True)
    torch, ablate = ((tmp_path / name).read_text().splitlines() for name in ("torch.txt", "ablate.txt"))
    assert [line.partition("==")[0] for line in torch] == ["torch", "torchvision"]
    assert any(line.startswith("ray[") for line in ablate)
    assert not any(line.startswith("torch") for line in ablate)


def test_the_build_context_holds_what_the_images_copy_and_no_secrets() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert not any("secret" in one for one in let_in)
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", (DOCKER / "Dockerfile").read_text(), re.M):
        assert copied == "." or set(copied.split()) <= let_in, copied
    assert all((ROOT / one).exists() for one in let_in)


# --- compose ----------------------------------------------------------------------------------------------------


def test_ports_are_published_on_loopback_only() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"ray-head", "mlflow", "s3"}
    for ports in published.values():
        assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports)


def test_services_wait_for_what_they_need_to_be_healthy() -> None:
    for name, service in SERVICES.items():
        for other, wait in service.get("depends_on", {}).items():
            once = SERVICES[other].get("restart") == "no"
            assert wait["condition"] == ("service_completed_successfully" if once else "service_healthy"), (
                name
            )
            assert once or "healthcheck" in SERVICES[other]


def test_services_name_secrets_and_networks_that_exist() -> None:
    made = (DOCKER / "secrets.sh").read_text()
    for service in SERVICES.values():
        assert {*service.get("secrets", [])} <= COMPOSE["secrets"].keys()
        assert {*service.get("networks", [])} <= COMPOSE["networks"].keys()
        for path in re.findall(r"/run/secrets/(\w+)", str(service)):
            assert path in service["secrets"]
    for secret in COMPOSE["secrets"].values():
        assert f"once {secret['file'].removeprefix('secrets/')} " in made


def test_secrets_are_made_once_and_out_of_others_reach(tmp_path: Path) -> None:
    script = tmp_path / "secrets.sh"
    script.write_text((DOCKER / "secrets.sh").read_text())
    subprocess.run(["sh", script], check=True)
    folder = tmp_path / "secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    first = {path.name: path.read_text() for path in folder.iterdir()}
    assert {f"secrets/{name}" for name in first} == {one["file"] for one in COMPOSE["secrets"].values()}
    assert re.fullmatch("[0-9a-f]{64}", first["ray_token"])
    identity = yaml.safe_load(first["s3_identities.json"])["identities"][0]["credentials"][0]
    assert f"aws_access_key_id = {identity['accessKey']}\n" in first["s3_credentials"]
    assert f"aws_secret_access_key = {identity['secretKey']}\n" in first["s3_credentials"]
    subprocess.run(["sh", script], check=True)
    assert {path.name: path.read_text() for path in folder.iterdir()} == first


def test_the_secrets_are_never_committed() -> None:
    assert "/secrets/" in (DOCKER / ".gitignore").read_text().splitlines()


# --- Kubernetes -------------------------------------------------------------------------------------------------


def strict(schema: Any) -> Any:
    """A field that the schema doesn't know is an error, as the API server has it with strict validation."""
    if isinstance(schema, dict):
        if schema.get("properties") and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            strict(value)
    elif isinstance(schema, list):
        for value in schema:
            strict(value)
    return schema


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_kuberay_takes_the_resource(kind: str) -> None:
    if CRDS is None:
        pytest.skip("needs KubeRay's custom resource definitions in shared/kuberay-crds")
    definition = yaml.load((CRDS / f"ray.io_{kind.lower()}s.yaml").read_text(), Loader=FAST)
    [version] = [one for one in definition["spec"]["versions"] if one["name"] == "v1"]
    validator = Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(resource(kind))] == []
    assert list(validator.iter_errors(resource(kind) | {"spec": {"headGroupSpek": {}}}))


def test_the_job_runs_on_the_cluster_of_the_other_file() -> None:
    assert resource("RayJob")["spec"]["rayClusterSpec"] == resource("RayCluster")["spec"]


def test_the_job_is_tried_again_and_leaves_no_cluster() -> None:
    job = resource("RayJob")["spec"]
    assert job["backoffLimit"] > 0
    assert job["shutdownAfterJobFinishes"] is True
    assert job["ttlSecondsAfterFinished"] > 0


def test_workers_scale_and_the_head_runs_no_trial() -> None:
    cluster = resource("RayCluster")["spec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    pins = (ROOT / "requirements.lock").read_text().splitlines()
    assert f"ray=={cluster['rayVersion']}" in pins
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert groups["gpu"]["minReplicas"] == 0
    for name, group in groups.items():
        [worker] = group["template"]["spec"]["containers"]
        gpus = {one.get("nvidia.com/gpu", "0") for one in worker["resources"].values()}
        assert gpus == {"1" if name == "gpu" else "0"}


def test_secrets_and_settings_are_made_by_the_commands_of_the_readme() -> None:
    commands = DOCUMENTS.replace("\\\n", " ")
    for reference in found(RESOURCES, "secretKeyRef"):
        [made] = re.findall(rf"kubectl create secret generic {reference['name']} (.*)", commands)
        assert f"--from-literal={reference['key']}=" in made
    [made] = re.findall(r"kubectl create configmap ablate-store (.*)", commands)
    settings = set(re.findall(r"--from-literal=(\w+)=", made))
    assert {one["name"] for one in found(RESOURCES, "configMapRef")} == {"ablate-store"}
    wanted = {name for text in found(RESOURCES, "args") for name in re.findall(r"\$\((\w+)\)", str(text))}
    assert wanted <= settings
    assert {"ABLATE_STORE", "AWS_ENDPOINT_URL"} <= settings


def test_no_manifest_holds_a_secret() -> None:
    for one in found(RESOURCES, "env"):
        for variable in one:
            if re.search("PASSWORD|SECRET|TOKEN|KEY", variable["name"]):
                assert "value" not in variable, variable["name"]
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY|CREDENTIALS", name):
                assert value.startswith("/run/secrets/"), name
    for path in [*KUBERAY, DOCKER / "compose.yaml"]:
        assert not re.search(r"://[^\s/@]+:[^\s/@]+@", path.read_text()), path


# --- what they call ---------------------------------------------------------------------------------------------


def calls() -> list[list[str]]:
    """Every call of `ablate` in docker/, comments and documents included."""
    found_calls = []
    for path in [*KUBERAY, DOCKER / "compose.yaml", DOCKER / "slurm" / "ablate.sbatch", DOCKER / "README.md"]:
        text = re.sub(r"\\\n[#\s]*", " ", path.read_text())
        for call in re.findall(
            r"\bablate(?::\S+)? ((?:plan|run|submit|report|status|ui|sync)\b[^`\n;&]*)", text
        ):
            found_calls.append(shlex.split(call, comments=True))
    return found_calls


def test_verbs_and_options_are_those_of_the_command_line() -> None:
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    assert len(calls()) > 8
    for verb, *arguments in calls():
        takes = {option for parameter in verbs[verb].params for option in parameter.opts}
        options = {word.partition("=")[0] for word in arguments if word.startswith("--")}
        assert options <= takes, f"ablate {verb}: {options - takes}"


def test_variables_of_ours_are_those_that_the_command_line_reads() -> None:
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    read = {str(parameter.envvar) for verb in verbs.values() for parameter in verb.params if parameter.envvar}
    code = "".join(path.read_text() for path in (ROOT / "orchestrator").rglob("*.py"))
    used = set(COMPOSE["x-node"]["environment"]) | {
        variable["name"] for one in found(RESOURCES, "env") for variable in one
    }
    for name in {name for name in used if name.startswith(("ABLATE_", "MLFLOW_TRACKING"))}:
        assert name in read or f'"{name}"' in code, name


# --- Slurm: srun and scontrol run on this machine ---------------------------------------------------------------

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do [[ $1 != --nodelist=* ]] || export NODE=${1#*=}; shift; done
echo "srun $NODE: $*" >> "$CALLS"
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$CALLS"
[[ $1 != show ]] || printf 'node%d\\n' 1 2 3
"""
RAY = """#!/bin/bash
[[ -s $RAY_AUTH_TOKEN_PATH && $RAY_AUTH_MODE == token ]] || exit 9
[[ ${RAY_FAILS:-} != "$NODE" ]] || { echo "no port" >&2; exit 7; }
trap 'echo "ray ends on $NODE" >> "$CALLS"; kill $!; exit 143' TERM
sleep 60 &
stat -c 'token %a' "$RAY_AUTH_TOKEN_PATH" >> "$CALLS"
wait
"""
PYTHON = """#!/bin/bash
echo "python $*" >> "$CALLS"
until (($(grep -c token "$CALLS") == ${UP:-3})); do sleep 0.05; done
exit ${GATHER_CODE:-0}
"""
ABLATE = """#!/bin/bash
echo "ablate $*, store $ABLATE_STORE" >> "$CALLS"
trap 'echo "ablate saves" >> "$CALLS"; kill $!; exit 130' TERM
[[ -z ${WORKS:-} ]] || { sleep 60 & echo "ablate works" >> "$CALLS"; wait; }
exit ${CODE:-0}
"""


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[Any]:
    """Starts the batch script on three nodes that are this machine; its process, and what it called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in zip(
        ("srun", "scontrol", "ray", "python", "ablate"), (SRUN, SCONTROL, RAY, PYTHON, ABLATE), strict=True
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    log = tmp_path / "calls"
    log.touch()
    started = []

    def start(**environment: str) -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            ["bash", DOCKER / "slurm" / "ablate.sbatch", "table1", "--seeds", "0,1"],
            env={
                "PATH": f"{programs}:{os.environ['PATH']}",
                "CALLS": str(log),
                "SLURM_JOB_ID": "4711",
                "SLURM_JOB_NODELIST": "node[1-3]",
                "SLURM_CPUS_PER_TASK": "8",
                "SLURM_SUBMIT_DIR": str(tmp_path),
                **environment,
            },
            text=True,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        return process, log

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(log: Path, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_slurm_starts_a_head_and_workers_and_leaves_nothing(allocation: Any, tmp_path: Path) -> None:
    process, log = allocation()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    lines = log.read_text().splitlines()
    heads = [line for line in lines if "ray start --head" in line]
    workers = [line for line in lines if "ray start --address" in line]
    assert len(heads) == 1
    assert heads[0].startswith("srun node1: ")
    assert {line.split()[1] for line in workers} == {"node2:", "node3:"}
    [port] = re.findall(r"--port=(\d+)", heads[0])
    assert port == str(20000 + 4711 % 2000 * 5)
    [address] = {re.findall(r"--address=(\S+)", line)[0] for line in workers}
    assert address.endswith(f":{port}")
    assert all("--num-cpus=8" in line for line in heads + workers)
    assert lines.count("token 600") == 3
    assert "python docker/slurm/gather.py --nodes 3 --minutes 10" in lines
    assert f"ablate run table1 --seeds 0,1 --address {address}, store {tmp_path}/ablations" in lines
    assert {line for line in lines if line.startswith("ray ends")} == {
        f"ray ends on node{i}" for i in (1, 2, 3)
    }
    assert sum("rm -rf /tmp/ray-4711" in line for line in lines) == 3
    assert not list(tmp_path.glob(".ablate-*"))
    assert not any(line.startswith("scontrol requeue") for line in lines)


def test_slurm_passes_on_the_exit_code(allocation: Any) -> None:
    process, log = allocation(CODE="3")
    process.communicate(timeout=30)
    assert process.returncode == 3
    assert "requeue" not in log.read_text()


@pytest.mark.parametrize(("number", "again"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_slurm_saves_and_goes_on_when_the_time_is_up(allocation: Any, number: int, again: bool) -> None:
    process, log = allocation(WORKS="1")
    wait_for(log, "ablate works")
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 130
    lines = log.read_text().splitlines()
    assert "ablate saves" in lines
    assert (lines[-1] == "scontrol requeue 4711") is again


def test_slurm_shows_why_no_cluster_came_up(allocation: Any) -> None:
    process, log = allocation(RAY_FAILS="node2", UP="2", GATHER_CODE="4")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 4
    assert "the cluster did not come up" in said
    assert "no port" in said
    assert "ablate run" not in log.read_text()
