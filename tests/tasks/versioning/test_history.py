import os
import subprocess
from datetime import UTC, datetime

from tasks.versioning import History


def test_the_data_is_as_old_as_the_commit_of_its_version(tmp_path):
    def git(*words, date="2025-03-04T05:06:07+02:00"):
        names = {"GIT_AUTHOR_NAME": "ann", "GIT_AUTHOR_EMAIL": "ann@example.org"}
        names |= {name.replace("AUTHOR", "COMMITTER"): value for name, value in names.items()}
        dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
        subprocess.run(["git", *words], cwd=tmp_path, env=os.environ | names | dates, check=True)

    history = History(tmp_path)
    file = tmp_path / "data.dvc"
    file.write_text("first")
    os.utime(file, (1_000_000_000, 1_000_000_000))
    in_2001 = datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)
    assert history.changed() == in_2001
    git("init", "--quiet")
    assert history.changed() == in_2001
    git("add", "data.dvc")
    git("commit", "--quiet", "--message", "data")
    assert history.changed() == datetime(2025, 3, 4, 3, 6, 7, tzinfo=UTC)
    file.write_text("second")
    os.utime(file, (1_000_000_000, 1_000_000_000))
    assert history.changed() == in_2001
