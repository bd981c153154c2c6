"""What came of splitting a layer's components, for the terminal and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from semlens_audit.splitting.fit import Fit, Looked
from semlens_audit.terminal import Text
from semlens_audit.virtual_header import units_of

__all__ = ["as_json", "print_fit", "summary"]


def as_json(found: Fit, file: Path | None) -> dict[str, Any]:
    """Everything but the centroids."""
    return {
        **asdict(found.settings),
        "components": found.components,
        "judged": found.judged,
        "over": found.over,
        "looked_at": len(found.looked),
        "split": [one.component for one in found.kept],
        "looked": [_row(one) | {"units": list(found.units.get(one.component, ())) or None} for one in found.looked],
        "file": None if file is None else str(file),
    }


def _row(one: Looked) -> dict[str, Any]:
    compared = one.comparison
    return {
        "component": one.component,
        "polysemanticity": one.polysemanticity,
        "sizes": list(one.sizes),
        "silhouette": one.silhouette if one.sizes[1] else None,
        "dip": None if compared is None else one.dip,
        "p_dip": None if compared is None else one.p_dip,
        "p_dip_adjusted": one.adjusted_dip,
        "compared": None if compared is None else list(compared.sizes),
        "clarity": None if compared is None else compared.before,
        "clarity_split": None if compared is None else compared.after,
        "clarity_groups": None if compared is None else list(compared.groups),
        "cosine_between": None if compared is None else compared.between,
        "separation": None if compared is None else compared.separation,
        "p": None if compared is None else compared.p,
        "p_adjusted": one.adjusted,
        "split": one.kept,
        "reason": one.reason or None,
    }


def summary(found: Fit) -> str:
    """What came of it, in sentences."""
    settings = found.settings
    said = (
        f"{settings.layer}: {found.over:,} of {found.judged:,} components with reference samples have a polysemanticity over "
        f"{settings.polysemanticity:g}; {len(found.kept):,} of {len(found.looked):,} that were looked at are split: clearer at an "
        f"adjusted p of at most {settings.level:g}, and distinct by circuits at such a p or by a separation over {settings.separation:g}."
    )
    if found.over > len(found.looked):
        said += f" {found.over - len(found.looked):,} less polysemantic ones were not looked at: raise --at-most."
    return said


def print_fit(found: Fit) -> None:
    """Print a table of the components that were looked at, most polysemantic first, and the summary."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if found.looked:
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
        for name, side in (
            ("component", "right"), ("poly-\nsemantic", "right"), ("samples", "right"), ("clarity", "right"), ("within\ngroups", "right"),
            ("clearer:\nadj. p", "right"), ("circuits:\nadj. p", "right"), ("sepa-\nration", "right"), ("", "left"),
        ):  # fmt: skip
            table.add_column(name, justify=side, no_wrap=True)  # type: ignore[arg-type]
        units = found.units
        for one in found.looked:
            compared = one.comparison
            table.add_row(
                str(one.component),
                f"{one.polysemanticity:.2f}",
                f"{one.sizes[0]} + {one.sizes[1]}" if one.sizes[1] else str(one.sizes[0]),
                "–" if compared is None else f"{compared.before:.3f}",
                "–" if compared is None else f"{compared.after:.3f}",
                "–" if compared is None else f"{one.adjusted:.2g}",
                "–" if compared is None else f"{one.adjusted_dip:.2g}",
                "–" if compared is None else f"{compared.separation:.2f}",
                Text("split: {} + {}".format(*units[one.component]), style="green") if one.kept else Text(one.reason, style="dim"),
            )
        console.print(table)
        console.print()
    console.print(Text(summary(found)))
    if found.looked:
        settings = found.settings
        console.print(
            Text(
                f"Samples: of the {settings.references} that activate a component most, in either group of circuits. Clarity: mean "
                f"cosine of the up to {found.compared} reference samples of the index, together, and within their groups. Clearer: p of "
                "such a clarity in random groups. Circuits: p of such a valley between the groups in circuits of one group (dip test). "
                "Separation: 1 less the difference of reference samples within groups over that between them. "
                f"Split: the units of {units_of(settings.layer)} that it becomes. Too few shown: hardly any of the index's reference "
                "samples is of one of the groups.",
                style="dim",
            )
        )
