import json
import pathlib

import pytest

from unclip_jax.core.checks import UserError
from unclip_jax.core.folder import Folder
from unclip_jax.preparation import import_report
from unclip_jax.preparation.import_report import Tally


def tally(count: int, **skipped: int) -> Tally:
    case = Tally(written=count, seconds=2.0)
    for reason, number in skipped.items():
        for i in range(number):
            case.skip(f"{reason}{i}", reason)
    return case


def test_counts_add_up():
    total = tally(5, cut=2)
    total.add(tally(3, cut=1, small=7))
    assert (total.written, total.bad, total.read) == (8, 10, 18)
    assert total.skipped == {"cut": 3, "small": 7}
    assert total.named["cut"] == ["cut0", "cut1", "cut0"]
    assert len(total.named["small"]) == 7


def test_tallies_survive_json():
    case = tally(5, cut=2, small=3)
    record = json.loads(json.dumps(case.to_json()))
    assert import_report.from_json(record) == case
    assert (record["read"], record["records_per_second"]) == (10, 5.0)
    assert list(record["skipped"]) == ["small", "cut"]  # the most frequent first


def test_a_single_bad_record_never_stops():
    import_report.check_share(tally(0, cut=1), total=1, max_bad=0.0)
    import_report.check_share(tally(3, cut=1), total=4, max_bad=0.05)


def test_the_share_is_of_all_records_that_will_be_read():
    import_report.check_share(tally(0, cut=50), total=1000, max_bad=0.05)
    with pytest.raises(UserError) as error:
        import_report.check_share(tally(9, cut=50, small=1), total=1000, max_bad=0.05)
    message = str(error.value)
    assert message.startswith("stopped: 51 of the first 60 records cannot be used, more than")
    assert "--max-bad=0.05 of 1000" in message
    assert "50 cut (cut0, cut1, cut2, cut3, cut4, ...); 1 small (small0)" in message
    assert "Finished shards are kept" in message


def test_written_reports_keep_other_splits(tmp_path: pathlib.Path):
    import_report.write(Folder(tmp_path), {"train": tally(5, cut=2)})
    import_report.write(Folder(tmp_path), {"validation": tally(1)})
    import_report.write(Folder(tmp_path), {"train": tally(6)})
    content = json.loads((tmp_path / "report.json").read_text())
    assert {split: facts["kept"] for split, facts in content.items()} == {
        "train": 6,
        "validation": 1,
    }
    assert content["train"]["skipped"] == {}


def test_the_table_says_it_all():
    lines = import_report.table({"train": tally(1234, cut=2), "validation": tally(5)}).splitlines()
    assert lines[0].split() == ["split", "read", "kept", "skipped", "per", "second"]
    assert lines[1].split() == ["train", "1,236", "1,234", "2", "618"]
    assert lines[2].split() == ["validation", "5", "5", "0", "2"]
    assert lines[3].strip() == "train: 2 skipped, cut: cut0, cut1"
