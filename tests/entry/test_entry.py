import errno
import os
import subprocess
import sys
import textwrap
import warnings

import pytest

from unclip_jax.cli import entry
from unclip_jax.core.checks import UserError


def outcome(error: BaseException | int | None, capsys: pytest.CaptureFixture[str]):
    """Exit status and what was printed when a main ends like this."""

    def main() -> int | None:
        if isinstance(error, BaseException):
            raise error
        return error

    with pytest.raises(SystemExit) as exit_error:
        entry.run(main)
    return exit_error.value.code, capsys.readouterr().err


def test_success_and_other_statuses(capsys: pytest.CaptureFixture[str]):
    assert outcome(None, capsys) == (None, "")
    assert outcome(3, capsys) == (3, "")


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]):
    error = UserError("two\nlines   become one.")
    assert outcome(error, capsys) == (2, "error: two lines become one.\n")


def test_warnings_of_this_project_are_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # restored afterwards
    with pytest.raises(SystemExit):
        entry.run(lambda: None)
    own = warnings.formatwarning("slower", UserWarning, entry.__file__, 3)
    assert own == "warning: slower\n"
    foreign = warnings.formatwarning("old", UserWarning, pytest.__file__, 3)
    assert foreign.startswith(f"{pytest.__file__}:3: UserWarning: old")


def test_interruption_says_how_to_go_on(capsys: pytest.CaptureFixture[str]):
    status, output = outcome(KeyboardInterrupt(), capsys)
    assert (status, output.strip()) == (
        130,
        "interrupted: run the same command again to continue.",
    )


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "free space and run the same command again"),
        (errno.EACCES, "check its permissions"),
        (errno.EROFS, "choose a folder that can be written"),
        (errno.ENOENT, "check the path"),
    ],
)
def test_rejections_of_the_file_system(number: int, fix: str, capsys: pytest.CaptureFixture[str]):
    error = OSError(number, os.strerror(number), "/some/file")
    status, output = outcome(error, capsys)
    assert status == 2
    assert output.startswith(f"error: {os.strerror(number)}: /some/file; {fix}")


def raised_by_jax(error: str, wrap: type[Exception] | None = None) -> None:
    """Raises as JAX does where it starts its devices, perhaps under an error of ours."""
    place = "/somewhere/jax/_src/xla_bridge.py"
    code = compile(f"def backends():\n    {error}", place, "exec")
    space: dict = {}
    exec(code, space)
    try:
        space["backends"]()
    except Exception as cause:
        if wrap is None:
            raise
        raise wrap("the parameters cannot be read") from cause


@pytest.mark.parametrize("wrap", [None, UserError, RuntimeError])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("assert None is not None", "no such device"),
        ("raise RuntimeError('No GPU. (set JAX_PLATFORMS=... )')", "No GPU"),
        ("raise RuntimeError('backend\\n  tpu is busy.')", "backend tpu is busy"),
    ],
)
def test_a_missing_device_is_one_line(error, reason, wrap, capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "rocket")
    monkeypatch.setattr(entry, "_platforms", lambda: "cpu")
    with pytest.raises(SystemExit) as exit_error:
        entry.run(lambda: raised_by_jax(error, wrap))
    output = capsys.readouterr().err
    assert (exit_error.value.code, output.count("\n")) == (2, 1)
    expected = f"error: JAX cannot use the platform rocket (JAX_PLATFORMS): {reason}. On this mach"
    assert output.startswith(expected) and "it finds cpu. Unset JAX_PLATFORMS" in output


@pytest.mark.parametrize("platform", ["cuda", "no_such_platform"])
def test_jax_raises_there_where_it_has_no_such_device(platform):
    script = "import jax; from unclip_jax.cli import entry; entry.run(lambda: print(jax.devices()))"
    process = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
    )
    if process.returncode == 0:
        pytest.skip(f"this machine has {platform}")
    line = process.stderr.strip().splitlines()[-1]
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert line.startswith(f"error: JAX cannot use the platform {platform} (JAX_PLATFORMS): ")
    assert "On this machine it finds cpu." in line


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        entry.run(lambda: 1 / 0)
    with pytest.raises(OSError, match="no number"):
        entry.run(lambda: (_ for _ in ()).throw(OSError("no number")))


def test_a_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNCLIP_TRACEBACK", "1")

    def main() -> None:
        raise UserError("where from?")

    with pytest.raises(UserError, match="where from?"):
        entry.run(main)


def script(body: str, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body), *arguments],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def test_a_reader_that_goes_away_is_no_error():
    body = """
        import sys
        from unclip_jax.cli import entry
        def main():
            for _ in range(100000):
                sys.stdout.write("line\\n")
        entry.run(main)
    """
    process = subprocess.run(
        f"{sys.executable} -c '{textwrap.dedent(body)}' | head -1; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stdout.split() == ["line", "0"]
    assert process.stderr == ""


def test_an_error_below_a_progress_bar_has_a_line_of_its_own(capsys):
    import tqdm

    bar = tqdm.tqdm(total=3)
    bar.update(1)
    _, output = outcome(UserError("it broke."), capsys)
    assert output.endswith("\nerror: it broke.\n") and bar.disable
