"""What both methods that compare two views ask of their data."""

from __future__ import annotations

import pytest

from medlight.errors import UsageError
from medlight.tasks import SimCLRTask, VICRegTask
from tests.tasks.blobs import CNN, trainer
from tests.tasks.views import PictureViews


@pytest.mark.parametrize("task", [SimCLRTask, VICRegTask])
def test_views_that_are_all_the_same_are_refused(task: type[SimCLRTask | VICRegTask]) -> None:
    data = PictureViews()
    data.views = ([], [])
    with pytest.raises(UsageError, match=r"data.views: no view has a transform, .* learns nothing"):
        trainer().fit(task(network=CNN), data)


@pytest.mark.parametrize("task", [SimCLRTask, VICRegTask])
def test_a_batch_of_one_sample_is_refused(task: type[SimCLRTask | VICRegTask]) -> None:
    data = PictureViews(batch=1)
    data.batch_size = 1
    with pytest.raises(UsageError, match=r"data.batch_size: 1 is too small; .* at least 2"):
        trainer().fit(task(network=CNN), data)
