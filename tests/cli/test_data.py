"""``medlight data``: the store of a study, and public data sets from a loopback server."""

from __future__ import annotations

import hashlib
import http.server
import json
import tarfile
import threading
from functools import partial

import pytest
import yaml

from medlight.cli import download
from medlight.cli.main import main
from medlight.scans import Volume, read, write_nifti
from tests.data import fake, fake_dicom


@pytest.fixture
def study(workdir):
    fake.folders(workdir / "scans", 5, (14, 15, 12))
    config = {
        "study": "fake",
        "data": {
            "class_path": "medlight.data.ScanDataModule",
            "init_args": {
                "source": {
                    "class_path": "medlight.prepare.ImageFolders",
                    "init_args": {"images": "scans/images", "labels": "scans/labels", "label_names": {1: "a", 2: "b"}},
                },
                "split": {"class_path": "medlight.prepare.RandomSplit", "init_args": {"val": 0.4}},
                "patch": {"class_path": "medlight.data.Patch", "init_args": {"size": [8, 8, 8]}},
            },
        },
    }
    (workdir / "fit.yaml").write_text(yaml.safe_dump(config))
    return workdir


def prepare(capsys, *more):
    """Run the command; returns the exit code, what it said, and what it wrote as JSON."""
    code = main(["data", "prepare", "-c", "fit.yaml", "--json", "found.json", *more])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_prepare_says_what_is_there(study, capsys):
    code, said = prepare(capsys)
    found = json.loads((study / "found.json").read_text())
    assert code == 0
    assert found["cases"] == {"train": 3, "val": 2, "test": 0}
    assert (found["computed"], found["reused"]) == (5, 0)
    assert found["labels"] == {"0": "background", "1": "a", "2": "b"}
    assert found["shape"] == [[14, 16], [15, 17], [12, 14]]
    assert found["store"] == str(study / "mlruns" / "store")
    for text in ("3 train, 2 val", "0 background, 1 a, 2 b", "14-16 x 15-17 x 12-14", "1 x 1 x 1 mm", "5 prepared now"):
        assert text in said
    _, said = prepare(capsys)
    assert "(0 prepared now, 5 reused)" in said


def test_rare_labels_and_empty_label_maps_are_remarked_on(study, capsys):
    config = yaml.safe_load((study / "fit.yaml").read_text())
    del config["data"]["init_args"]["source"]["init_args"]["label_names"]
    (study / "fit.yaml").write_text(yaml.safe_dump(config))
    files = sorted((study / "scans" / "labels").iterdir())
    odd, empty = read(files[0]), read(files[1])
    odd.array[0, :3, :3, :3] = 77
    write_nifti(odd, files[0])
    write_nifti(Volume(empty.array * 0, empty.affine), files[1])
    code, said = prepare(capsys)
    assert code == 0
    assert "0 background (alone in 1 of 5 cases), 1 label 1, 2 label 2, 77 label 77 (in 1 of 5 cases)" in said
    assert json.loads((study / "found.json").read_text())["cases_with"] == {"0": 1, "1": 4, "2": 4, "77": 1}


def test_prepare_takes_overrides(study, capsys):
    code, _ = prepare(capsys, "--data.preparation.class_path=medlight.prepare.Preparation")
    assert code == 0
    config = yaml.safe_load((study / "fit.yaml").read_text())
    config["data"]["init_args"]["preparation"] = {"class_path": "medlight.prepare.Preparation"}
    (study / "fit.yaml").write_text(yaml.safe_dump(config))
    code, _ = prepare(capsys, "--data.preparation.spacing=[2,2,2]", "--data.store_dir", "elsewhere", "--workers", "1")
    found = json.loads((study / "found.json").read_text())
    assert code == 0
    assert found["spacing"] == [[2, 2]] * 3
    assert found["store"] == str(study / "elsewhere")


