"""Launch scripts parse, print commands that exist, and continue where they stopped."""

import functools
import importlib
import importlib.util
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from unclip_jax.experiment import files

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(path for path in LAUNCH.iterdir() if path.is_file())
SIZES = ("shapes", "portraits", "emoji", "tiny", "karlo", "paper")


def bash(*command: str, cwd: pathlib.Path = ROOT, **env: str) -> subprocess.CompletedProcess:
    """Run a script as a user would, without inheriting settings that change its output."""
    clean = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    return subprocess.run(
        command, cwd=cwd, env=clean | env, capture_output=True, text=True, timeout=120
    )


@functools.cache
def dry_run(*arguments: str) -> list[list[str]]:
    """The Python commands that a dry run of the cascade prints for an untouched run, split up."""
    run = bash("launch/cascade", "--run=/r", *arguments, "--dry-run", PYTHON=sys.executable)
    assert run.returncode == 0, run.stderr
    return [shlex.split(line) for line in run.stdout.splitlines()]


@functools.cache
def known_flags(module: str) -> set[str]:
    """Flags that a command and its subcommands take."""
    main = importlib.import_module(f"{module}.__main__" if module.endswith("convert") else module)
    parsers = [main.parser(), *getattr(main, "subparsers", dict)().values()]
    return {flag.removeprefix("--") for parser in parsers for flag in parser.flags()}


@functools.cache
def has_config_key(config: str, key: str) -> bool:
    """Returns True if the experiment "path.py:size" has the dotted key."""
    group = files.get_config(config)
    for part in key.split("."):
        if part not in group:
            return False
        group = group[part]
    return True


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_parse(script: pathlib.Path):
    run = bash("bash", "-n", str(script))
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_is_content(script: pathlib.Path):
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    tool = str(beside) if beside.exists() else shutil.which("shellcheck")
    if not tool:
        pytest.skip("shellcheck is not installed")
    run = bash(tool, str(script))
    assert run.returncode == 0, run.stdout


def written_commands(document: str) -> list[list[str]]:
    """Commands of ours in a document or Makefile, split up, continued lines joined."""
    text = (ROOT / document).read_text("utf-8").replace("\\\n", " ")
    line = r"^\s*@?(?:\. launch/env\.sh && )?\S*python(?: -m )(unclip_jax\.\w.*)$"
    result = re.findall(line, text, flags=re.MULTILINE)
    return [["python", "-m", *shlex.split(line, comments=True)] for line in result]


@pytest.mark.parametrize("document", ["README.md", "Makefile"])
def test_documents_show_commands_that_exist(document: str):
    commands = written_commands(document)
    assert len(commands) >= 2
    for _, _, module, *arguments in commands:
        flags = {a[2:].split("=")[0] for a in arguments if a[:2] == "--"}
        plain = {flag for flag in flags if not flag.startswith("config.")}
        assert plain <= known_flags(module), (document, module, plain - known_flags(module))


@pytest.mark.parametrize("size", SIZES)
def test_the_cascade_prints_commands_that_exist(size: str):
    commands = dry_run(size)
    assert len(commands) >= 5
    for program, dash_m, module, *arguments in commands:
        assert (program, dash_m) == (sys.executable, "-m")
        options = {a[2:].split("=")[0]: a.partition("=")[2] for a in arguments if a[:2] == "--"}
        for flag in options:
            if flag.startswith("config."):
                config = options["config"]
                assert has_config_key(config, flag.removeprefix("config.")), (config, flag)
            else:
                assert flag in known_flags(module), (module, flag)


def test_the_cascade_runs_stages_in_the_order_they_need_each_other():
    shapes = [" ".join(command) for command in dry_run("shapes")]
    order = ["prepare", "/r/clip ", "embed", "/r/prior ", "/r/decoder ", "/r/upsampler_256 "]
    assert len(shapes) == len(order)
    for part, command in zip(order, shapes, strict=True):
        assert part in f"{command} "
    assert "upsampler_1024.py:paper" in " ".join(dry_run("paper", "--data=/d")[-1])


