"""The four categories of the OCI distribution specification 1.1: pull, push, content discovery, content management."""

import json

import pytest

from model_formats.core.types import digest_of
from model_formats.package.oci import EMPTY_CONFIG, INDEX, MANIFEST

BLOB = b"weights" * 1000
NAME = "/v2/team/digits"


def push_blob(client, data=BLOB, name=NAME):
    where = client.post(f"{name}/blobs/uploads/").headers["Location"]
    answer = client.put(where, params={"digest": digest_of(data)}, content=data)
    assert answer.status_code == 201, answer.text
    return digest_of(data)


def manifest_of(*blobs, subject=None, artifact_type="application/vnd.example"):
    page = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": artifact_type,
        "config": {"mediaType": EMPTY_CONFIG, "digest": digest_of(b"{}"), "size": 2},
        "layers": [{"mediaType": "application/octet-stream", "digest": digest_of(b), "size": len(b)} for b in blobs],
    }
    if subject:
        page["subject"] = {"mediaType": MANIFEST, "digest": subject, "size": 2}
    return json.dumps(page).encode()


def push_manifest(client, data, reference, media_type=MANIFEST, name=NAME):
    return client.put(f"{name}/manifests/{reference}", content=data, headers={"Content-Type": media_type})


@pytest.fixture
def pushed(client):
    push_blob(client)
    push_blob(client, b"{}")
    data = manifest_of(BLOB)
    assert push_manifest(client, data, "v1").status_code == 201
    return digest_of(data)


def error_of(answer):
    return answer.json()["errors"][0]["code"]


def test_the_version_check(client):
    assert client.get("/v2/").status_code == 200


def test_a_blob_comes_back_whole_and_by_range(client):
    digest = push_blob(client)
    answer = client.get(f"{NAME}/blobs/{digest}")
    assert answer.content == BLOB
    assert answer.headers["Docker-Content-Digest"] == digest
    head = client.head(f"{NAME}/blobs/{digest}")
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(BLOB)))
    part = client.get(f"{NAME}/blobs/{digest}", headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, BLOB[100:200])
    assert client.get(f"{NAME}/blobs/{digest}", headers={"Range": "bytes=9999999-"}).status_code == 416


def test_a_range_goes_on_only_with_the_same_blob(client):
    digest = push_blob(client)
    etag = client.head(f"{NAME}/blobs/{digest}").headers["ETag"]
    same = client.get(f"{NAME}/blobs/{digest}", headers={"Range": "bytes=6990-", "If-Range": etag})
    other = client.get(f"{NAME}/blobs/{digest}", headers={"Range": "bytes=6990-", "If-Range": '"x"'})
    assert (same.status_code, other.status_code) == (206, 200)


def test_a_blob_in_one_post(client):
    answer = client.post(f"{NAME}/blobs/uploads/", params={"digest": digest_of(BLOB)}, content=BLOB)
    assert answer.status_code == 201
    assert client.get(answer.headers["Location"]).content == BLOB


def test_a_blob_in_chunks_with_status_between(client):
    where = client.post(f"{NAME}/blobs/uploads/").headers["Location"]
    first = client.patch(where, content=BLOB[:1000], headers={"Content-Range": "0-999"})
    assert (first.status_code, first.headers["Range"]) == (202, "0-999")
    status = client.get(first.headers["Location"])
    assert (status.status_code, status.headers["Range"]) == (204, "0-999")
    second = client.patch(where, content=BLOB[1000:5000], headers={"Content-Range": "1000-4999"})
    assert second.status_code == 202
    last = client.put(
        where, params={"digest": digest_of(BLOB)}, content=BLOB[5000:], headers={"Content-Range": f"5000-{len(BLOB) - 1}"}
    )
    assert last.status_code == 201
    assert client.get(f"{NAME}/blobs/{digest_of(BLOB)}").content == BLOB


def test_a_chunk_out_of_order_is_told_where_to_go_on(client):
    where = client.post(f"{NAME}/blobs/uploads/").headers["Location"]
    client.patch(where, content=BLOB[:1000], headers={"Content-Range": "0-999"})
    answer = client.patch(where, content=BLOB[2000:3000], headers={"Content-Range": "2000-2999"})
    assert (answer.status_code, answer.headers["Range"]) == (416, "0-999")


def test_a_wrong_digest_keeps_nothing(client, store):
    where = client.post(f"{NAME}/blobs/uploads/").headers["Location"]
    answer = client.put(where, params={"digest": digest_of(b"other")}, content=BLOB)
    assert (answer.status_code, error_of(answer)) == (400, "DIGEST_INVALID")
    assert client.get(where).status_code == 404
    assert not list((store.folder / "uploads").iterdir())
    assert not store.has(digest_of(BLOB))


def test_an_upload_can_be_cancelled(client):
    where = client.post(f"{NAME}/blobs/uploads/").headers["Location"]
    assert client.delete(where).status_code == 204
    answer = client.get(where)
    assert (answer.status_code, error_of(answer)) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_a_blob_is_mounted_from_another_repository(client):
    digest = push_blob(client)
    answer = client.post("/v2/other/blobs/uploads/", params={"mount": digest, "from": "team/digits"})
    assert answer.status_code == 201
    assert client.get(f"/v2/other/blobs/{digest}").content == BLOB
    unknown = client.post("/v2/other/blobs/uploads/", params={"mount": digest_of(b"no"), "from": "team/digits"})
    assert unknown.status_code == 202