def test_bad_cases(study, capsys):
    fake.spoil(study / "scans", "case_01", "no_label")
    fake.spoil(study / "scans", "case_03", "nan")
    code, said = prepare(capsys)
    assert code == 1
    assert "scans/images/case_01.nii.gz: an image with no label" in said
    assert said.count("\n") == 1
    code, said = prepare(capsys, "--on-bad-case", "skip")
    found = json.loads((study / "found.json").read_text())
    assert code == 0
    assert [bad["id"] for bad in found["bad"]] == ["case_01", "case_03"]
    assert "case_03.nii.gz: 1 voxels are NaN" in said


@pytest.mark.parametrize("preparation", [None, {"spacing": [1.5, 1.5, 2.0]}, {"on": {"gap": "error"}}])
def test_series_are_mended_where_asked_for(study, capsys, preparation):
    grid = fake_dicom.Grid(shape=(14, 15, 12))
    for number in range(3):
        made = fake_dicom.series(grid, series=f"{number}")
        made = fake_dicom.without(made, 4) if number == 1 else made
        fake_dicom.write(made, study / "scans" / "images" / f"Doe^Jane {number}")
    config = yaml.safe_load((study / "fit.yaml").read_text())
    config["data"]["init_args"]["source"]["init_args"]["unlabelled"] = True
    if preparation:
        config["data"]["init_args"]["preparation"] = preparation
    (study / "fit.yaml").write_text(yaml.safe_dump(config).replace("'on'", "on"))
    code, said = prepare(capsys)
    assert code == 1
    assert "gap" in said
    code, said = prepare(capsys, "--on", "gap=interpolate")
    assert code == 0
    assert said.count("mended    case-") == 1
    ((name, notes),) = json.loads((study / "found.json").read_text())["mended"].items()
    assert name.startswith("case-")
    assert len(notes) == 1
    assert "Doe" not in said
    assert prepare(capsys, "--on", "gap=fill")[0] == 2
    assert prepare(capsys, "--on", "gaps=split")[0] == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--data.sorce.images=x"], "sorce"),
        (["--data.batch_sise=4"], "did you mean 'batch_size'"),
        (["--data.batch_size=four"], "batch_size"),
        (["--data.source.images=scans/imgaes"], "did you mean 'images'"),
        (["--data.split.class_path=medlight.prepare.RandomSplt"], "did you mean 'RandomSplit'"),
        (["--data.batch_size"], "needs a value"),
        (["stray"], "stray: not understood"),
    ],
)
def test_wrong_calls_are_refused_in_one_line(study, capsys, more, said):
    code, text = prepare(capsys, *more)
    assert code == 2
    assert said in text
    assert text.count("\n") == 1


def test_a_file_without_data(study, capsys):
    (study / "fit.yaml").write_text("study: x\n")
    assert prepare(capsys)[0] == 2
    assert main(["data", "prepare", "-c", "fti.yaml"]) == 2
    assert "did you mean 'fit.yaml'" in capsys.readouterr().err


# ---- download


class _Handler(http.server.SimpleHTTPRequestHandler):
    cut = False

    def log_message(self, *_args):
        pass

    def copyfile(self, source, outputfile):
        outputfile.write(source.read(200)) if self.cut else super().copyfile(source, outputfile)


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def pictures(server, monkeypatch):
    """A MedMNIST file on the server whose digest is the official one."""
    path = fake.medmnist(server[0] / "breastmnist.npz")
    monkeypatch.setitem(download.MEDMNIST, "breastmnist", md5(path))
    return path


@pytest.fixture
def task(server, tmp_path, monkeypatch):
    """An archive of a Decathlon task on the server whose digest is the official one."""
    from monai.apps.datasets import DecathlonDataset

    root = fake.decathlon(tmp_path / "made" / "Task04_Hippocampus", 2, 1, shape=(8, 8, 8))
    path = server[0] / "Task04_Hippocampus.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(root, root.name)
    monkeypatch.setitem(DecathlonDataset.md5, "Task04_Hippocampus", md5(path))
    return path


