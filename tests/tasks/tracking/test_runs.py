def test_parameters_are_logged_under_dotted_names(bench):
    tracking = bench.tracking
    run_id = tracking.start("digits", "teach", "k", bench.run.data)
    many = {f"p{at:03}": at for at in range(250)}
    tree = {"fit": {"steps": 3, "ema": None}, "losses": [{"name": "a"}], "widths": [1, 2]}
    tracking.log_params(run_id, {"teach": tree, "many": many, "long": "x" * 9000})
    found = tracking.client.get_run(run_id).data.params
    assert found["teach.fit.steps"] == "3"
    assert found["teach.fit.ema"] == "None"
    assert found["teach.losses.0.name"] == "a"
    assert found["teach.widths"] == "[1, 2]"
    assert found["many.p249"] == "249"
    assert set(found["long"]) == {"x"}


def test_metrics_hang_on_run_model_and_data(bench, toy):
    ref = toy.make(bench)
    figures = {"test_accuracy": 0.5}
    bench.tracking.log_metrics(ref.run_id, figures, step=7, model=ref, data=bench.run.data)
    model = bench.tracking.client.get_logged_model(ref.model_id)
    (metric,) = [metric for metric in model.metrics if metric.key == "test_accuracy"]
    assert (metric.value, metric.step) == (0.5, 7)
    assert (metric.dataset_name, metric.dataset_digest) == ("prepared", "prepared.dir")


def test_a_run_names_its_data(bench, toy):
    run = bench.tracking.client.get_run(toy.make(bench).run_id)
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.digest == bench.run.data.prepared
    assert bench.run.data.manifest in used.dataset.source
