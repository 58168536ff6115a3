"""Launchers of slices, clusters and Slurm jobs print commands that exist, and react to failures.

The tools are replaced by scripts that record their calls and answer from a file.
"""

import functools
import os
import pathlib
import re
import shlex
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "launch"

# Flags of the tools' own parsers: `gcloud compute tpus ... --help` of SDK 528.0.0, and the modules
# below xpk/parser of XPK 1.16.0.
NETWORK = {"zone", "project", "quiet"}
CREATION = {"accelerator-type", "spot", "reserved", "service-account", "scopes", "network"}
GCLOUD = {
    ("tpu-vm", "create"): NETWORK | CREATION | {"version"},
    ("queued-resources", "create"): NETWORK
    | CREATION
    | {"runtime-version", "node-id", "node-count", "node-prefix", "valid-until-duration"},
    ("tpu-vm", "delete"): NETWORK,
    ("queued-resources", "delete"): NETWORK | {"force"},
    ("tpu-vm", "ssh"): NETWORK | {"worker", "command", "output-directory"},
    ("tpu-vm", "scp"): NETWORK | {"worker", "recurse"},
}
CLUSTER = {"project", "zone", "cluster"}
HARDWARE = {"tpu-type", "device-type", "num-slices", "num-nodes"}
CAPACITY = {"on-demand", "spot", "flex", "reservation"}
XPK = {
    ("cluster", "create"): CLUSTER | HARDWARE | CAPACITY | {"enable-workload-identity"},
    ("cluster", "delete"): CLUSTER,
    ("workload", "create"): CLUSTER
    | HARDWARE
    | CAPACITY
    | {"workload", "docker-image", "max-restarts", "restart-on-exit-codes", "priority", "storage"}
    | {"termination-grace-period-seconds", "command", "deploy-stacktrace-sidecar"},
    ("workload", "list"): CLUSTER,
    ("workload", "delete"): CLUSTER | {"workload"},
}


def bash(*command: str, cwd: pathlib.Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a script as a user would, outside any Slurm job."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "XLA_", "NCCL_"))}
    return subprocess.run(
        command, cwd=cwd, env=clean | env, capture_output=True, text=True, timeout=60
    )


@functools.cache
def dry_run(*command: str) -> list[list[str]]:
    """The commands that a dry run prints, split up; remarks are left out."""
    run = bash(*command)
    assert run.returncode == 0, run.stderr
    return [shlex.split(line) for line in run.stdout.splitlines() if line[0] != "#"]


def flags_of(words: list[str]) -> set[str]:
    return {word[2:].split("=")[0] for word in words if word.startswith("--")}


def remote(words: list[str]) -> str:
    """The command line that a host runs."""
    (line,) = [a.removeprefix("--command=") for a in words if a.startswith("--command=")]
    return line


def one_line(run: subprocess.CompletedProcess[str], message: str, status: int = 2) -> None:
    assert run.returncode == status, run.stderr
    assert message in run.stderr
    assert len(run.stderr.splitlines()) == 1, run.stderr


@pytest.fixture
def tools(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with the launchers and with `bin`, a PATH of its own without any cloud tool."""
    shutil.copytree(LAUNCH, tmp_path / "launch")
    (tmp_path / "bin").mkdir()
    needed = "bash cat date dirname env git grep head hostname mkdir mktemp nproc rm sed seq setsid"
    for name in (*needed.split(), "sleep", "sort", "tail", "tee", "tr", "wc", "getconf", "cksum"):
        if place := shutil.which(name):
            (tmp_path / "bin" / name).symlink_to(place)
    return tmp_path


def imitate(tools: pathlib.Path, name: str, body: str) -> None:
    """Puts a script in place of a tool."""
    path = tools / "bin" / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


GCLOUD_IMITATION = """
cd "$(dirname "$0")/.."
echo "$*" >> calls
# The next line of a file; the last one stays.
next() { head -n 1 "$1"; [[ $(wc -l < "$1") -le 1 ]] || sed -i 1d "$1"; }
case "$*" in
  "config get-value project") cat project ;;
  *" describe "*)
    answer="$(next states)"
    case "$answer" in
      GONE) echo "ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource 'n' was not found" >&2; exit 1 ;;
      ERROR*) printf '%s\\n- "@type": more\\n' "$answer" >&2; exit 1 ;;
      *) echo "$answer" ;;
    esac ;;
  *"status: "*)
    answer="$(next statuses)"
    [[ "$answer" != nothing ]] || exit 255
    echo 'SSH: running echo "status: $s"'
    for status in ${answer% broken}; do echo "SSH: status: $status"; done
    [[ "$answer" != *broken ]] || exit 255 ;;
  *" scp "*) exit "$(next copies)" ;;
  *" create "*)
    answer="$(next creations)"
    [[ "$answer" == 0 ]] || { echo "$answer" >&2; exit 1; } ;;
