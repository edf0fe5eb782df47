"""HTTP, asked by curl."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from medlight.deploy.runtime import Predictor
from medlight.deploy.serve.upload import Limits
from medlight.scans import Volume, read, write_nifti
from medlight.scans.dicom_seg import read_seg
from tests.data import fake, fake_dicom
from tests.deploy.serve.served import GRID, curl, http, tiny, until

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl: apt-get install curl")
TOKEN = "correct-horse-battery"
LIMITS = Limits(upload=4 << 20, unpacked=8 << 20)


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor(bundle, threads=1)


@pytest.fixture
def url(predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that leaves no file behind."""
    own = tmp_path / "temporary"
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    with http(predictor, limits=LIMITS) as (found, turns):
        yield found
        until(lambda: turns.taken == 0)
    assert list(own.iterdir()) == []


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    write_nifti(fake.volume((20, 22, 12), seed=3, spacing=(1.0, 1.1, 2.5))[0], tmp_path / "Doe^Jane.nii.gz")
    return tmp_path / "Doe^Jane.nii.gz"


def as_nifti(body: bytes) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(body))


def zipped(members: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def test_a_label_map_and_its_figures_come_back(url: str, scan: Path, predictor: Predictor) -> None:
    expected = predictor.predict(read(scan)).label
    assert expected is not None
    assert np.count_nonzero(expected.array) > 50
    for words in (["-F", f"file=@{scan}"], ["--data-binary", f"@{scan}"], ["-T", scan, "-X", "POST"]):
        reply = curl(f"{url}/predict", *words)
        assert reply.status == 200, reply.body
        assert reply.headers["content-type"] == "application/gzip"
        image = as_nifti(reply.body)
        np.testing.assert_array_equal(np.asarray(image.dataobj), expected.array[0])
        np.testing.assert_array_equal(image.affine, nib.load(scan).affine)
    labels = curl(f"{url}/predict?format=json", "-F", f"file=@{scan}").json["labels"]
    assert {entry["name"]: entry["voxels"] for entry in labels} == {
        "label 1": np.count_nonzero(expected.array == 1),
        "label 2": np.count_nonzero(expected.array == 2),
    }
    assert labels[1]["ml"] == pytest.approx(labels[1]["voxels"] * 1.0 * 1.1 * 2.5 / 1000, abs=1e-3)


def test_a_zip_of_dicom_becomes_a_segmentation_of_it(url: str, series: Path, tmp_path: Path) -> None:
    archive = fake_dicom.zipped(series, tmp_path / "Doe^Jane.zip")
    reply = curl(f"{url}/predict", "-F", f"file=@{archive}")
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"] == "application/dicom"
    (tmp_path / "seg.dcm").write_bytes(reply.body)
    subprocess.run(["dcmdump", "+P", "ReferencedSOPInstanceUID", tmp_path / "seg.dcm"], check=True, capture_output=True)
    found = read_seg(tmp_path / "seg.dcm")
    assert [segment.label for segment in found.segments] == ["label 1", "label 2"]
    image = as_nifti(curl(f"{url}/predict?format=nifti", "--data-binary", f"@{archive}").body)
    np.testing.assert_allclose(image.affine, fake_dicom.truth(GRID)[1], atol=1e-4)
    assert image.shape == (22, 20, 12)
    counts = {
        e["name"]: e["voxels"] for e in curl(f"{url}/predict?format=json", "-F", f"file=@{archive}").json["labels"]
    }
    assert counts == {segment.label: int(segment.mask.sum()) for segment in found.segments}


def test_a_real_series_that_does_not_fit_is_forced(predictor: Predictor, data_root: Path, tmp_path: Path) -> None:
    folder = data_root / "dicom" / "anatomical" / "001"
    archive = fake_dicom.zipped(folder, tmp_path / "series.zip")
    with http(predictor) as (url, _):
        reply = curl(f"{url}/predict", "-F", f"file=@{archive}")
        assert (reply.status, "trained on 1x1x2.5 mm" in reply.error) == (422, True)
    with http(predictor, force=True) as (url, _):
        reply = curl(f"{url}/predict?format=nifti", "-F", f"file=@{archive}")
        assert reply.status == 200, reply.body
        (warning,) = json.loads(reply.headers["medlight-warnings"])
        assert "trained on 1x1x2.5 mm" in warning
        assert curl(f"{url}/predict?format=json", "-F", f"file=@{archive}").json["warnings"] == [warning]
        assert curl(f"{url}/predict", "-F", f"file=@{archive}").headers["content-type"] == "application/dicom"
    image, truth = as_nifti(reply.body), read(folder)
    assert image.header["descrip"].item() == warning.encode()
    assert image.shape == truth.shape
    np.testing.assert_allclose(image.affine, truth.affine, atol=1e-4)


def test_classes_are_told_in_json(tmp_path: Path) -> None:
    found = tiny(tmp_path / "bundle", task="classification", window=[28, 28], spatial_dims=2, preparation={})
    write_nifti(Volume(np.random.default_rng(0).normal(80, 9, (1, 28, 28, 1)), np.eye(4)), tmp_path / "a.nii.gz")
    with http(Predictor(found, threads=1)) as (url, _):
        chances = curl(f"{url}/predict", "-F", f"file=@{tmp_path / 'a.nii.gz'}").json["probabilities"]
        assert list(chances) == ["label 0", "label 1", "label 2"]
        assert sum(chances.values()) == pytest.approx(1)
        assert curl(f"{url}/predict?format=nifti", "-F", f"file=@{tmp_path / 'a.nii.gz'}").status == 400
        assert curl(f"{url}/info").json["gives"] == ["json"]


def test_several_contrasts_are_fields_of_a_form(tmp_path: Path) -> None:
    names = ["T1", "T2"]
    window = {"class_path": "medlight.prepare.Window", "init_args": {"low": 0.0, "high": 800.0}}
    found = tiny(tmp_path / "bundle", channels=names, normalise=[window, window])
    both = fake.volume((20, 22, 12), seed=3, spacing=(1.0, 1.0, 2.5), channels=2)[0]
    write_nifti(both, tmp_path / "both.nii.gz")
    for channel in range(2):
        write_nifti(Volume(both.array[channel : channel + 1], both.affine), tmp_path / f"{channel}.nii.gz")
    fields = [f"{name}=@{tmp_path}/{channel}.nii.gz" for channel, name in enumerate(names)]
    with http(Predictor(found, threads=1)) as (url, _):
        whole = curl(f"{url}/predict", "--data-binary", f"@{tmp_path / 'both.nii.gz'}")
        apart = curl(f"{url}/predict", "-F", fields[1], "-F", fields[0])
        assert (whole.status, apart.status) == (200, 200), apart.body
        one, other = (np.asarray(as_nifti(reply.body).dataobj) for reply in (whole, apart))
        np.testing.assert_array_equal(one, other)
        wrong = curl(f"{url}/predict", "-F", fields[0], "-F", f"nonsense=@{tmp_path}/1.nii.gz")
        assert wrong.status == 400
        assert all(name in wrong.error for name in names)


def test_several_dicom_contrasts_become_a_segmentation_of_the_first(tmp_path: Path) -> None:
    window = {"class_path": "medlight.prepare.Window", "init_args": {"low": 0.0, "high": 800.0}}
    bundle = tiny(tmp_path / "bundle", channels=["T1", "T2"], normalise=[window, window])
    planes = {name: fake_dicom.series(GRID, channel=n, series=name) for n, name in enumerate(("T1", "T2"))}
    fields = []
    for name, datasets in planes.items():
        archive = fake_dicom.zipped(fake_dicom.write(datasets, tmp_path / name), tmp_path / f"{name}.zip")
        fields = ["-F", f"{name}=@{archive}", *fields]  # the other way round: the bundle says which is the first
    predictor = Predictor(bundle, threads=1)
    expected = predictor.predict({name: read(tmp_path / name) for name in planes}).label
    assert expected is not None
    assert np.count_nonzero(expected.array) > 50
    with http(predictor) as (url, _):
        for query in ("", "?format=dicom-seg"):
            reply = curl(f"{url}/predict{query}", *fields)
            assert reply.status == 200, reply.body
            assert reply.headers["content-type"] == "application/dicom"
            (tmp_path / "seg.dcm").write_bytes(reply.body)
            (referenced,) = pydicom.dcmread(tmp_path / "seg.dcm").ReferencedSeriesSequence
            assert referenced.SeriesInstanceUID == planes["T1"][0].SeriesInstanceUID
            found = {segment.number: int(segment.mask.sum()) for segment in read_seg(tmp_path / "seg.dcm").segments}
            assert found == {value: int((expected.array == value).sum()) for value in (1, 2)}
        assert curl(f"{url}/predict?format=nifti", *fields).headers["content-type"] == "application/gzip"
        write_nifti(read(tmp_path / "T1"), tmp_path / "T1.nii.gz")
        mixed = curl(f"{url}/predict?format=dicom-seg", "-F", f"T1=@{tmp_path / 'T1.nii.gz'}", *fields[:2])
        assert (mixed.status, "T1, whose grid it would have, is none; send its series" in mixed.error) == (400, True)


def test_a_clip_is_never_a_dicom_seg(series: Path, tmp_path: Path) -> None:
    film = tiny(tmp_path / "bundle", preparation={"frames": "clip"})
    archive = fake_dicom.zipped(series, tmp_path / "series.zip")
    with http(Predictor(film, threads=1)) as (url, _):
        reply = curl(f"{url}/predict?format=dicom-seg", "-F", f"file=@{archive}")
        assert (reply.status, "a label map for each frame of a clip" in reply.error) == (400, True)
        assert "format=nifti or json" in reply.error
        assert curl(f"{url}/info").json["gives"] == ["nifti", "json"]


def test_what_the_server_is(url: str, bundle: Path) -> None:
    assert curl(f"{url}/health").json == {"status": "ok"}
    reply = curl(f"{url}/info")
    assert reply.json["task"] == "segmentation"
    assert [label["name"] for label in reply.json["labels"]][1:] == ["label 1", "label 2"]
    assert str(bundle).encode() not in reply.body
    for path, status in (
        ("/", 404),
        ("/predict", 405),
        ("/docs", 404),
        ("/openapi.json", 404),
        ("/../etc/passwd", 404),
    ):
        reply = curl(f"{url}{path}", "--path-as-is")
        assert reply.status == status
        assert reply.error
    assert "server" not in reply.headers


def _climbing(name: str) -> bytes:
    return zipped({name: b"\0" * 128 + b"DICM"})


def _link() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return stream.getvalue()


def _damaged() -> bytes:
    content = bytearray(zipped({"one": np.random.default_rng(0).bytes(5000)}))
    content[1000:1100] = b"\0" * 100
    return bytes(content)


def _overlapping() -> bytes:
    """Members that share their bytes: more comes out than any deflation packs."""
    one = zipped({"0": b"\0" * (4 << 20)})
    start = one.index(b"PK\x01\x02")
    entry, end = one[start : one.index(b"PK\x05\x06")], one.index(b"PK\x05\x06")
    entries = entry * 400
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 400, 400, len(entries), start, 0)
    assert end
    return one[:start] + entries + tail


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"", 400, "empty"),
        (b"garbage" * 99, 415, "no scan"),
        (b"\x1f\x8b garbage", 422, "can't be read as NIfTI"),
        (b"PK\x03\x04garbage", 400, "zip"),
        (b"\0" * 128 + b"DICM" + b"garbage", 422, "the upload"),
        (b"NRRD0004\ndimension: 3\ndata file: /etc/passwd\n\n", 415, "no scan"),
        (b"ObjectType = Image\nElementDataFile = /etc/passwd\n", 415, "no scan"),
        (zipped({"readme.txt": b"hello"}), 422, "holds no DICOM"),
        (_climbing("../../etc/cron.d/x"), 400, "climbs"),
        (_climbing("/etc/x"), 400, "climbs"),
        (_climbing("C:\\x"), 400, "climbs"),
        (_link(), 400, "link"),
        (_overlapping(), 400, "can't all come out"),
        (_damaged(), 400, "a member is damaged"),
        (zipped({"bomb": b"\0" * (9 << 20)}), 413, "holds too much"),
        (zipped({f"{n}": b"\0" * (3 << 20) for n in range(3)}), 413, "holds too much"),
    ],
)
def test_bad_uploads_are_refused(url: str, tmp_path: Path, content: bytes, status: int, said: str) -> None:
    (tmp_path / "bad").write_bytes(content)
    for words in (["--data-binary", f"@{tmp_path / 'bad'}"], ["-F", f"file=@{tmp_path / 'bad'};filename=../../x"]):
        reply = curl(f"{url}/predict", *words)
        assert (reply.status, said in reply.error) == (status, True), reply.body
        assert "/tmp" not in reply.error
        assert str(tmp_path) not in reply.error


