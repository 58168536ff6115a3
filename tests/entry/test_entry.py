import errno
import os
import subprocess
import sys
import textwrap

import pytest

from unclip_jax.cli import entry
from unclip_jax.core.checks import UserError


def outcome(error: BaseException | int | None, capsys: pytest.CaptureFixture[str]):
    """Exit status and what was printed when a main ends like this."""

    def main() -> int | None:
        if isinstance(error, BaseException):
            raise error
        return error

    with pytest.raises(SystemExit) as caught:
        entry.run(main)
    return caught.value.code, capsys.readouterr().err


def test_success_and_other_statuses(capsys: pytest.CaptureFixture[str]):
    assert outcome(None, capsys) == (None, "")
    assert outcome(3, capsys) == (3, "")


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]):
    error = UserError("two\nlines   become one.")
    assert outcome(error, capsys) == (2, "error: two lines become one.\n")


def test_interruption_says_how_to_go_on(capsys: pytest.CaptureFixture[str]):
    status, printed = outcome(KeyboardInterrupt(), capsys)
    assert (status, printed.strip()) == (
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
def test_refusals_of_the_file_system(number: int, fix: str, capsys: pytest.CaptureFixture[str]):
    error = OSError(number, os.strerror(number), "/some/file")
    status, printed = outcome(error, capsys)
    assert status == 2
    assert printed.startswith(f"error: {os.strerror(number)}: /some/file; {fix}")


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
    done = subprocess.run(
        f"{sys.executable} -c '{textwrap.dedent(body)}' | head -1; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["line", "0"]
    assert done.stderr == ""