esac
"""


def slice_(tools: pathlib.Path, **answers: list[str]) -> None:
    """Puts an imitation of gcloud that gives these answers, one after the other."""
    defaults = {"project": ["p"], "copies": ["0"], "creations": ["0"]}
    for name, lines in (defaults | answers).items():
        (tools / name).write_text("\n".join(lines) + "\n")
    imitate(tools, "gcloud", GCLOUD_IMITATION)
    imitate(tools, "git", "exit 0")


POD = ("--name=n", "--zone=z", "--type=v5p-256", "--version=v2")


def watch(tools: pathlib.Path, *options: str) -> subprocess.CompletedProcess[str]:
    script = str(tools / "launch" / "tpu_pod.sh")
    options = (*POD, "--interval=0", *options)
    command = ("--", "python", "-m", "x")
    return bash(script, "watch", *options, *command, cwd=tools, PATH=str(tools / "bin"))


VERBS = {
    "queued-resources create": "create",
    "tpu-vm create": "create",
    "queued-resources delete": "delete",
    "tpu-vm delete": "delete",
    " scp ": "copy",
    "uv pip install": "install",
    "until_done": "run",
    "kill -KILL": "halt",
    "--output-directory": "logs",
}


def actions(tools: pathlib.Path) -> list[str]:
    """Returns the commands that changed the slice."""
    calls = re.split(r"^(?=compute|config)", (tools / "calls").read_text(), flags=re.MULTILINE)
    result = [[verb for part, verb in VERBS.items() if part in call] for call in calls]
    return [verb for verbs in result for verb in verbs]


START = ["halt", "copy", "install", "run"]
END = ["logs", "delete"]


def test_a_watched_slice_is_made_used_and_deleted(tools: pathlib.Path):
    slice_(
        tools,
        states=["GONE", "CREATING", "READY"],
        statuses=["absent absent", "running running", "0 running", "0 0"],
    )
    run = watch(tools)
    assert run.returncode == 0, run.stderr
    assert actions(tools) == ["create", *START, *END]


def test_a_failed_copy_is_repeated(tools: pathlib.Path):
    slice_(
        tools, states=["READY"], copies=["1", "1", "0"], statuses=["absent"] * 3 + ["running", "0"]
    )
    run = watch(tools)
    assert run.returncode == 0, run.stderr
    assert actions(tools) == ["halt", "copy", "halt", "copy", *START, *END]
    assert "n could not be set up; retry 2 of 8 in 0 s" in run.stderr


def test_a_crash_of_one_worker_starts_all_again(tools: pathlib.Path):
    slice_(tools, states=["READY"], statuses=["running", "134 running", "running", "0"])
    run = watch(tools)
    assert run.returncode == 0, run.stderr
    assert actions(tools) == ["halt", "run", *END]
    assert "ended with status 134; retry 1 of 8" in run.stderr


def test_crashes_have_a_limit_and_leave_no_idle_slice(tools: pathlib.Path):
    slice_(tools, states=["READY"], statuses=["running", "1"])
    run = watch(tools, "--retries=2")
    assert run.returncode == 1
    assert actions(tools) == ["halt", "run"] * 2 + END
    assert "ended with status 1; gave up after 2 retries" in run.stderr


def test_pauses_after_failures_grow(tools: pathlib.Path):
    slice_(tools, states=["READY"], statuses=["running", "1"])
    imitate(tools, "sleep", 'echo "$1" >> ../pauses; echo "$1" >> "$(dirname "$0")/../pauses"')
    watch(tools, "--retries=6", "--interval=3")
    pauses = [int(x) for x in (tools / "pauses").read_text().split()]
    assert pauses[1::2] == [3, 6, 12, 24, 48, 48]  # between them, the interval between looks


@pytest.mark.parametrize("status", [134, 2])
def test_training_for_a_while_resets_the_count_of_failures(tools: pathlib.Path, status: int):
    slice_(tools, states=["READY"], statuses=["running", f"{status}"] * 3 + ["running", "0"])
    script = tools / "launch" / "tpu_pod.sh"
    text = script.read_text()
    assert "HEALTHY=3600 " in text
    script.write_text(text.replace("HEALTHY=3600 ", "HEALTHY=0 "))
    run = watch(tools, "--retries=1")
    assert run.returncode == 0, run.stderr
    assert actions(tools) == ["halt", "run"] * 3 + END


def test_a_command_that_failed_before_the_watch_is_started_again(tools: pathlib.Path):
    slice_(tools, states=["READY"], statuses=["2 running", "running", "0"])
    run = watch(tools, "--retries=0")
    assert run.returncode == 0, run.stderr
    assert actions(tools) == [*START, *END]


def test_another_command_is_not_disturbed(tools: pathlib.Path):
    slice_(tools, states=["READY"], statuses=["other"])
    one_line(watch(tools), "another command runs on n; end it with `launch/tpu_pod.sh stop` first")
    assert actions(tools) == []


def test_several_slices_are_watched_together(tools: pathlib.Path):
    slice_(tools, states=["GONE", "WAITING_FOR_RESOURCES", "ACTIVE"], statuses=["0"])
    run = watch(tools, "--slices=2")
    assert run.returncode == 0, run.stderr
    calls = (tools / "calls").read_text()
    assert "queued-resources describe n --zone=z --format=value(state.state)" in calls
    assert "queued-resources delete n --force --quiet" in calls
    logs = re.findall(r"tpu-vm ssh (\S+) .*--output-directory=(\S+)", calls)
    assert sorted(logs) == [("n-0", "logs/n/n-0"), ("n-1", "logs/n/n-1")]
    assert (tools / "logs" / "n" / "n-1").is_dir()


@pytest.mark.parametrize("state", ["PREEMPTED", "SUSPENDED", "TERMINATED"])
def test_a_preempted_slice_is_rebuilt(tools: pathlib.Path, state: str):
    slice_(tools, states=["READY", state, "READY"], statuses=["running", "absent", "0"])
    run = watch(tools, "--retries=0")  # no failure
    assert run.returncode == 0, run.stderr
    assert actions(tools) == ["delete", "create", *START, *END]


def test_a_slice_whose_state_is_not_clear_is_left_alone(tools: pathlib.Path):
    states = ["READY", "UNKNOWN", "REPAIRING", "ERROR: UNAVAILABLE: 503", "READY"]
    slice_(tools, states=states, statuses=["running", "0"])
    run = watch(tools)
    assert run.returncode == 0, run.stderr
    assert actions(tools) == END
    assert "the state of n cannot be read: UNAVAILABLE: 503" in run.stderr


def test_workers_that_do_not_answer_are_replaced(tools: pathlib.Path):
    slice_(tools, states=["READY"] * 10 + ["GONE", "READY"], statuses=["nothing"] * 10 + ["0"])
    run = watch(tools)
    assert run.returncode == 0, run.stderr
    assert actions(tools) == ["delete", "create", *END]


def test_the_end_is_not_believed_while_a_worker_does_not_answer(tools: pathlib.Path):
    slice_(tools, states=["READY"], statuses=["0 broken", "0 broken", "0 0"])
    assert watch(tools).returncode == 0
    assert (tools / "calls").read_text().count('echo "status: $s"') == 3
    assert actions(tools) == END


def test_a_mistake_in_the_arguments_is_not_repeated(tools: pathlib.Path):
    slice_(tools, states=["READY"], statuses=["running", "2 running"])
    run = watch(tools)
    one_line(run, "ended with status 2, a mistake in its arguments; see logs/n")
    assert actions(tools) == END


def test_a_stopped_command_is_not_started_again(tools: pathlib.Path):
    slice_(tools, states=["READY"], statuses=["running", "143 running", "143", "143"])
    run = watch(tools, "--keep", "--retries=1")
    assert run.returncode == 143
    assert "n is kept; delete it with: launch/tpu_pod.sh delete --name=n --zone=z" in run.stderr
    assert actions(tools) == ["logs"]


def test_a_command_that_vanished_is_started_again_and_counted(tools: pathlib.Path):
    slice_(tools, states=["READY"], statuses=["running", "absent running", "running", "0"])
    run = watch(tools)
    assert run.returncode == 0, run.stderr
    assert actions(tools) == [*START, *END]
    assert "the command is gone from some workers; retry 1 of 8" in run.stderr


def test_capacity_that_is_missing_is_waited_for(tools: pathlib.Path):
    slice_(
        tools,
        states=["GONE", "GONE", "READY"],
        creations=["ERROR: RESOURCE_EXHAUSTED: no capacity", "0"],
        statuses=["0"],
    )
    run = watch(tools)
    assert run.returncode == 0
    assert "no capacity\ntpu_pod: n could not be created; retry 1 of 8" in run.stderr


def test_a_request_that_is_rejected_ends_the_watch(tools: pathlib.Path):
    error = "ERROR: (gcloud) PERMISSION_DENIED: no access"
    slice_(tools, states=["GONE"], creations=[error], statuses=[""])
    run = watch(tools)
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1] == (
        "tpu_pod: the request for n was rejected: (gcloud) PERMISSION_DENIED: no access"
    )


def test_a_wrong_zone_is_one_line(tools: pathlib.Path):
    error = "ERROR: (gcloud) PERMISSION_DENIED: no such location"
    slice_(tools, states=[error], statuses=[""])
    one_line(watch(tools), "the state of n in z cannot be read: (gcloud) PERMISSION_DENIED")


def test_a_project_that_is_not_set_is_one_line(tools: pathlib.Path):
    slice_(tools, project=["(unset)"], states=["READY"], statuses=["0"])
    one_line(watch(tools), "no project; give --project=PROJECT")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (("tpu_pod.sh", "tail", "--name=n", "--zone=z"), "gcloud is not installed"),
        (("gke.sh", "list", "--cluster=c", "--zone=z"), "xpk is not installed"),
        (("gke.sh", "tail", "--cluster=c", "--zone=z-a", "--name=n"), "kubectl is not installed"),
        (("gke.sh", "build", "--image=i"), "docker is not installed"),
        (("slurm.sbatch", "python"), "srun is not on PATH"),
    ],
)
def test_a_missing_tool_is_one_line(tools: pathlib.Path, script: tuple[str, ...], message: str):
    name, *arguments = script
    path = str(tools / "launch" / name)
    one_line(bash("bash", path, *arguments, cwd=tools, PATH=str(tools / "bin")), message)


def pod(action: str, *options: str) -> list[list[str]]:
    """The commands of a dry run; what follows -- is the command."""
    return dry_run("launch/tpu_pod.sh", action, *POD, "--dry-run", *options)


@pytest.mark.parametrize("action", ["create", "copy", "run", "tail", "logs", "stop", "delete"])
@pytest.mark.parametrize("slices", [(), ("--queued",), ("--slices=3",)], ids=str)
def test_pod_actions_print_gcloud_commands(action: str, slices: tuple[str, ...]):
    commands = pod(action, "--project=p", *slices, "--", "python")
    gcloud = [words for words in commands if words[0] == "gcloud"]
    assert gcloud
    for words in gcloud:
        assert words[1:3] == ["compute", "tpus"]
        assert flags_of(words) <= GCLOUD[words[3], words[4]], words
        assert {"--zone=z", "--project=p"} <= set(words)


def test_several_slices_are_one_queued_resource():
    (create,) = pod("create", "--slices=3", "--spot", "--gcloud-arg=--service-account=me")
    assert create[3:6] == ["queued-resources", "create", "n"]
    assert {"--node-count=3", "--node-prefix=n", "--runtime-version=v2", "--spot"} <= set(create)
    assert "--service-account=me" in create
    assert [words[5] for words in pod("run", "--slices=3", "--", "python")] == ["n-0", "n-1", "n-2"]
    (single,) = pod("create", "--queued")
    assert "--node-id=n" in single and not {"--node-count=1"} & set(single)
    (plain,) = pod("create")
    assert plain[3:5] == ["tpu-vm", "create"] and "--version=v2" in plain


def test_old_images_get_a_python_that_the_package_takes():
    install = remote(pod("copy")[-1])
    versions = re.findall(r"uv venv .*--python (3\.\d+)", install)
    least = re.findall(r'python_requires=">=3\.(\d+)"', (ROOT / "setup.py").read_text())
    assert versions and int(versions[0].split(".")[1]) >= int(least[0])
    assert bash("bash", "-n", "-c", install).returncode == 0


def test_a_pod_runs_the_command_after_the_dashes():
    (words,) = pod("run", "--", "python", "-m", "unclip_jax.train", "--workdir=/mnt/a b")
    line = remote(words)
    assert r"python -m unclip_jax.train --workdir=/mnt/a\ b" in line
    assert "export UNCLIP_DISTRIBUTED=1" in line
    assert bash("bash", "-n", "-c", line).returncode == 0


def worker(tools: pathlib.Path) -> pathlib.Path:
    """A folder as `copy` leaves it on a worker."""
    home = tools / "unclip_jax"
    (home / ".venv" / "bin").mkdir(parents=True)
    (home / ".venv" / "bin" / "activate").write_text("")
    shutil.copytree(LAUNCH, home / "launch")
    return home


def test_what_a_pod_runs_ends_with_its_status(tools: pathlib.Path):
    """The remote line, run here: it detaches, logs, and leaves the command's status behind."""
    home = worker(tools)
    (words,) = pod("run", "--", "sh", "-c", "echo out; exit 3")
    wait = "while [ ! -s status ]; do sleep 0.05; done; cat status log.txt"
    process = bash("bash", "-c", f"{remote(words)}; {wait}", cwd=tools)
    assert process.stdout.split() == ["3", "out"]
    assert (home / "pid").read_text().strip().isdigit()


