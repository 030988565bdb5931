from tasks.atomic import replace_text


def test_a_small_file_is_written_as_a_whole(tmp_path):
    replace_text(tmp_path / "new" / "file", "one")
    replace_text(tmp_path / "new" / "file", "two")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]
    assert (tmp_path / "new" / "file").read_text() == "two"