def test_a_repository_serves_only_its_own_blobs(client):
    digest = push_blob(client)
    answer = client.get(f"/v2/other/blobs/{digest}")
    assert (answer.status_code, error_of(answer)) == (404, "BLOB_UNKNOWN")


def test_a_manifest_by_tag_and_by_digest(client, pushed):
    for reference in ("v1", pushed):
        answer = client.get(f"{NAME}/manifests/{reference}")
        assert digest_of(answer.content) == pushed
        assert answer.headers["Content-Type"] == MANIFEST
        assert answer.headers["Docker-Content-Digest"] == pushed
        assert client.head(f"{NAME}/manifests/{reference}").status_code == 200
    missing = client.get(f"{NAME}/manifests/v2")
    assert (missing.status_code, error_of(missing)) == (404, "MANIFEST_UNKNOWN")


def test_a_manifest_needs_its_blobs_first(client):
    push_blob(client, b"{}")
    answer = push_manifest(client, manifest_of(b"never pushed"), "v1")
    assert (answer.status_code, error_of(answer)) == (404, "MANIFEST_BLOB_UNKNOWN")


def test_an_index_needs_its_manifests_first(client, pushed):
    entry = {"mediaType": MANIFEST, "digest": pushed, "size": len(client.get(f"{NAME}/manifests/v1").content)}
    good = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode()
    bad = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [{**entry, "digest": digest_of(b"no")}]}).encode()
    assert push_manifest(client, good, "both", INDEX).status_code == 201
    assert push_manifest(client, bad, "bad", INDEX).status_code == 404


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (b"{", MANIFEST),
        (b"{}", MANIFEST),
        (b"{}", "application/vnd.docker.distribution.manifest.v2+json"),
        (b" " * (5 << 20), MANIFEST),
    ],
)
def test_what_is_no_manifest_is_refused(client, data, media_type):
    assert push_manifest(client, data, "v1", media_type).status_code == 400


def test_a_manifest_pushed_under_another_digest_is_refused(client, pushed):
    answer = push_manifest(client, manifest_of(BLOB), digest_of(b"other"))
    assert (answer.status_code, error_of(answer)) == (400, "DIGEST_INVALID")


def test_tags_come_sorted_and_in_pages(client, pushed):
    for tag in ("c", "a", "b"):
        push_manifest(client, manifest_of(BLOB), tag)
    assert client.get(f"{NAME}/tags/list").json()["tags"] == ["a", "b", "c", "v1"]
    page = client.get(f"{NAME}/tags/list", params={"n": 2})
    assert page.json()["tags"] == ["a", "b"]
    following = page.headers["Link"].partition(">")[0].removeprefix("<")
    assert client.get(following).json()["tags"] == ["c", "v1"]
    assert client.get(f"{NAME}/tags/list", params={"n": 0}).json()["tags"] == []
    assert client.get("/v2/nobody/tags/list").status_code == 404


def test_referrers_are_listed_by_type_even_before_their_subject(client, pushed):
    later = digest_of(manifest_of(BLOB, BLOB))
    answer = push_manifest(client, manifest_of(BLOB, subject=later, artifact_type="application/vnd.sig"), "x")
    assert answer.headers["OCI-Subject"] == later
    push_manifest(client, manifest_of(subject=later, artifact_type="application/vnd.report"), "y")
    listed = client.get(f"{NAME}/referrers/{later}")
    assert listed.headers["Content-Type"] == INDEX
    assert {m["artifactType"] for m in listed.json()["manifests"]} == {"application/vnd.sig", "application/vnd.report"}
    some = client.get(f"{NAME}/referrers/{later}", params={"artifactType": "application/vnd.sig"})
    assert some.headers["OCI-Filters-Applied"] == "artifactType"
    assert [m["artifactType"] for m in some.json()["manifests"]] == ["application/vnd.sig"]


def test_a_subject_that_nobody_knows_has_no_referrers(client):
    answer = client.get(f"{NAME}/referrers/{digest_of(b'nobody')}")
    assert (answer.status_code, answer.json()["manifests"]) == (200, [])


def test_deleting_a_tag_keeps_the_manifest_and_deleting_the_manifest_takes_its_tags(client, pushed):
    push_manifest(client, manifest_of(BLOB), "v2")
    assert client.delete(f"{NAME}/manifests/v2").status_code == 202
    assert client.get(f"{NAME}/manifests/{pushed}").status_code == 200
    assert client.delete(f"{NAME}/manifests/{pushed}").status_code == 202
    assert client.get(f"{NAME}/manifests/v1").status_code == 404
    assert client.delete(f"{NAME}/manifests/{pushed}").status_code == 404


def test_a_deleted_referrer_is_listed_no_more(client, pushed):
    data = manifest_of(subject=pushed)
    push_manifest(client, data, "sig")
    client.delete(f"{NAME}/manifests/{digest_of(data)}")
    assert client.get(f"{NAME}/referrers/{pushed}").json()["manifests"] == []


@pytest.mark.parametrize("name", ["UPPER", "a/%2e%2e/b", "a//b", "-a", "a_", "x" * 300])
def test_strange_names_are_refused(client, name):
    assert client.post(f"/v2/{name}/blobs/uploads/").status_code in (400, 404)


@pytest.mark.parametrize("digest", ["sha256:00", "sha512:" + "0" * 128, "sha256:" + "G" * 64, "..%2f..%2fetc"])
def test_strange_digests_are_refused(client, digest):
    assert client.get(f"{NAME}/blobs/{digest}").status_code in (400, 404)


def test_strange_tags_are_refused(client, pushed):
    assert push_manifest(client, manifest_of(BLOB), ".hidden").status_code == 400
