"""What a collection asks of a project before it looks."""

import yaml

from flows.collect import collector
from tasks.collect import GcParams
from tasks.pretrain import pretrain
from tasks.settings import Settings


def point_at(root, data):
    (root / "data.dvc").write_text(yaml.safe_dump({"outs": [{"md5": data.raw, "path": "data"}]}))
    outs = [{"md5": data.prepared, "path": "prepared"}]
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": {"prepare": {"outs": outs}}}))


def test_what_a_retraining_would_reuse_is_kept(bench):
    settings = Settings()
    assert collector(settings, bench.params).reused == ()  # nothing was prepared by DVC
    point_at(bench.root, bench.run.data)
    assert collector(settings, bench.params).reused == ()
    made = pretrain._run(bench.run, bench.params.pretrain)
    found = collector(settings, bench.params.model_copy(update={"gc": GcParams(keep_last=7)}))
    assert found.reused == (made,)
    assert (found.project, found.params.keep_last) == ("digits", 7)
    changed = bench.params.pretrain.model_copy(update={"warm_start": True})
    other = bench.params.model_copy(update={"pretrain": changed})
    assert collector(settings, other).reused == ()