def test_the_cascade_trains_dalle_after_its_discrete_vae():
    commands = [" ".join(command) for command in dry_run("shapes", "--chain=dalle")]
    for part, command in zip(("prepare", "/r/clip", "/r/dvae", "/r/dalle"), commands, strict=True):
        assert part in command
    assert "--config.data.dvae=/r/dvae/export" in commands[-1]


def test_the_cascade_trains_imagen_on_its_text_encoder():
    commands = [" ".join(command) for command in dry_run("shapes", "--chain=imagen")]
    order = ("prepare", "/r/text_encoder", "imagen_base.py:shapes", "imagen_sr256.py:shapes")
    for part, command in zip(order, commands, strict=True):
        assert part in command
    for command in commands[2:]:
        assert "--config.data.text_encoder=/r/text_encoder/export" in command
    assert "--workdir=/r/upsampler_256" in commands[-1]


def test_the_paper_s_text_encoder_is_converted_not_trained():
    commands = [" ".join(c) for c in dry_run("paper", "--chain=imagen", "--data=/d")]
    assert "imagen_base.py:paper" in commands[0] and "/r/text_encoder/export" in commands[0]
    command = ("launch/cascade", "--run=/r", "--chain=imagen", "--data=/d", "paper", "--dry-run")
    note = bash(*command, PYTHON=sys.executable).stderr
    (advice,) = re.findall(r"no text encoder at /r/text_encoder; .*`(.*)`", note)
    _, _, module, source, *flags = shlex.split(advice)
    convert = importlib.import_module(f"{module}.__main__").parser().parse_args([source, *flags])
    assert (str(convert.out), convert.context, convert.dtype) == ("/r", 128, "bfloat16")


@pytest.mark.parametrize("size", ["shapes", "portraits", "tiny", "karlo"])
def test_a_tokenizer_made_by_the_cascade_fits_every_model(size: str):
    (prepare,) = [" ".join(c) for c in dry_run(size) if c[2].endswith("prepare")]
    vocab_size = int(re.findall(r"--vocab-size=(\d+)", prepare)[0])
    for stage in ("clip", "prior", "decoder"):
        config = files.get_config(f"{stage}:{size}")
        assert config.model.model.vocab_size >= vocab_size


def test_stages_of_karlos_kind_get_raw_embeddings_and_the_clip():
    commands = {" ".join(command) for command in dry_run("karlo")}
    (embed,) = (c for c in commands if "unclip_jax.embed" in c)
    assert embed.endswith("--raw")
    clip_commands = {c for c in commands if "--config.data.clip=/r/clip/export" in c}
    assert len(clip_commands) == 2 and all(
        "prior.py:karlo" in c or "decoder.py:karlo" in c for c in clip_commands
    )
    assert "--raw" not in " ".join(map(" ".join, dry_run("shapes")))


def test_overrides_reach_every_training_and_nothing_else():
    overrides = ["--config.train.steps=3", "--x=a b"]
    run = bash(
        "launch/cascade", "tiny", "--run=/r", "--dry-run", "--", *overrides, PYTHON=sys.executable
    )
    for line in run.stdout.splitlines():
        trains = "unclip_jax.train" in line
        assert trains == (shlex.split(line)[-2:] == overrides)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["huge"],
            "unknown size 'huge'; known: shapes, shapes_long, portraits, portraits_long, emoji, "
            "tiny, karlo, paper",
        ),
        (["shapes", "--runs=x"], "unknown option '--runs=x'"),
        (["shapes", "tiny"], "unexpected 'tiny'; the size is already 'shapes'"),
        (["shapes", "--until=prio"], "unknown step 'prio'; known: data clip embed prior"),
        (
            ["emoji", "--run=nowhere"],
            "unclip_jax.prepare IMAGES --out=nowhere/data --vocab-size=2048`",
        ),
    ],
)
def test_a_wrong_call_of_the_cascade_is_one_line(arguments: list[str], message: str):
    run = bash("launch/cascade", *arguments, PYTHON=sys.executable)
    assert run.returncode == 2
    assert message in run.stderr
    assert len(run.stderr.splitlines()) == 1