def test_a_worker_tells_its_command_from_others(tools: pathlib.Path):
    """The question of `watch`, answered by this machine in place of a worker."""
    home = worker(tools)
    command = ("sh", "-c", "while [ ! -e end ]; do sleep 0.05; done; exit 3")
    (run,) = pod("run", "--", *command)
    slice_(tools, states=["READY"], statuses=["0"])
    looks = {}
    for name, words in {"same": command, "other": ("python",)}.items():
        (tools / "calls").write_text("")
        bash(
            str(tools / "launch" / "tpu_pod.sh"),
            *("watch", *POD, "--interval=0", "--", *words),
            cwd=tools,
            PATH=str(tools / "bin"),
        )
        calls = (tools / "calls").read_text()
        looks[name] = re.findall(r"--command=(cd .*?status: \$s\")", calls, re.DOTALL)[0]

    def answers() -> list[str]:
        outputs = (bash("bash", "-c", look, cwd=tools).stdout for look in looks.values())
        return [answer.split()[-1] for answer in outputs]

    assert answers() == ["absent", "absent"]
    assert bash("bash", "-c", remote(run), cwd=tools).returncode == 0
    until = "until [ -s unclip_jax/pid ]; do sleep 0.05; done"
    bash("bash", "-c", until, cwd=tools)
    assert answers() == ["running", "other"]
    (home / "end").touch()
    bash("bash", "-c", "until [ -s unclip_jax/status ]; do sleep 0.05; done", cwd=tools)
    assert answers() == ["3", "absent"]


