"""Which parameters are shown, and under which names."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from medlight.compare.parameters import ABSENT, differing, shorten, shown
from tests.compare.recorded import spec


def test_only_what_differs_without_class_path_boilerplate():
    runs = [{k: str(v) for k, v in spec("UNet", c, r).items()} for c, r in (("[4]", 0.1), ("[8]", 0.1))]
    assert differing(runs) == [{"channels": "[4]"}, {"channels": "[8]"}]
    other = {k: str(v) for k, v in spec("SegResNet", "[4]", 0.1).items()}
    assert differing([runs[0], other]) == [{"network": "UNet"}, {"network": "SegResNet"}]


def test_a_parameter_that_a_run_lacks():
    first, second = differing([{"model.init_args.depth": "3", "seed": "0"}, {"seed": "0"}])
    assert (first, second) == ({"depth": "3"}, {"depth": ABSENT})


def test_a_run_without_parameters_makes_none_differ():
    runs = [{"space.lr": "0.1", "data.batch": "2"}, {}, {"space.lr": "0.2", "data.batch": "2"}]
    assert differing(runs) == [{"lr": "0.1"}, {}, {"lr": "0.2"}]
    assert differing([{"lr": "0.1"}, {}]) == [{}, {}]
    assert differing([{}, {}]) == [{}, {}]


def test_names_that_end_alike_stay_apart():
    names = ["a.init_args.lr", "b.init_args.lr", "c.augment.0.init_args.p", "c.augment.1.init_args.p"]
    assert list(shorten(names).values()) == ["a.lr", "b.lr", "augment.0.p", "augment.1.p"]


def test_a_name_that_is_the_tail_of_another():
    assert shorten(["lr", "optimizer.lr"]) == {"lr": "lr", "optimizer.lr": "optimizer.lr"}


@given(st.lists(st.lists(st.sampled_from(["a", "b", "0", "lr"]), min_size=1, max_size=4), min_size=1, max_size=6))
def test_short_names_are_never_shared(paths):
    names = sorted({".".join(path) for path in paths})
    short = shorten(names)
    assert len(set(short.values())) == len(names)
    assert all(name.endswith(text) for name, text in short.items())


def test_random_numbers_are_cut_for_people():
    assert shown("0.003502445901833006") == "0.003502"
    assert [shown(text) for text in ("0.001", "[24, 48, 96, 192]", "DynUNet")] == [
        "0.001",
        "[24, 48, 96, 192]",
        "DynUNet",
    ]


def test_one_run_has_no_differences():
    assert differing([{"a": "1"}]) == [{}]


def test_trials_are_told_apart_by_what_the_sweep_chose():
    trials = [
        {
            "space.model.network": "unet",
            "space.model.optimizer.lr": "0.1",
            "model.init_args.network.class_path": "a.UNet",
        },
        {
            "space.model.network": "vnet",
            "space.model.optimizer.lr": "0.2",
            "model.init_args.network.class_path": "a.VNet",
        },
    ]
    assert differing(trials) == [{"network": "unet", "lr": "0.1"}, {"network": "vnet", "lr": "0.2"}]
    mixed = [trials[0], {"model.init_args.network.class_path": "a.VNet"}]
    assert differing(mixed) == [{"network": "UNet"}, {"network": "VNet"}]