def test_what_is_too_big_is_not_taken(url: str, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"\0" * (5 << 20))
    for words in (
        ["--data-binary", f"@{tmp_path / 'big'}"],
        ["-F", f"file=@{tmp_path / 'big'}"],
        ["-F", f"file=@{tmp_path / 'big'}", "-H", "Transfer-Encoding: chunked"],
        ["-T", tmp_path / "big", "-X", "POST", "-H", "Transfer-Encoding: chunked"],
    ):
        reply = curl(f"{url}/predict", *words)
        assert reply.status == 413
        assert "at most 4,194,304 bytes" in reply.error


def test_malformed_forms_are_refused(url: str, scan: Path) -> None:
    form = "Content-Type: multipart/form-data"
    for words, said in (
        (["-F", "note=hello"], "no file"),
        (["-F", f"file=@{scan}", "-F", f"file=@{scan}"], "two have the same"),
        (["-F", f"note={'x' * 2000}"], "too long"),
        (["-H", form, "--data-binary", "x"], "can't be read"),
        (["-H", f"{form}; boundary=x", "--data-binary", "nonsense"], "can't be read"),
        (
            ["-H", f"{form}; boundary=x", "--data-binary", '--x\r\nContent-Disposition: form-data; name="f"; '],
            "cut off",
        ),
        ([*[w for n in range(20) for w in ("-F", f"f{n}=@{scan}")]], "more than 16"),
    ):
        reply = curl(f"{url}/predict", *words)
        assert (reply.status, said in reply.error) == (400, True), (words[-1], reply.body)
    assert curl(f"{url}/predict?format=exe", "-F", f"file=@{scan}").status == 400