def test_a_stopped_run_leaves_its_status_too(tools: pathlib.Path):
    worker(tools)
    script = "trap 'exit 143' TERM; echo up; while :; do sleep 0.05; done"
    (run,), (stop,) = pod("run", "--", "bash", "-c", script), pod("stop")
    up = "until grep -q up log.txt 2>/dev/null; do sleep 0.05; done; cd .."
    wait = "cd unclip_jax; while [ ! -s status ]; do sleep 0.05; done; cat status"
    line = f"{remote(run)}; {up}; {remote(stop)}; {wait}"
    assert bash("bash", "-c", line, cwd=tools).stdout.split() == ["143"]


def test_a_dry_watch_prints_what_it_would_do():
    run = bash("launch/tpu_pod.sh", "watch", *POD, "--dry-run", "--spot", "--", "python")
    text = run.stdout.replace("\\ ", " ")
    verbs = [
        "delete n",
        "create n",
        "archive",
        "scp",
        "install",
        "until_done",
        "kill -KILL",
        "logs",
    ]
    assert [text.index(verb) for verb in verbs] == sorted(text.index(verb) for verb in verbs)
    assert "--spot" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "unknown action 'fly'"),
        (["tail", "--zone=z"], "give --name and --zone"),
        (["create", "--name=n", "--zone=z"], "create needs --type and --version"),
        (["run", "--name=n", "--zone=z"], "run needs a command after --"),
        (["tail", "--nmae=n"], "unknown option '--nmae=n'"),
        (["create", *POD, "--slices=0"], "--slices is '0'; give a count"),
        (["create", *POD, "--retries=x"], "--retries is 'x'; give a count"),
        (["create", *POD, "--interval=1m"], "--interval is '1m'; give seconds"),
        (["copy", *POD, "--extras=a b"], "--extras is 'a b'; give names such as tpu,gcs"),
    ],
)
def test_a_wrong_call_of_the_pod_is_one_line(arguments: list[str], message: str):
    one_line(bash("launch/tpu_pod.sh", *arguments), message)


