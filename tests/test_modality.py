"""A modality remembers what it was made with, through copies, pickles and worker processes."""

from __future__ import annotations

import copy
import pickle

import pytest
from torch.utils.data import DataLoader, Dataset
from toy import ByteText, Patches

from onn_lightning.batch import Segment
from onn_lightning.modality import Modality


class Coloured(Patches):
    """Hands the arguments it does not know on to its base."""

    def __init__(self, colour: str, *nameless: int, **others: int) -> None:
        super().__init__(**others)


class Needy(ByteText):
    """Has files, and does not say how it is made of them again."""

    def assets(self) -> dict[str, bytes]:
        return {"table": b"\0"}


@pytest.mark.parametrize(
    "make", [lambda: Patches(5, predicted=False), lambda: Patches(patch_dim=5, predicted=False)]
)
def test_arguments_are_remembered_by_name_with_defaults(make) -> None:
    assert make().init_args == {"patch_dim": 5, "columns": 2, "predicted": False}


def test_a_subclass_without_an_own_constructor_remembers_that_of_its_base() -> None:
    assert Needy(embedding_size=3).init_args == {"embedding_size": 3}


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_equal_and_remembers_too(duplicate) -> None:
    original = Patches(5, columns=4)
    again = duplicate(original)
    assert again is not original and again.init_args == original.init_args and again.columns == 4
    assert again.encode(range(10)).features.shape == (2, 5)


def test_arguments_handed_on_to_the_base_are_remembered_by_their_own_names() -> None:
    original = Coloured("red", patch_dim=5)
    assert original.init_args == {"colour": "red", "patch_dim": 5}
    assert copy.copy(original).patch_dim == 5


def test_nameless_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="Coloured takes \\*nameless"):
        Coloured("red", 1)


def test_wrong_arguments_are_refused_as_by_any_class() -> None:
    with pytest.raises(TypeError, match="colums"):
        Patches(colums=4)


class Encoded(Dataset[Segment]):
    """Encodes in the worker that asks."""

    def __init__(self, modality: Modality) -> None:
        self.modality = modality

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Segment:
        return self.modality.encode([[index] * 5])


@pytest.mark.slow
def test_a_modality_travels_to_a_spawned_worker() -> None:
    loader = DataLoader(Encoded(Patches(5)), batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert [segment.features.flatten().tolist() for segment in loader] == [[0.0] * 5, [1.0] * 5]


def test_a_modality_is_made_again_from_its_arguments() -> None:
    again = Patches.from_assets(Patches(5).init_args, {})
    assert isinstance(again, Patches) and again.patch_dim == 5


def test_files_without_a_way_to_use_them_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Needy was saved with files \['table'\]"):
        Needy.from_assets({}, Needy().assets())


def test_a_modality_must_say_how_it_encodes_and_embeds() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Modality()


def test_by_default_nothing_is_put_around_a_document() -> None:
    assert (
        Patches().opening_segment() is None
        and Patches().closing_segment() is None
        and Patches().assets() == {}
    )
