import mlflow


def test_a_stored_model_predicts_through_plain_mlflow(bench, toy, raw):
    ref = toy.make(bench)
    picture = next((raw / "1").iterdir()).read_bytes()
    found = mlflow.pyfunc.load_model(f"models:/{ref.model_id}").predict([picture])
    assert found["label"].tolist() == ["1"]