GKE = ("--cluster=c", "--zone=us-east5-a", "--name=n")
TPUS = ("--type=v5p-256",)


def gke(action: str, *options: str) -> list[list[str]]:
    return dry_run("launch/gke.sh", action, *GKE, "--dry-run", *options)


@pytest.mark.parametrize(
    ("action", "options"),
    [
        ("create", (*TPUS, "--spot")),
        ("create", (*TPUS, "--reservation=r", "--slices=4")),
        ("create", ("--device=h200-141gb-8", "--nodes=32", "--on-demand")),
        ("run", (*TPUS, "--image=i", "--storage=s", "--priority=high", "--", "python")),
        ("run", ("--device=h200-141gb-8", "--nodes=32", "--image=i", "--", "python")),
        ("list", ()),
        ("stop", ()),
        ("delete", ()),
    ],
)
def test_gke_actions_print_xpk_commands(action: str, options: tuple[str, ...]):
    (words,) = gke(action, "--project=p", *options)
    assert words[0] == "xpk"
    assert flags_of(words) <= XPK[words[1], words[2]], words
    assert {"--cluster=c", "--zone=us-east5-a", "--project=p"} <= set(words)


def test_gke_runs_the_command_after_the_dashes_and_starts_it_again():
    command = ["python", "-m", "unclip_jax.train", "--workdir=/mnt/a b"]
    options = (*TPUS, "--image=i", "--slices=2", "--restarts=7")
    (words,) = gke("run", *options, "--xpk-arg=--deploy-stacktrace-sidecar", "--", *command)
    assert words[:3] == ["xpk", "workload", "create"]
    assert {"--workload=n", "--num-slices=2", "--docker-image=i", "--max-restarts=7"} <= set(words)
    assert {"--restart-on-exit-codes=1", "--deploy-stacktrace-sidecar"} <= set(words)
    line = remote(words)
    assert "launch/env.sh tpu" in line and "export UNCLIP_DISTRIBUTED=1" in line
    assert "pip" not in line  # nothing is installed at a restart
    assert shlex.split(line.split(" && exec ")[1]) == command
    assert bash("bash", "-n", "-c", line).returncode == 0