def test_scans_that_do_not_fit_are_refused_with_a_reason_and_no_identity(
    url: str, scan: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    two = fake_dicom.series(GRID) + fake_dicom.series(GRID, series="two")
    gap = fake_dicom.without(fake_dicom.series(GRID), 5)
    cut = fake_dicom.write(fake_dicom.series(GRID), tmp_path / "Jane cut")
    file = next(cut.iterdir())
    file.write_bytes(file.read_bytes()[:-99])
    folders = {
        fake_dicom.write(two, tmp_path / "Jane two"): "holds 2 volumes",
        fake_dicom.write(gap, tmp_path / "Jane gap"): "the server's --on gap=",
        fake_dicom.write([fake_dicom.report()], tmp_path / "Jane report"): "",
        cut: "",
    }
    for folder, said in folders.items():
        reply = curl(f"{url}/predict", "-F", f"file=@{fake_dicom.zipped(folder, tmp_path / 'Jane.zip')}")
        assert (reply.status, said in reply.error) == (422, True), reply.body
        assert not any(secret in reply.error for secret in (*fake_dicom.SECRETS, "medlight-", str(tmp_path)))
    write_nifti(Volume(np.zeros((2, 8, 8, 8), np.float32), np.eye(4)), tmp_path / "two.nii.gz")
    reply = curl(f"{url}/predict", "-F", f"file=@{tmp_path / 'two.nii.gz'}")
    assert (reply.status, "2 channels" in reply.error) == (422, True)
    said = capfd.readouterr()
    assert not any(secret in said.out + said.err for secret in fake_dicom.SECRETS)


def test_a_token_is_asked_for(predictor: Predictor, scan: Path) -> None:
    with http(predictor, token=TOKEN) as (url, _):
        for words in (
            [],
            ["-H", "Authorization: Bearer wrong"],
            ["-H", f"Authorization: Basic {TOKEN}"],
            ["-H", f"Authorization: {TOKEN}"],
            ["-H", f"Authorization: Bearer {TOKEN}x"],
            ["-H", "Authorization: Bearer"],
            ["-H", f"Authorization: Bearer {TOKEN}", "-H", "Authorization: Bearer x"],
            ["-H", "Authorization: Bearer \u00e9\u00e9"],
        ):
            reply = curl(f"{url}/predict", *words, "-F", f"file=@{scan}")
            assert reply.status == 401
            assert reply.headers["www-authenticate"] == "Bearer"
            assert "Bearer TOKEN" in reply.error
        assert curl(f"{url}/info").status == 401
        assert curl(f"{url}/health").status == 200
        assert curl(f"{url}/info", "-H", f"Authorization: Bearer {TOKEN}").status == 200
        assert curl(f"{url}/predict", "-H", f"authorization: bearer {TOKEN}", "-F", f"file=@{scan}").status == 200


def test_other_names_and_pages_of_other_sites_are_refused(url: str, predictor: Predictor) -> None:
    port = url.rpartition(":")[2]
    for header in ("Host: evil.example", f"Host: evil.example:{port}", "Host:", "Host: 127.0.0.1.evil.example"):
        assert curl(f"{url}/info", "-H", header).status in (400, 403)
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "file://"):
        assert curl(f"{url}/health", "-H", f"Origin: {origin}").status == 403
    for header in (f"Origin: {url}", f"Host: localhost:{port}", "Host: LOCALHOST", f"Host: [::1]:{port}"):
        assert curl(f"{url}/info", "-H", header).status == 200
    with http(predictor, names=frozenset({"scans.example"})) as (other, _):
        assert curl(f"{other}/info").status == 403
        assert curl(f"{other}/info", "-H", "Host: scans.example").status == 200


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A scan of many windows."""
    array = np.random.default_rng(0).integers(0, 99, (1, 240, 240, 120), np.uint8)
    write_nifti(Volume(array, np.diag([1, 1, 2.5, 1])), tmp_path / "big.nii")
    return tmp_path / "big.nii"


def test_as_many_wait_as_may_and_a_client_that_goes_makes_way(
    predictor: Predictor, big: Path, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "temporary"
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    with http(predictor, waiting=1) as (url, turns):
        words = ["curl", "-sS", "-F", f"file=@{big}", f"{url}/predict?format=json"]
        clients = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
        until(lambda: turns.taken == 2)
        refused = curl(f"{url}/predict", "-F", f"file=@{scan}")
        assert (refused.status, refused.headers["retry-after"]) == (503, "30")
        assert "busy" in refused.error
        assert curl(f"{url}/health").status == 200
        for client in clients:
            client.kill()
            client.wait()
        start = time.monotonic()
        until(lambda: turns.taken == 0)
        assert time.monotonic() - start < 20
        assert list(own.iterdir()) == []
        assert curl(f"{url}/predict", "-F", f"file=@{scan}").status == 200


def test_garbage_waits_for_no_turn(predictor: Predictor, big: Path, tmp_path: Path) -> None:
    with http(predictor) as (url, turns):
        client = subprocess.Popen(["curl", "-sS", "-F", f"file=@{big}", f"{url}/predict"], stdout=subprocess.DEVNULL)
        until(lambda: turns.taken == 1)
        time.sleep(0.5)
        assert curl(f"{url}/predict", "--data-binary", "garbage").status == 415
        assert curl(f"{url}/predict?format=dicom-seg", "-F", f"file=@{big}").status == 400
        assert turns.taken == 1
        assert client.poll() is None
        client.kill()
        client.wait()


def test_the_end_of_the_server_ends_what_runs(
    predictor: Predictor, big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "temporary"
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    with http(predictor) as (url, turns):
        client = subprocess.Popen(["curl", "-sS", "-F", f"file=@{big}", f"{url}/predict"], stdout=subprocess.PIPE)
        until(lambda: turns.taken == 1)
        time.sleep(1)
    out, _ = client.communicate(timeout=30)
    assert b"stopped" in out
    assert list(own.iterdir()) == []
