import json
from types import SimpleNamespace

import pytest

from rayferry.job import nodes, storage
from rayferry.job.earlier import Earlier
from rayferry.job.errors import EXIT_PASSING, JobError, NodesError
from rayferry.job.layout import Layout
from rayferry.job.telling import masked


def test_an_attempt_waits_for_the_nodes_that_the_run_had(make_spec, monkeypatch, capsys, tmp_path):
    plans = [JobError("no node has a GPU"), JobError("no node has a GPU"), SimpleNamespace(note="")]
    asked = []

    def plan_here(spec):
        asked.append(spec.resources.device)
        plan = plans.pop(0)
        if isinstance(plan, JobError):
            raise plan
        return plan

    monkeypatch.setattr(nodes, "plan_here", plan_here)
    monkeypatch.setattr(nodes, "_POLL_S", 0.01)
    spec = make_spec(output={"uri": f"{tmp_path}/out/"})
    layout = Layout(spec.output.uri)
    nodes.place(spec, layout, {"device": "gpu"}, Earlier(resume=True))
    assert asked == ["gpu"] * 3
    assert capsys.readouterr().out.count("no node has a GPU") == 1
    storage.write_bytes(layout.spec_uri, json.dumps({"replicas": 1}).encode())
    for before, earlier in ((None, Earlier()), ({"device": "cpu"}, Earlier(resume=True))):
        plans[:] = [JobError("4 replicas need more nodes")]
        with pytest.raises(JobError, match="4 replicas"):  # at once
            nodes.place(make_spec(replicas=4), layout, before, earlier)
    plans[:] = [JobError("no node has a GPU")]
    monkeypatch.setattr(nodes, "_COME_BACK_S", -1)
    with pytest.raises(NodesError) as raised:
        nodes._wait_for_nodes(make_spec())
    assert raised.value.exit_code == EXIT_PASSING


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"engine": {"max_num_seqs": 8}}, True),
        ({"batch_size": 8}, True),
        ({"engine": {"tensor_parallel_size": 2}}, False),
        ({"resources": {"accelerator_type": "A100"}}, False),
        ({"replicas": 4}, False),
    ],
    ids=str,
)
def test_who_asks_for_nodes_that_the_run_did_not_have_is_told_at_once(make_spec, tmp_path, changes, same):
    layout = Layout(str(tmp_path))
    storage.write_bytes(layout.spec_uri, json.dumps(masked(make_spec())).encode())
    assert nodes._asks_for_the_same(make_spec(**changes), layout) is same