def test_gke_has_gpu_nodes():
    options = ("--device=h200-141gb-8", "--nodes=32", "--image=i")
    (words,) = gke("run", *options, "--", "python")
    assert {"--device-type=h200-141gb-8", "--num-nodes=32"} <= set(words)
    assert "launch/env.sh gpu" in remote(words)
    build, push = gke("build", *options)
    assert "--build-arg=EXTRAS=cuda13,gcs" in build and push == ["docker", "push", "i"]
    assert "--build-arg=EXTRAS=tpu,gcs" in gke("build", "--image=i")[0]


@pytest.mark.parametrize("action", ["tail", "logs"])
def test_logs_are_those_of_the_named_cluster(action: str):
    credentials, logs = gke(action, "--project=p")
    assert credentials[:5] == ["gcloud", "container", "clusters", "get-credentials", "c"]
    assert "--region=us-east5" in credentials
    assert "--context=gke_p_us-east5_c" in logs
    assert any("jobset-name=n" in word for word in logs)
    assert ("--prefix" in logs) == (action == "logs")


def test_the_image_has_what_a_host_runs():
    """Extras that exist, and nothing left out that setup.py or a launcher reads."""
    text = (ROOT / "Dockerfile").read_text()
    extras = re.findall(r"EXTRAS=([\w,]+)", text)
    names = set(re.findall(r'^ +"(\w+)": ', (ROOT / "setup.py").read_text(), re.MULTILINE))
    assert extras and {name for each in extras for name in each.split(",")} <= names
    assert "WORKDIR /unclip_jax" in text  # where gke.sh runs commands
    ignored = set((ROOT / ".dockerignore").read_text().split())
    assert {".git", ".venv", "runs", "data"} <= ignored
    assert not {"launch", "experiments", "unclip_jax", "README.md", "setup.py"} & ignored
    for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in line.split()), line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["fly"],
            "unknown action 'fly'; known: build, create, run, list, tail, logs, stop, delete",
        ),
        (["list", "--zone=z"], "give --cluster and --zone"),
        (["create", "--cluster=c", "--zone=z"], "create needs --type (TPUs) or --device (GPUs)"),
        (["create", *GKE, *TPUS, "--device=d"], "--type (TPUs) or --device (GPUs), not both"),
        (["create", *GKE, *TPUS], "create needs one of --on-demand, --spot, --flex and"),
        (["create", *GKE, *TPUS, "--spot", "--flex"], "create needs one of --on-demand, --spot"),
        (["stop", "--cluster=c", "--zone=z"], "stop needs --name"),
        (["run", *GKE, *TPUS], "run needs a command after --"),
        (
            ["run", *GKE, *TPUS, "--", "python"],
            "run needs --image; `launch/gke.sh build` makes one",
        ),
        (["build"], "build needs --image"),
        (["create", *GKE, *TPUS, "--slices=none"], "--slices is 'none'; give a count"),
        (["create", *GKE, *TPUS, "--nodes=x"], "--nodes is 'x'; give a count"),
        (["tail", *GKE[:2], "--name=A_b"], "lower-case letters, digits and dashes; it is 'A_b'"),
        (["tail", "--nmae=n"], "unknown option '--nmae=n'"),
    ],
)
def test_a_wrong_call_of_gke_is_one_line(arguments: list[str], message: str):
    one_line(bash("launch/gke.sh", *arguments), message)


