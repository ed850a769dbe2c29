"""Sources in object storage: an S3-compatible server."""

from __future__ import annotations

import pytest
from pyarrow.fs import FileSelector, FileSystem, copy_files

from eagleray.pipelines.files import Files
from eagleray.pipelines.reading import CorpusReader
from eagleray.pipelines.source import content_digest
from eagleray.pipelines.sources.tuxpaint import SOURCE, TuxpaintSpec
from eagleray.workflows.errors import EaglerayError
from eagleray.workflows.filesystem import open_filesystem


@pytest.fixture
def bucket(s3_uri, source_stamps):
    """The 32 records in a bucket."""
    uri = s3_uri()
    filesystem, path = FileSystem.from_uri(uri)
    copy_files(str(source_stamps.folder), path, destination_filesystem=filesystem)
    return uri


def test_files_in_a_bucket_are_listed_and_read_like_those_on_disk(bucket, source_stamps, tmp_path):
    there, here = Files(bucket, tmp_path), Files(str(source_stamps.folder), tmp_path)
    assert [(one.path, one.size_bytes) for one in there.entries.values()] == [
        (one.path, one.size_bytes) for one in here.entries.values()
    ]
    for path in list(here.entries)[:5]:
        assert there.read(path) == here.read(path)
        assert there.read(path, 2, 3) == here.read(path, 2, 3)
    assert there.digest() == Files(bucket, tmp_path).digest()


def test_a_corpus_from_a_bucket_has_the_records_of_one_from_disk(bucket, build, corpus, source_stamps):
    spec = source_stamps.spec()
    source = spec.source.model_copy(update={"path": bucket})
    built = build(spec.model_copy(update={"source": source}))
    for split in ("train", "val", "test"):
        here, there = (CorpusReader(one.folder, split) for one in (corpus, built))
        columns = ["id", "group", "captions", "tokens", "image", "speech"]
        rows = range(len(here))
        import numpy as np

        assert here.table(np.array(rows, np.int64), columns).equals(
            there.table(np.array(rows, np.int64), columns)
        )


def test_a_changed_object_is_another_source(bucket, tmp_path):
    spec = TuxpaintSpec(path=bucket, digest=None)
    before = content_digest(SOURCE, spec, tmp_path)
    filesystem, path = FileSystem.from_uri(bucket)
    with filesystem.open_output_stream(f"{path}/things/new/1.png") as stream:
        stream.write(b"new")
    assert content_digest(SOURCE, spec, tmp_path) != before


def test_what_cannot_be_reached_is_one_error_without_keys(s3_uri, tmp_path):
    uri = s3_uri().replace("artifacts", "no-such-bucket")
    with pytest.raises(EaglerayError) as error:
        _ = Files(uri, tmp_path).entries
    assert "no-such-bucket" in str(error.value)
    assert "s3cr3t" not in str(error.value)


def test_an_unknown_scheme_says_so(tmp_path):
    with pytest.raises(EaglerayError, match="the source can't be opened") as error:
        _ = Files("zip9://bucket/x", tmp_path).entries
    assert "s3://BUCKET/PREFIX" in error.value.remedy


def test_a_bucket_of_gcs_that_can_not_be_reached_is_given_up_on(monkeypatch):
    monkeypatch.setattr("eagleray.workflows.filesystem.GCS_PATIENCE_S", 1)
    place = "gs://anonymous@some-bucket/x?scheme=http&endpoint_override=127.0.0.1:1"
    filesystem, root = open_filesystem(place)
    assert root == "some-bucket/x"
    with pytest.raises(OSError, match="Retry policy exhausted"):
        filesystem.get_file_info(FileSelector(root))
