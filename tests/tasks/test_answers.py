import numpy as np
import onnxruntime
import pytest
from scipy.special import softmax

from tasks import estimators
from tasks.answers import asking
from tasks.estimators.logistic_regression import LogisticRegression
from tasks.exporters import MODEL_FILE
from tasks.keep import keep_classifier
from tasks.networks.convnet import ConvNet


@pytest.fixture(scope="module")
def network(tmp_path_factory, rows, build, convnet_spec):
    """Folder of a stored network for two classes."""
    folder = tmp_path_factory.mktemp("network")
    spec = convnet_spec.model_copy(update={"network": ConvNet(widths=(8, 8)), "outputs": 2})
    keep_classifier(folder, spec, build(spec), rows)
    return folder


@pytest.fixture(scope="module")
def estimator(tmp_path_factory, rows):
    """Folder of a stored estimator, and its scikit-learn model."""
    folder = tmp_path_factory.mktemp("estimator")
    method = LogisticRegression()
    fitted = method.fit(rows.train, seed=0)
    estimators.save(folder, method, fitted)
    return folder, fitted.model


def test_a_network_is_asked_as_the_edge_asks_it(rows, network):
    test = rows.open_test()
    found = asking(rows.modality, network)(test)
    inputs = test.inputs.transpose(0, 3, 1, 2).astype(np.float32) / 255
    session = onnxruntime.InferenceSession(network / MODEL_FILE)
    (logits,) = session.run(None, {session.get_inputs()[0].name: inputs})
    np.testing.assert_allclose(found, softmax(logits, axis=1), atol=1e-5)
    assert len(np.unique(found[:, 0].round(4))) > 1


def test_an_estimator_says_what_scikit_learn_does(rows, estimator):
    folder, model = estimator
    test = rows.open_test()
    found = asking(rows.modality, folder)(test)
    flat = test.inputs.reshape(len(test), -1).astype(np.float32) / 255
    np.testing.assert_allclose(found, model.predict_proba(flat), atol=1e-4)
    assert (found.argmax(1) == test.labels).mean() > 0.9


@pytest.mark.parametrize("which", ["network", "estimator"])
def test_answers_are_probabilities_of_rows_each_for_itself(rows, network, estimator, which):
    folder = network if which == "network" else estimator[0]
    test = rows.open_test()
    ask = asking(rows.modality, folder)
    found = ask(test)
    assert found.shape == (len(test), 2)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(ask(test.first()), found[:1], atol=1e-5)
    hidden = ask(rows.train)
    assert hidden.shape == (len(rows.train), 2)


def test_a_class_that_an_estimator_never_saw_is_all_but_impossible(rows, part, tmp_path):
    known = part(rows.train.labelled.inputs, rows.train.labelled.labels, classes=3)
    method = LogisticRegression()
    estimators.save(tmp_path, method, method.fit(known, seed=0))
    found = asking(rows.modality, tmp_path)(known)
    assert found.shape == (len(known), 3)
    assert found[:, 2].max() < 1e-5
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
