from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from medlight import config
from medlight.errors import UsageError

UNET = {"class_path": "monai.networks.nets.UNet", "init_args": {"channels": [8, 16], "strides": [2]}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("[4, 8]", [4, 8]),
        ("true", True),
        ("null", None),
        ("a b", "a b"),
        ("1.5e3", 1500.0),
        ("10", 10),
        ("-2E5", -2e5),
        ("False", False),
        ("TRUE", True),
        ("on", "on"),
        ("off", "off"),
        ("no", "no"),
        ("Yes", "Yes"),
        ("y", "y"),
        ("{on: {gap: interpolate}}", {"on": {"gap": "interpolate"}}),
    ],
)
def test_values_read_as_people_mean_them(text: str, value: object) -> None:
    assert config.parse_value(text) == value


@given(st.recursive(st.sampled_from(["on", "off", "yes", "no", "true", "n", True, False, None, 3]), st.lists))
def test_what_is_written_to_a_run_is_read_back_alike(value: object) -> None:
    """``yaml.safe_dump`` writes YAML 1.1 and quotes more than 1.2 needs."""
    assert config.parse_value(yaml.safe_dump({"on": value})) == {"on": value}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_survives_its_own_spelling(number: float) -> None:
    assert config.parse_value(repr(number)) == number


def test_paths_skip_init_args() -> None:
    whole = {"model": {"class_path": "a.B", "init_args": {"network": UNET}}}
    assert config.get_path(whole, "model.network.channels") == [8, 16]
    assert config.get_path(whole, "model.init_args.network.init_args.channels") == [8, 16]
    changed = config.set_path(whole, "model.network.channels", [1, 2])
    assert config.get_path(changed, "model.network.channels") == [1, 2]
    assert config.get_path(whole, "model.network.channels") == [8, 16], "the original must stay"


def test_a_path_that_is_not_there_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        config.get_path({"model": UNET}, "model.chanels")


def test_merge_goes_key_by_key_but_another_class_replaces() -> None:
    base = {"model": UNET, "trainer": {"max_epochs": 3, "devices": 1}}
    merged = config.merge(base, {"model": {"class_path": "x.Y"}, "trainer": {"max_epochs": 5}})
    assert merged == {"model": {"class_path": "x.Y"}, "trainer": {"max_epochs": 5, "devices": 1}}
    kept = config.merge(base, {"model": {"init_args": {"strides": [4]}}})
    assert kept["model"]["init_args"] == {"channels": [8, 16], "strides": [4]}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"class_path": "monai.networks.nets.UNeet"}, "did you mean 'UNet'"),
        ({"class_path": "monai.networks.nets.UNet", "init_args": {"chanels": 1}}, "did you mean 'channels'"),
        ({"class_path": "no_such_package.Net"}, "does not import"),
        ({"class_path": "Net"}, "no import path"),
        ({"class_path": "monai.networks.nets.UNet", "init_arg": {}}, "did you mean 'init_args'"),
        ({"class_path": "monai.networks.nets.UNet", "channels": [8]}, "write it below model.network.init_args"),
    ],
)
def test_a_wrong_class_is_refused_with_the_nearest_name(spec: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        config.check_spec(spec, "model.network")
    assert str(caught.value).startswith("model.network")


def test_given_arguments_fill_what_the_spec_leaves_out() -> None:
    net = config.instantiate(UNET, spatial_dims=2, in_channels=1, out_channels=3, unknown=5)
    assert net.dimensions == 2


def test_paths_that_begin_with_a_dot_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "fit.yaml").write_text("split: {path: ./split.json}\nname: ./ not.a.path\n".replace("./ ", "x"))
    assert config.load_yaml("study/fit.yaml")["split"]["path"] == "study/split.json"


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "fit.yaml").write_text("a: 1")
    with pytest.raises(UsageError, match=r"did you mean 'fit.yaml'"):
        config.load_yaml(tmp_path / "fits.yaml")


def test_overrides() -> None:
    assert config.parse_overrides(["--a.b=1e-3", "--c.d", "[1, 2]"]) == [("a.b", 1e-3), ("c.d", [1, 2])]
    with pytest.raises(UsageError):
        config.parse_overrides(["stray"])
    with pytest.raises(UsageError, match="--name: '2024-13-45' is not a YAML value; quote it"):
        config.parse_overrides(["--name=2024-13-45"])


def test_names_may_be_numbers() -> None:
    assert config.nearest(12, ["123", 4]) == " (did you mean '123'?)"
    assert config.nearest(12, ["x"]) == ""


def test_flatten_names_the_leaves() -> None:
    assert config.flatten({"a": {"b": 1, "c": [1, 2]}, "d": [{"e": 2}]}) == {"a.b": 1, "a.c": [1, 2], "d.0.e": 2}


def test_paths_count_into_lists() -> None:
    whole = {"callbacks": [UNET, {"class_path": "a.B", "init_args": {"patience": 3}}]}
    changed = config.set_path(whole, "callbacks.1.patience", 9)
    assert config.get_path(changed, "callbacks.1.patience") == 9
    assert changed["callbacks"][0] == UNET


@pytest.mark.parametrize("path", ["model.channels.x", "callbacks.7.patience"])
def test_a_path_into_nothing_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="there is no"):
        config.set_path({"model": {"channels": 3}, "callbacks": [UNET]}, path, 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"study: h\xe4\n", "not UTF-8 text"),
        (b"# nothing\n", "is empty"),
        (b"study: a\nmodel:\n  x: 1\n  x: 2\n", "line 4: 'x' stands in line 3 too"),
        (b"study: a\nmodel: {x: 1, x: 2}\n", "line 2: 'x' stands in line 2 too"),
        (b"- a\n", "expected keys and values"),
        (b"a: [1\n", "not valid YAML"),
        (b"a: 2024-13-45\n", "not valid YAML: month must be in 1..12; quote what is text"),
        (b"a: &a [*a]\n", "is nested too deeply"),
        (b"a: " + 2000 * b"[", "is nested too deeply"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "fit.yaml"
    file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        config.load_yaml(file)
    assert str(caught.value).startswith(f"{file}: {said}")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "fit.yaml").write_text("study: a\n")
    with pytest.raises(UsageError, match=r"is a folder; name a file, as .*fit\.yaml"):
        config.load_yaml(tmp_path)


def test_a_module_is_no_class_and_an_unknown_argument_lists_what_is_taken():
    with pytest.raises(UsageError, match=r"no class 'manifest' .did you mean 'Manifest'"):
        config.check_spec({"class_path": "medlight.prepare.manifest"}, "data.source")
    with pytest.raises(UsageError, match="has no argument 'zzz'; it takes label_names, path, unlabelled"):
        config.check_spec({"class_path": "medlight.prepare.Manifest", "init_args": {"zzz": 1}}, "data.source")