FAKE = """#!/usr/bin/env bash
# Stands in for Python: notes the call, makes its result, and ends as the file "fail" tells.
[[ "$1" == -c ]] && echo 1024 && exit
[[ "$2" == unclip_jax.experiment ]] &&
  printf '%s\n' clip "prior embeddings" "decoder embeddings" upsampler_256 && exit
shift
echo "$*" >> calls
for argument in "$@"; do
  case "$argument" in
    --workdir=*) result="${argument#*=}/export" ;;
    --out=*) result="${argument#*=}" ;;
  esac
done
if [[ -s fail ]]; then
  status="$(head -n 1 fail)"
  sed -i 1d fail
  [[ "$status" == 0 ]] || exit "$status"
fi
mkdir -p "$result"
echo '{"tokenizer": "c0ffee"}' > "$result/manifest.json"
"""


@pytest.fixture
def fake(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with a stand-in for Python."""
    (tmp_path / "python").write_text(FAKE)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def cascade(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    script = str(LAUNCH / "cascade")
    return bash(script, "shapes", *arguments, cwd=folder, PYTHON=str(folder / "python"))


def calls(folder: pathlib.Path) -> list[str]:
    """Returns the commands that were run since the last call, by their results."""
    lines = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    (folder / "calls").unlink(missing_ok=True)
    return [re.findall(r"--(?:workdir|out)=runs/shapes/(\w+)", line)[0] for line in lines]


ALL = ["data", "clip", "embeddings", "prior", "decoder", "upsampler_256"]


def test_a_python_without_jax_is_one_line(tmp_path: pathlib.Path):
    bare = tmp_path / "python"
    bare.write_text("#!/usr/bin/env bash\nexit 1\n")
    bare.chmod(0o755)
    run = cascade(tmp_path)
    assert run.returncode == 2
    assert run.stderr.strip().splitlines()[-1] == (
        f"cascade: {bare} has no JAX; run 'make setup', or name another interpreter with PYTHON=..."
    )


def test_a_finished_cascade_does_nothing_again(fake: pathlib.Path):
    run = cascade(fake)
    assert run.returncode == 0, run.stderr
    assert calls(fake) == ALL
    assert "sample --models=runs/shapes" in run.stderr
    assert cascade(fake).returncode == 0
    assert calls(fake) == []


def test_a_failed_step_ends_the_cascade_and_is_where_it_continues(fake: pathlib.Path):
    (fake / "fail").write_text("0\n0\n0\n2\n")
    run = cascade(fake)
    assert run.returncode == 2
    assert "step 'prior' ended with status 2; run the same command to continue" in run.stderr
    assert calls(fake) == ALL[:4]
    assert cascade(fake).returncode == 0
    assert calls(fake) == ALL[2:]  # what is embedded already is for `embed` to see


def test_a_preempted_step_is_started_again_by_itself(fake: pathlib.Path):
    (fake / "fail").write_text("0\n143\n143\n")
    run = cascade(fake)
    assert run.returncode == 0, run.stderr
    assert calls(fake) == ["data", "clip", "clip", *ALL[1:]]
    assert "preempted, restart 2 of 100" in run.stderr


def test_the_cascade_stops_where_it_is_told(fake: pathlib.Path):
    run = cascade(fake, "--until=clip", "--", "--config.train.steps=3")
    assert run.returncode == 0, run.stderr
    assert calls(fake) == ALL[:2]


def test_restarts_are_bounded(fake: pathlib.Path):
    (fake / "fail").write_text("143\n" * 9)
    run = bash(
        *(str(LAUNCH / "until_done"), "--max-restarts=2", str(fake / "python"), "-m", "x"), cwd=fake
    )
    assert run.returncode == 143
    assert len((fake / "calls").read_text().splitlines()) == 3
    assert "stopped after 2 restarts" in run.stderr


def test_a_stop_signal_is_not_answered_by_a_restart(tmp_path: pathlib.Path):
    script = 'echo x >> calls; kill -TERM "$PPID"; exit 143'
    run = bash(str(LAUNCH / "until_done"), "bash", "-c", script, cwd=tmp_path)
    assert run.returncode == 143
    assert (tmp_path / "calls").read_text() == "x\n"


def environment(device: str, **env: str) -> dict[str, str]:
    """The variables that env.sh leaves behind."""
    run = bash("bash", "-c", f"set -eu; source launch/env.sh {device} && env", **env)
    assert run.returncode == 0, run.stderr
    return dict(line.split("=", 1) for line in run.stdout.splitlines() if "=" in line)


def test_every_flag_has_a_reason_above_it():
    lines = (LAUNCH / "env.sh").read_text().splitlines()
    flags = [index for index, line in enumerate(lines) if line.strip().startswith("--xla")]
    assert flags
    first_of_group = [i for i in flags if i - 1 not in flags]
    assert not [lines[i] for i in first_of_group if not lines[i - 1].strip().startswith("#")]


def test_gpu_flags_are_known_to_this_jaxlib():
    """An unknown flag would abort every process that starts under it."""
    env = environment("gpu", UNCLIP_DETERMINISTIC="1", XLA_FLAGS="--xla_dump_to=")
    assert env["XLA_FLAGS"].endswith("--xla_dump_to=")
    run = bash(
        *(sys.executable, "-c", "import jax; jax.devices()"),
        XLA_FLAGS=env["XLA_FLAGS"],
        JAX_PLATFORMS="cpu",
    )
    assert run.returncode == 0, run.stderr


def test_tpu_flags_are_known_to_libtpu():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    env = environment("tpu")
    compile_for = 'get_topology_desc(platform="tpu", topology_name="v5e:2x2")'
    run = bash(
        *(sys.executable, "-c", f"from jax.experimental.topologies import *; {compile_for}"),
        LIBTPU_INIT_ARGS=env["LIBTPU_INIT_ARGS"],
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(("cores", "devices"), [(1, 1), (2, 2), (3, 2), (6, 4), (64, 8)])
def test_cpu_cores_become_devices_whose_number_divides_batches(cores, devices, tmp_path):
    nproc = tmp_path / "nproc"
    nproc.write_text(f"#!/bin/sh\necho {cores}\n")
    nproc.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    env = environment("cpu", PATH=path, XLA_FLAGS="--xla_dump_to=")
    flag = f"--xla_force_host_platform_device_count={devices}"
    assert env["XLA_FLAGS"] == f"{flag} --xla_dump_to="
    assert not {"cores", "devices"} & env.keys()


def test_memory_of_a_cpu_comes_in_huge_pages():
    """Every step faults in its buffers, page by page."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("the C library is not glibc")
    setting = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.is_file() or "[never]" in setting.read_text():
        pytest.skip("this kernel has no transparent huge pages")
    count_faults = """
import resource
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
block = bytearray(b"x") * (256 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    script = 'unset GLIBC_TUNABLES; source launch/env.sh cpu; exec "$PYTHON" -c "$CODE"'
    run = bash("bash", "-c", script, PYTHON=sys.executable, CODE=count_faults)
    assert run.returncode == 0, run.stderr
    pages = (256 << 20) // 4096
    assert int(run.stdout) < pages / 10


def test_tunables_of_the_user_come_last_and_win():
    env = environment("cpu", GLIBC_TUNABLES="glibc.malloc.hugetlb=0")
    assert env["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1:glibc.malloc.hugetlb=0"


def test_an_unknown_device_is_refused():
    run = bash("bash", "-c", "source launch/env.sh abacus")
    assert run.returncode == 2
    assert "unknown device 'abacus'; give tpu, gpu or cpu" in run.stderr
