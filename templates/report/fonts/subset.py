"""Make the bundled typefaces: subset, and renamed as the SIL Open Font Licence asks of a modified font.

``python subset.py SOURCE_SANS_DIR PLEX_MONO_DIR`` with the unpacked npm packages source-sans 3.52.0 and @ibm/plex-mono 2.5.0.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fontTools.subset import Options, Subsetter, parse_unicodes
from fontTools.ttLib import TTFont

TEXT = (
    "20-7E,A0-17F,18F,192,1A0,1A1,1AF,1B0,1CD-1DC,1E6,1E7,218-21B,237,259,2B0,2B9-2BC,2C6,2C7,2D8-2DD,300-304,306-30C,"
    "370-3FF,400-45F,462,463,472-475,490-49D,1E00-1EF9,2000-206F,2070-209C,20AC,2100-2138,2153-215E,2190-2199,21D0-21D5,"
    "2200-22FF,2318,25A0-25FF,2610-2612,2713,2717,27E8,27E9,FB00-FB04"
)
ASCII = "20-7E,A0,B7,2013,2014,2026,2192"


def make(source: Path, target: str, family: str, style: str, weight: int, unicodes: str, features: list[str]) -> None:
    """Write one WOFF2 file named `target` beside this script."""
    font = TTFont(source, recalcTimestamp=False)
    options = Options()
    options.layout_features = features
    options.flavor = "woff2"
    options.hinting = False
    options.name_IDs = [0, 1, 2, 3, 4, 5, 6, 13, 14, 16, 17]
    options.name_languages = [0x409]
    subsetter = Subsetter(options)
    subsetter.populate(unicodes=parse_unicodes(unicodes))
    subsetter.subset(font)
    names = font["name"]
    compact = family.replace(" ", "") + "-" + style.replace(" ", "")
    for identifier, text in {
        1: family if weight == 400 else f"{family} {style}",
        2: style if weight == 400 else "Regular",
        3: compact,
        4: f"{family} {style}",
        6: compact,
        16: family,
        17: style,
    }.items():
        names.setName(text, identifier, 3, 1, 0x409)
    font.flavor = "woff2"
    font.save(Path(__file__).with_name(target))


def main(sans: Path, mono: Path) -> None:
    """Make all four files."""
    text = ["kern", "mark", "mkmk", "ccmp", "locl", "tnum", "lnum", "sups", "subs", "case", "zero"]
    make(sans / "TTF/SourceSans3-Regular.ttf", "audit-sans-regular.woff2", "Audit Sans", "Regular", 400, TEXT, text)
    make(sans / "TTF/SourceSans3-It.ttf", "audit-sans-italic.woff2", "Audit Sans", "Italic", 400, TEXT, text)
    make(sans / "TTF/SourceSans3-Semibold.ttf", "audit-sans-semibold.woff2", "Audit Sans", "Semibold", 600, TEXT, text)
    make(
        mono / "fonts/complete/woff2/IBMPlexMono-Regular.woff2",
        "audit-mono-regular.woff2",
        "Audit Mono",
        "Regular",
        400,
        ASCII,
        ["ccmp"],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
