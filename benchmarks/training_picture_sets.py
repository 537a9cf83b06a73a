"""The sets of photographs that `training_pictures` gathers: where each lies, what is taken, how it is reduced."""

from dataclasses import dataclass
from typing import Literal

from benchmarks.train_bundled import WALLPAPERS


@dataclass(frozen=True)
class Source:
    """A set of pictures: where they lie, which are taken, and how they are made smaller.

    place is a GitHub repository (read at commit), or says what lies in the folder or the tar. Files of the patterns are
    taken, but none of `without`. A picture is reduced by
    the factor; 0: by the least whole number that suits its size. If longest is given, it is instead reduced by 2.5 or
    more to at most that longer side. It is then scaled by scale, at once with the reduction.
    """

    name: str
    place: str
    patterns: tuple[str, ...]
    licence: str
    commit: str = ""
    kind: Literal["clone", "folder", "tar"] = "clone"
    factor: int = 0
    longest: int = 0
    scale: float = 1.0
    min_detail: float = 1.5
    min_sharpness: float = 0.3
    mosaics: bool = False
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Selection:
    """The sets of one corpus, the AVIF quality, the longest side, and the shares of the bytes by group of sets.

    A set belongs to the group named before the first hyphen of its name. Without shares all sets are one group.
    """

    sources: tuple[Source, ...]
    quality: int
    longest: int
    shares: dict[str, float]


URBAN100 = ("jbhuang0604/SelfExSR", ("data/Urban100/image_SRF_4/*_HR.png",), "not stated", "8f6dd8c1d20c")
SUNHAYS80 = ("jbhuang0604/SelfExSR", ("data/Sun-Hays80/image_SRF_8/*_HR.png",), "not stated", "8f6dd8c1d20c")
PHOTOSTREAM = ("maxvoltar/photo-stream", ("photos/original/*",), "MIT (of the repository)", "6eaabff1a9a9")

FIRST = Selection(
    (
        Source("urban100", *URBAN100, factor=1),
        Source("sunhays80", *SUNHAYS80, factor=1),
        Source("photostream", *PHOTOSTREAM),
        Source("bsds500", "BIDS/BSDS500", ("BSDS500/data/images/*.jpg",), "not stated", "a04b7c6c3a9f", factor=1),
    ),
    quality=72,
    longest=1600,
    shares={},
)


def wallpapers(name: str, place: str, commit: str, licence: str, folder: str, names: str) -> Source:
    """Return the set of those files of a folder of a repository whose names, as patterns, are given with spaces."""
    patterns = tuple(f"{folder}/{one}" for one in names.split())
    return Source(f"wallpapers-{name}", place, patterns, licence, commit, longest=1250, min_detail=0.7)


# Chosen by eye: photographs only. A question mark stands for a space.
SECOND = Selection(
    (
        Source(
            "halfres", "photos-halfres.tar", ("*.jpg",), "each its photographer's", kind="tar", factor=1, mosaics=True
        ),
        Source(
            "debian",
            "the wallpapers of four Debian packages",
            WALLPAPERS,
            "free licences, in the packages' copyright files",
            kind="folder",
            longest=1250,
            min_detail=0.7,
            without=("*Fossa*", "*Infinite*", "*Painting*", "*analog*", "*umang*", "*Elephants*", "*Autumn*"),
        ),
        wallpapers(
            "popos",
            "pop-os/wallpapers",
            "03a25a14a76e",
            "public domain, by its README",
            "original",
            "ahmadreza* jad-limcaco* jared-evans* kait-herzog* nasa-89127* ng-32703* samuel-zeller* sean-afnan* "
            "spacex* tony-webster*",
        ),
        wallpapers(
            "budgie",
            "BuddiesOfBudgie/budgie-backgrounds",
            "82067426f1dd",
            "CC0",
            "backgrounds",
            "beacon* blue-per* canyon* casa* extreme* lake* oakland* ocean* perched* roman* singap* tea* the-spices*",
        ),
        wallpapers(
            "deepin",
            "linuxdeepin/deepin-wallpapers",
            "ac2fe33778aa",
            "Unsplash",
            "nonfree/unsplash.com",
            "*",
        ),
        wallpapers(
            "elementary",
            "elementary/wallpapers",
            "f28b86144ba0",
            "stated there for each picture",
            "backgrounds",
            "Martin?* Morskie* Mr.* Snow* Sunset?* Tj?* Viktor?*",
        ),
        wallpapers(
            "solus",
            "getsolus/artwork",
            "935b24ac2994",
            "CC0 or CC BY-SA (stated there for each picture)",
            "backgrounds",
            "Twigonometry* blue-wallpaper* boats* exhibici* komodo* lower-antelope* mount-batok* red-cherry* rosa* "
            "vents* white-and* wild-golden*",
        ),
        wallpapers(
            "flowers", "waschinski/photo-stream", "4f4e0dd71bea", "Unsplash", "photos/original", "carrie-cronan-*"
        ),
        Source("reduced-urban100", *URBAN100, factor=1, scale=0.62, min_sharpness=0.45),
        Source("reduced-sunhays80", *SUNHAYS80, factor=1, scale=0.62, min_sharpness=0.45),
        Source("reduced-photostream", *PHOTOSTREAM, scale=0.62, min_sharpness=0.45),
    ),
    quality=84,
    longest=1400,
    shares={"halfres": 0.3, "debian": 0.2, "wallpapers": 0.3, "reduced": 0.2},
)