def test_download_a_file(server, pictures, workdir, capsys):
    for source in (server[1], server[1] + "breastmnist.npz", str(pictures), str(pictures.parent)):
        out = workdir / hashlib.sha1(source.encode()).hexdigest()
        assert main(["data", "download", "breastmnist", str(out), "--from", source]) == 0
        assert capsys.readouterr().out == f"{out / 'breastmnist.npz'}\n"
        assert (out / "breastmnist.npz").read_bytes() == pictures.read_bytes()
        assert [path.name for path in out.iterdir()] == ["breastmnist.npz"]
        # what is there already is checked, not fetched again
        assert main(["data", "download", "breastmnist", str(out), "--from", "http://127.0.0.1:1/"]) == 0
        capsys.readouterr()


def test_download_an_archive(server, task, workdir, capsys):
    from medlight.prepare import Decathlon

    for number, source in enumerate((server[1], str(task))):
        out = workdir / str(number)
        assert main(["data", "download", "Task04_Hippocampus", str(out), "--from", source, "--json", "-"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["path"] == str(out / "Task04_Hippocampus")
        assert len(Decathlon(str(out / "Task04_Hippocampus")).cases().cases) == 2
        assert [path.name for path in out.iterdir()] == ["Task04_Hippocampus"]


@pytest.mark.parametrize("name", ["breastmnist", "Task04_Hippocampus"])
def test_a_wrong_digest_leaves_nothing(server, pictures, task, workdir, capsys, name):
    file = pictures if name == "breastmnist" else task
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    for source in (server[1], str(file)):
        assert main(["data", "download", name, "out", "--from", source]) == 1
        said = capsys.readouterr()
        assert "md5" in said.err
        assert said.err.count("\n") == 1
        assert said.out == ""
        assert not list(workdir.glob("out/*"))


def test_a_broken_connection_leaves_nothing(server, pictures, workdir, capsys, monkeypatch):
    monkeypatch.setattr(_Handler, "cut", True)
    for source in (server[1], "http://127.0.0.1:1/", server[1] + "absent.npz"):
        assert main(["data", "download", "breastmnist", "out", "--from", source]) == 1
        assert "download failed" in capsys.readouterr().err
        assert not list(workdir.glob("out/*"))


def test_a_file_that_is_there_with_another_content(pictures, workdir, capsys):
    (workdir / "out").mkdir()
    (workdir / "out" / "breastmnist.npz").write_bytes(b"mine")
    assert main(["data", "download", "breastmnist", "out", "--from", str(pictures)]) == 1
    assert (workdir / "out" / "breastmnist.npz").read_bytes() == b"mine"
    assert "its md5 is not" in capsys.readouterr().err


def test_archives_that_reach_out_are_refused(server, task, workdir, monkeypatch, capsys):
    from monai.apps.datasets import DecathlonDataset

    with tarfile.open(task, "w") as archive:
        archive.add(__file__, "../../evil.py")
    monkeypatch.setitem(DecathlonDataset.md5, "Task04_Hippocampus", md5(task))
    assert main(["data", "download", "Task04_Hippocampus", "out", "--from", str(task)]) == 1
    assert not list(workdir.rglob("evil.py"))
    assert not list(workdir.glob("out/*"))
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["brestmnist"], "did you mean 'breastmnist'"),
        (["Task04_Hipocampus"], "did you mean 'Task04_Hippocampus'"),
        (["breastmnist", "out", "--from", "absent.npz"], "no file absent.npz"),
        (["breastmnist", "--form", "x"], "form"),
    ],
)
def test_wrong_downloads(workdir, capsys, arguments, said):
    assert main(["data", "download", *arguments]) == 2
    text = capsys.readouterr().err
    assert said in text
    assert text.count("\n") == 1


def test_names_and_digests():
    from monai.apps.datasets import DecathlonDataset

    assert tuple(DecathlonDataset.md5) == download.DECATHLON
    for name in (*download.DECATHLON, *download.MEDMNIST):
        dataset = download.find(name)
        assert len(dataset.md5) == 32
        assert dataset.url.startswith("https://")
        assert name in download.find(name).url


def test_the_real_breastmnist(data_root, workdir):
    source = data_root / "medmnist" / "breastmnist.npz"
    assert main(["data", "download", "breastmnist", "out", "--from", str(source)]) == 0
    # PneumoniaMNIST here was put together anew: its digest is not the official one
    assert main(["data", "download", "pneumoniamnist", "out", "--from", str(source.parent)]) == 1