def slurm(
    tools: pathlib.Path, step: str = "exit 0", check: str = "exit 0", **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs the job script with a srun whose steps and check are the given scripts."""
    srun = f'case "$*" in *nvidia-smi*) {check} ;; esac\necho "$NCCL_DEBUG $*" >> steps\n{step}'
    imitate(tools, "srun", srun)
    imitate(tools, "scontrol", 'echo "$@" > requeued')
    path = str(tools / "bin")
    job = {"SLURM_JOB_ID": "17", "PATH": path} | env
    return bash("bash", "launch/slurm.sbatch", "python", "-m", "x", cwd=tools, **job)


def test_slurm_names_all_gpus_of_a_node(tools: pathlib.Path):
    arguments = ("--dry-run", "python", "-m", "unclip_jax.train")
    run = bash("bash", "launch/slurm.sbatch", *arguments, SLURM_GPUS_ON_NODE="4")
    assert run.returncode == 0, run.stderr
    assert "JAX_LOCAL_DEVICE_IDS=0,1,2,3 srun --kill-on-bad-exit=1" in run.stdout
    assert run.stdout.rstrip().endswith("python -m unclip_jax.train")
    one_line(bash("bash", "launch/slurm.sbatch"), "give the command to run")


def test_slurm_writes_a_log_per_node_and_lets_nccl_report(tools: pathlib.Path):
    assert slurm(tools).returncode == 0
    (step,) = (tools / "steps").read_text().splitlines()
    assert step.startswith("WARN ") and "--output=slurm-%j-node-%n.log" in step
    assert not (tools / "requeued").exists()


@pytest.mark.parametrize("status", [143, 134, 1])
def test_slurm_puts_a_preempted_or_crashed_job_back(tools: pathlib.Path, status: int):
    run = slurm(tools, f"exit {status}")
    assert run.returncode == status
    assert (tools / "requeued").read_text() == "requeue 17\n"


@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [(2, 0, False), (134, 3, False), (134, 2, True), (143, 9, True)],
)
def test_slurm_does_not_repeat_a_job_for_ever(tools, status: int, restarts: int, again: bool):
    counts = {"SLURM_RESTART_COUNT": str(restarts), "UNCLIP_RESTARTS": "3"}
    one_line(slurm(tools, f"exit {status}", **counts), "slurm: ", status)
    assert (tools / "requeued").exists() == again


@pytest.mark.parametrize(
    ("messages", "status", "again"),
    [
        (["n1: task 1: Exited with exit code 2", "n0: task 0: Terminated"], 2, False),
        (
            ["n1: task 1: Exited with exit code 2", "n0: task 0: Exited with exit code 143"],
            2,
            False,
        ),
        (
            ["n0: task 0: Exited with exit code 143", "n1: task 1: Exited with exit code 1"],
            1,
            False,
        ),
        (["n[1-2]: tasks 1-2: Aborted (core dumped)", "n0: task 0: Terminated"], 134, False),
        (["n1: task 1: Exited with exit code 1", "n0: task 0: Terminated"], 1, False),
        (["n[0-1]: tasks 0-1: Exited with exit code 143"], 143, True),
        (["n[0-1]: tasks 0-1: Terminated"], 143, True),
    ],
)
def test_the_task_that_failed_counts_not_those_that_srun_stopped(
    tools, messages: list[str], status: int, again: bool
):
    """Messages of srun 22.05.8; its own status is the largest, 143."""
    lines = "; ".join(f'echo "srun: error: {message}" >&2' for message in messages)
    run = slurm(tools, f"{lines}; exit 143", UNCLIP_RESTARTS="0")
    assert run.returncode == status
    assert (tools / "requeued").exists() == again
    assert run.stderr.count("srun: error") == len(messages)


def test_a_node_without_its_gpus_is_named(tools: pathlib.Path):
    run = slurm(tools, check='shift; exec "$@"', SLURM_GPUS_ON_NODE="8")
    assert run.returncode == 2
    assert re.search(r"slurm: \S+ has 0 of 8 GPUs\n.*sbatch --exclude=NODE", run.stderr)
    assert not (tools / "steps").exists()


def test_slurm_runs_in_a_container_or_an_environment(tools: pathlib.Path):
    assert slurm(tools, UNCLIP_CONTAINER="image", UNCLIP_MOUNTS="/data:/data").returncode == 0
    step = (tools / "steps").read_text()
    assert "--container-image=image" in step and f"{tools}:{tools},/data:/data" in step
    one_line(slurm(tools, UNCLIP_VENV="nowhere"), "UNCLIP_VENV is 'nowhere', which is no virtual")
    one_line(slurm(tools, UNCLIP_RESTARTS="many"), "UNCLIP_RESTARTS is 'many'; give a count")
    one_line(slurm(tools, SLURM_JOB_ID=""), "this is no Slurm job; start this script with sbatch")
