"""Locations of pairs of arrays and how to match and split them; matching.py opens them."""

import dataclasses

from unclip_jax.core.checks import UserError, in_range, one_of

TARGET = "y"
SUBJECT = "subject"
RESERVED = (TARGET, SUBJECT, "key", "valid", "ridge", "encoded")
BAD_ROWS = ("reject", "skip")
REPEATS = ("each", "mean")


@dataclasses.dataclass(frozen=True)
class PairsConfig:
    """Locations of pairs, and how to match and split them.

    Attributes:
        x: the condition, FILE or FILE:NAME (`pairs.column_files`); several as NAME=FILE,NAME=FILE.
        y: the target.
        groups: labels of the rows of x (such as subjects); rows of one group are in the same split.
            "" = by key.
        subjects: labels of the rows of x that select the first layer of an encoder, which needs
            config.model.encoder.width; "" = none.
        splits: name of the split of every row of x; "" = a random choice.
        eval_share: share of the groups or keys in the validation split, if chosen randomly.
        bad_rows: treatment of rows that are not finite or whose key has no partner: "reject" raises
            an error, "skip" leaves them out and logs their number.
        repeats: treatment of several x with one key: "each" is a pair, or their "mean" over rows
            whose labels (subjects, groups, splits) agree.
    """

    x: str = ""
    y: str = ""
    groups: str = ""
    subjects: str = ""
    splits: str = ""
    eval_share: float = 0.1
    bad_rows: str = "reject"
    repeats: str = "each"

    def __post_init__(self):
        one_of("config.data.bad_rows", self.bad_rows, BAD_ROWS)
        one_of("config.data.repeats", self.repeats, REPEATS)
        in_range("config.data.eval_share", self.eval_share, 0.0, 0.9)

    def named(self) -> dict[str, str]:
        """Returns the locations of conditions by name; see `locations`.

        Raises:
            UserError: x or y is missing, or x is malformed.
        """
        if not self.x or not self.y:
            missing = "x" if not self.x else "y"
            raise UserError(
                f"config.data.{missing} is empty; give arrays, such as --config.data.x=a.npy "
                "--config.data.y=b.npy."
            )
        return locations(self.x)


def is_condition_name(name: str) -> bool:
    """True for an identifier that is not the name of another batch field."""
    return name.isidentifier() and name not in RESERVED and not name.endswith("_mask")


def locations(x: str) -> dict[str, str]:
    """Returns the locations of conditions by name; a single one without a name is called "x".

    Raises:
        UserError: a name is reserved, not an identifier, or used twice.
    """
    if "=" not in x:
        return {"x": x}
    result: dict[str, str] = {}
    for part in x.split(","):
        name, _, location = part.partition("=")
        if not is_condition_name(name) or name in result or not location:
            raise UserError(
                f"x has the part {part!r}; give NAME=FILE with different names, none of them "
                f"{', '.join(RESERVED)}."
            )
        result[name] = location
    return result
