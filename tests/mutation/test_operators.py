"""Mutation operators on a line each, and lists that must fit the code as it is."""

import pytest

from tests.mutation import operators, runner

ONE_LINE = [  # source, one of its mutants
    ("y = a < b", "y = a <= b"),
    ("y = a is None", "y = a is not None"),
    ("y = 1000", "y = 1001"),
    ("y = 0.5", "y = 1.0"),
    ("y = a - b", "y = a + b"),
    ("y = a & ~b", "y = a | ~b"),
    ("y = a & ~b", "y = a & b"),
    ("y = -a", "y = a"),
    ("y = a * b", "y = a"),
    ("y = a * b", "y = b"),
    ("y = a / b", "y = a"),
    ("y = f(a, b)", "y = f(b, a)"),
    ("y = fold(k, 't'), fold(k, 'noise')", "y = fold(k, 't'), fold(k, \"t\")"),
    ("y = f(True)", "y = f(False)"),
    ("y = a and b", "y = a or b"),
    ("y = a if c else b", "y = b"),
    ("if a:\n    b()", "if not (a):\n    b()"),
    ("y = jax.lax.stop_gradient(x)", "y = x"),
    ("y = jnp.clip(x, 0, 1)", "y = x"),
    ("x += y", "pass"),
    ("y = state.ema_params", "y = state.params"),
    ("y = batch['z_img']", 'y = batch["z_txt"]'),
    ("y = f(keep_text=k)", "y = f(keep_text=None)"),
]
UNTOUCHED = [
    '"""A docstring with 1 number."""',
    "def f(x: Float[Array, 'b 3']) -> Literal[1]: ...",
    "raise UserError(f'{1 + 1} is not {2}')",
    "log.info('%d', 1)",
    "if a:\n    raise ValueError",
    "import a.b",
    "y = isclose(a, b), max(b, a)",
    "y = zip(a, strict=True)",
    "@dataclass(frozen=True)\nclass A: ...",
]


def all_of(source: str, path: str = "unclip_jax/x.py") -> set[str]:
    return {mutant.apply(source) for mutant in operators.mutants(source, path)}


@pytest.mark.parametrize(("source", "mutant"), ONE_LINE)
def test_an_operator_makes_its_change(source, mutant):
    assert mutant in all_of(source)
    assert source not in all_of(source)


@pytest.mark.parametrize("source", UNTOUCHED)
def test_what_decides_nothing_is_left_alone(source):
    assert not all_of(source)


def test_settings_are_changed_in_experiments_alone():
    source = 'def paper():\n    target = "x_0"\n\n\ndef tiny():\n    steps = 3\n'
    assert not all_of(source.replace("steps = 3", "pass"))
    (mutant,) = operators.mutants(source, "experiments/prior.py", function="paper")
    assert 'target = "eps"' in mutant.apply(source) and mutant.line == 2
    assert mutant.diff(source) == '-    target = "x_0"\n+    target = "eps"'


def test_a_mutant_of_another_version_is_rejected():
    (mutant,) = operators.mutants("y = 3", "unclip_jax/x.py")
    with pytest.raises(ValueError, match=r"unclip_jax/x.py:1 is no longer '3'"):
        mutant.apply("z, y = 3")


def test_characters_outside_ascii_move_nothing():
    assert 'y = "α", 2 < 3' in all_of('y = "α", 1 < 3')


def test_every_package_has_mutants_that_are_valid():
    for path in ("unclip_jax/objectives/gaussian.py", "experiments/decoder.py"):
        source = (runner.ROOT / path).read_text()
        mutants = operators.mutants(source, path)
        assert len(mutants) > 20
        assert sum(operators.is_valid(m.apply(source)) for m in mutants) > 0.98 * len(mutants)


def test_the_lists_fit_the_code():
    """A listed mutant changes a line there is; an equivalent one is generated, with a reason."""
    assert len(runner.listed(runner.ROOT)) >= 40
    for (file, diff), reason in runner.equivalents(runner.ROOT).items():
        source = (runner.ROOT / file).read_text()
        result = {runner.identity(m, runner.ROOT)[1] for m in operators.mutants(source, file)}
        assert diff in result, f"{file} has no longer {diff}"
        assert len(reason) > 20
