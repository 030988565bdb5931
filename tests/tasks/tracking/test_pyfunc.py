import mlflow


def test_a_stored_model_predicts_through_plain_mlflow(bench, toy, raw):
    ref = toy.make(bench)
    picture = next((raw / "1").iterdir()).read_bytes()
    found = mlflow.pyfunc.load_model(f"models:/{ref.model_id}").predict([picture])
    assert found["label"].tolist() == ["1"]


def test_who_loads_it_here_adds_nothing_to_the_stored_code(python, toy, bench, raw, monkeypatch):
    """`verify` would call Python's bytecode a file that was added."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    ref, picture = toy.make(bench), next((raw / "1").iterdir())
    folder = bench.tracking.fetch(ref).folder
    before = sorted((folder / "code").rglob("*"))
    assert before
    load = (
        "from pathlib import Path; from tasks.settings import Settings;"
        "from tasks.tracking import Tracking; settings = Settings();"
        "tracking = Tracking(settings.tracking_uri, settings.home);"
        f"model = tracking.load_pyfunc('models:/{ref.model_id}');"
        f"print(model.predict([Path({str(picture)!r}).read_bytes()])['label'].tolist())"
    )
    done = python("-c", load)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['1']\n"
    assert sorted((folder / "code").rglob("*")) == before
