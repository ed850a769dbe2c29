"""Stage `serve`: what it reserves, what it reports, and that doing it twice is doing it once."""

import json

import httpx
import pytest
from pydantic import ValidationError

from eagleray.actors.stages.serve import ServeSpec, serve
from eagleray.workflows.artifacts import Bundle, Deployment
from eagleray.workflows.spec import RunOptions


def test_the_kind_is_done_for_its_effect():
    assert (serve.name, serve.gives, serve.cached) == ("serve", Deployment, False)
    assert serve.takes == {"bundle": Bundle}


def test_it_reserves_the_first_replicas_besides_its_own_task():
    spec = ServeSpec(
        autoscaling={"min_replicas": 2, "max_replicas": 9}, cpus_per_replica=0.5, run=RunOptions(num_cpus=1)
    )
    assert serve.cpus(spec) == 2


def test_how_it_is_served_is_no_part_of_its_identity():
    fields = ServeSpec.model_fields
    hashed = [n for n, f in fields.items() if not (f.json_schema_extra or {}).get("runtime")]
    assert hashed == ["kind", "inputs"]


def test_it_listens_on_this_machine_only_unless_told():
    assert ServeSpec().host == "127.0.0.1"


def test_fewer_replicas_at_most_than_at_least_is_refused():
    with pytest.raises(ValidationError, match=r"max_replicas \(1\) must be at least min_replicas \(2\)"):
        ServeSpec(autoscaling={"min_replicas": 2, "max_replicas": 1})


def test_serving_twice_keeps_what_runs(ray_cluster, make_context, bundle_folder, free_port):
    from ray import serve as ray_serve

    bundle = Bundle(bundle_folder, "b" * 64, "f", {})
    spec = ServeSpec(port=free_port)
    try:
        context = make_context("first")
        facts = serve.function(context, spec, bundle=bundle)
        again = serve.function(make_context("again"), spec, bundle=bundle)
        health = httpx.get(f"{facts['url']}/healthz", trust_env=False)
    finally:
        ray_serve.shutdown()
    assert (facts["kept"], again["kept"]) == (False, True)
    assert health.headers["x-eagleray-bundle"] == facts["bundle"] == bundle.digest
    assert json.loads((context.output / "deployment.json").read_text()) == facts
    assert facts["answer"]["results"]
    assert facts["command"].startswith(f"curl -s {facts['url']}/v1/search")
