import shutil

import pytest
import yaml

from tasks.errors import DataError, SetupError
from tasks.lineage.digests import digest_of_file
from tasks.versioning import Versions


def written(root):
    """When each prepared file was written."""
    return {path.name: path.stat().st_mtime_ns for path in (root / "prepared").iterdir()}


def test_prepared_once_and_then_left_alone(versions):
    root = versions.root
    with pytest.raises(DataError, match="not been prepared"):
        versions.current()
    assert not versions.is_current()
    first, before = versions.prepare(), written(root)
    assert versions.is_current()
    assert versions.prepare() == first
    assert written(root) == before
    assert first.raw == yaml.safe_load((root / "data.dvc").read_text())["outs"][0]["md5"]
    assert first.prepared.endswith(".dir")
    assert first.manifest == digest_of_file(root / "prepared" / "manifest.parquet").sha256

    # A change of the parameters is a new version.
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["prepare"]["draw"] = 1
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    assert not versions.is_current()
    second = versions.prepare()
    assert second.raw == first.raw
    assert second.prepared != first.prepared
    assert second.content != first.content


def test_a_corrupt_image_is_named_in_one_line(versions):
    picture = versions.root / "data" / "1" / "1-003.png"
    picture.unlink()  # DVC may have linked it to its cache
    picture.write_bytes(b"\x89PNG and then nothing")
    with pytest.raises(DataError) as caught:
        versions.prepare()
    assert str(caught.value).startswith("unreadable: data/1/1-003.png: not a readable image")
    assert len(str(caught.value).splitlines()) == 1
    assert not (versions.root / "prepared").exists()


@pytest.fixture
def bare(tmp_path):
    """A folder that looks like a DVC project, for checks that run nothing."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "data.dvc").touch()
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "cat" / "a.png").touch()
    return tmp_path


def test_whole_data_pass_the_check(bare):
    Versions(bare, bare).check()


@pytest.mark.parametrize(
    ("missing", "error", "message"),
    [
        (".dvc", SetupError, "is no DVC repository; run `dvc init`"),
        ("data.dvc", DataError, r"data.dvc is missing; .* run `dvc add data`"),
        ("data", DataError, "data/ is missing; run `dvc pull`"),
        ("data/cat/a.png", DataError, "data/ is empty; .* run `dvc pull`"),
    ],
)
def test_what_is_missing_is_named_with_its_cure(bare, missing, error, message):
    place = bare / missing
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(error, match=message):
        Versions(bare, bare).check()
