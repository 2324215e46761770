"""CompVis' names for the scenes of LSUN: a folder of pictures, and a text file with the names of those of a split."""

from __future__ import annotations

from ldm.data.images import ImageFolder
from ldm.data.theirs import check_size, say_what_is_left_out


class LSUNBase(ImageFolder):
    """The pictures of a list, from a folder.

    Args:
        size: side of the returned pictures in pixels.
        interpolation: must be ``bicubic``; pictures are scaled with antialiasing.
        flip_p: without effect: pictures are not mirrored.
        txt_file: the list, with one path below the folder on each line; if not given, CompVis' place of it.
        data_root: the folder; if not given, CompVis' place of it.

    Raises:
        FileNotFoundError: there is no such folder or list.
        ValueError: there is no size, or another interpolation.
    """

    listed, root_folder = "", ""

    def __init__(
        self,
        size: int | None = None,
        interpolation: str = "bicubic",
        flip_p: float = 0.0,
        txt_file: str | None = None,
        data_root: str | None = None,
    ) -> None:
        name = type(self).__name__
        if interpolation != "bicubic":
            raise ValueError(f"{name}: got interpolation '{interpolation}', expected bicubic; leave it out")
        say_what_is_left_out(name, flip_p=flip_p)
        super().__init__(data_root or self.root_folder, check_size(name, size), files=txt_file or self.listed)


class LSUNChurchesTrain(LSUNBase):
    """Churches, training."""

    listed, root_folder = "data/lsun/church_outdoor_train.txt", "data/lsun/churches"


class LSUNChurchesValidation(LSUNBase):
    """Churches, validation."""

    listed, root_folder = "data/lsun/church_outdoor_val.txt", "data/lsun/churches"


class LSUNBedroomsTrain(LSUNBase):
    """Bedrooms, training."""

    listed, root_folder = "data/lsun/bedrooms_train.txt", "data/lsun/bedrooms"


class LSUNBedroomsValidation(LSUNBase):
    """Bedrooms, validation."""

    listed, root_folder = "data/lsun/bedrooms_val.txt", "data/lsun/bedrooms"


class LSUNCatsTrain(LSUNBase):
    """Cats, training."""

    listed, root_folder = "data/lsun/cat_train.txt", "data/lsun/cats"


class LSUNCatsValidation(LSUNBase):
    """Cats, validation."""

    listed, root_folder = "data/lsun/cat_val.txt", "data/lsun/cats"
