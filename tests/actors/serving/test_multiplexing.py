"""Bundles beside the live one are opened when they are asked for, few at a time, and none is cut short."""

import asyncio

import httpx
import pytest

from eagleray.actors.serving.autoscaling import ARRIVALS, CAPACITY, mixed
from eagleray.actors.serving.guard import BUNDLE_HEADER
from eagleray.actors.serving.multiplexing import Shelf
from eagleray.actors.serving.releases import Release
from eagleray.actors.serving.spec import ServingOptions
from eagleray.actors.serving.switching import Switch
from eagleray.actors.serving.tokens import TokenFolder, issue
from eagleray.pipelines.bundle import bundle_digest

from .test_releases import variant
from .test_switching import Line

NAMES = ("lungs", "boards", "reports")


class Shelved:
    """A switch over a shelf of lines, and what became of them."""

    def __init__(self, room=2, may_open=True):
        self.opened = []
        self.broken = set()

        async def asks(headers):
            return may_open

        def open_line(release):
            if release.bundle in self.broken:
                raise OSError("no such folder")
            self.opened.append(Line(release.bundle))
            return self.opened[-1]

        self.shelf = Shelf(open_line, room, asks)
        self.switch = Switch(self.shelf)
        self.switch.turn(Line("live"), None, None)

    async def put(self, *names):
        await self.shelf.put({name: Release(bundle=name, folder="/") for name in names})

    async def ask(self, path):
        transport = httpx.ASGITransport(app=self.switch)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.post(path, content=b"hello")

    @property
    def open(self):
        return [line.bundle for line in self.opened if not line.closed]


def run(story, **options):
    async def told():
        shelved = Shelved(**options)
        await shelved.put(*NAMES)
        return await story(shelved)

    return asyncio.run(told())


def test_each_answers_below_its_name_and_is_opened_once():
    async def story(shelved):
        before = (await shelved.ask("/v1/search")).headers[BUNDLE_HEADER], list(shelved.opened)
        answers = await asyncio.gather(*(shelved.ask("/models/lungs/v1/search") for _ in range(5)))
        assert shelved.opened[0].heard[0][0] == "/models/lungs/v1/search"
        return before, {one.headers[BUNDLE_HEADER] for one in answers}, len(shelved.opened)

    assert run(story) == (("live", []), {"lungs"}, 1)


def test_what_was_asked_for_the_longest_ago_goes():
    async def story(shelved):
        for name in ("lungs", "boards", "lungs", "reports", "lungs"):
            assert (await shelved.ask(f"/models/{name}/v1/search")).headers[BUNDLE_HEADER] == name
        listed = (await shelved.ask("/models")).json()["models"]
        assert [name for name, told in listed.items() if told["open"]] == ["lungs", "reports"]
        return shelved.open

    assert run(story) == ["lungs", "reports"]


def test_what_goes_ends_first_what_it_has_begun():
    async def story(shelved):
        await shelved.ask("/models/lungs/healthz")
        shelved.opened[0].let.clear()
        first = asyncio.create_task(shelved.ask("/models/lungs/v1/search"))
        second = asyncio.create_task(shelved.ask("/models/boards/v1/search"))
        await asyncio.sleep(0.2)
        assert len(shelved.opened) == 1  # there is room for one only
        shelved.opened[0].let.set()
        return (await first).status_code, (await second).status_code, shelved.open

    assert run(story, room=1) == (200, 200, ["boards"])


def test_one_that_is_unknown_or_broken_says_so_and_the_others_go_on():
    async def story(shelved):
        shelved.broken.add("boards")
        broken = await shelved.ask("/models/boards/v1/search")
        unknown = await shelved.ask("/models/nothing/v1/embeddings")
        return broken, unknown, (await shelved.ask("/models/lungs/healthz")).status_code

    broken, unknown, well = run(story)
    assert (broken.status_code, broken.json()["code"]) == (503, "not-opened")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown-model")
    assert well == 200


def test_nothing_is_opened_for_whoever_has_no_token():
    async def story(shelved):
        return (await shelved.ask("/models/lungs/v1/search")).json()["code"], shelved.opened

    assert run(story, may_open=False) == ("not-open", [])


def test_what_is_not_listed_any_more_is_let_go():
    async def story(shelved):
        await shelved.ask("/models/lungs/v1/search")
        await shelved.ask("/models/boards/v1/search")
        await shelved.put("boards")
        return shelved.open, (await shelved.ask("/models/lungs/v1/search")).status_code

    assert run(story) == (["boards"], 404)


def test_the_autoscaler_is_told_of_all_by_what_each_takes():
    told = [{ARRIVALS: 2.0, CAPACITY: 10.0}, {ARRIVALS: 6.0, CAPACITY: 60.0}]
    assert mixed(told) == pytest.approx({ARRIVALS: 8.0, CAPACITY: 8 / 0.3})
    assert mixed([{ARRIVALS: 0.0, CAPACITY: 10.0}, {ARRIVALS: 0.0, CAPACITY: 3.0}])[CAPACITY] == 10


def test_a_service_answers_from_bundles_beside_by_openais_client(
    ray_cluster, bundle_folder, tmp_path, free_port
):
    from openai import OpenAI
    from ray import serve

    from eagleray.actors.serving import running

    serve.shutdown()
    other = variant(bundle_folder, tmp_path / "other", "other")
    token, sent = issue("ann")
    TokenFolder(str(tmp_path / "tokens")).add(token)
    options = ServingOptions(
        application="beside", port=free_port, tokens=str(tmp_path / "tokens"), beside={"other": str(other)}
    )
    deployed = running.deploy(bundle_folder, options)
    with httpx.Client(base_url=deployed.url, trust_env=False, timeout=30) as http:
        assert http.get("/models").json()["models"] == {
            "other": {"bundle": bundle_digest(other), "open": False}
        }
        assert http.get("/models/other/healthz").status_code == 401
        client = OpenAI(base_url=f"{deployed.url}/models/other/v1", api_key=sent)
        told = client.embeddings.with_raw_response.create(model="eagleray", input=["a frog"])
        assert told.headers[BUNDLE_HEADER] == bundle_digest(other)
        assert http.get("/models/other/healthz").json()["bundle"] == bundle_digest(other)
        page = http.get("/models/other/openapi.json").json()
        assert page["servers"] == [{"url": "/models/other"}]
    again = running.deploy(bundle_folder, options.model_copy(update={"beside": {}}))
    assert not again.kept
    assert httpx.get(f"{deployed.url}/models/other/healthz", trust_env=False).status_code == 404
    serve.shutdown()
