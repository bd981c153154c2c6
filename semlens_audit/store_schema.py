"""Schema of the store, version by version: every table and column with its meaning, kept as comments in the file itself."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CONTENT_TABLES", "TABLES", "VERSION", "Table", "statements"]

VERSION = 4
"""Version of the schema below; written into every store. 2 added the table ``meaning``, 3 ``ablation``, 4 ``contrast`` and
``null_contrast``."""


@dataclass(frozen=True)
class Table:
    """A table of the store.

    Parameters
    ----------
    name
        Name of the table.
    comment
        What one row stands for.
    columns
        Column -> (SQL type, meaning).
    order
        Columns that order the rows; together they identify one.
    content
        Whether the rows are what the index is: the rest is bookkeeping (log, caches) and left out of the content digest.
    indexed
        Whether `order` is declared as the primary key. Bulk tables are not: an index over millions of rows costs more than the
        transaction that already keeps them whole.
    since
        Version that added the table; a store of an older version gets it when it is next opened for writing.
    """

    name: str
    comment: str
    columns: dict[str, tuple[str, str]]
    order: tuple[str, ...]
    content: bool = True
    indexed: bool = False
    since: int = 1


_STAGE = ("VARCHAR NOT NULL", "key of the stage that wrote the row: SHA-256 over everything the row depends on")
_SAMPLE = ("INTEGER NOT NULL", "sample id: position in the test data sorted by path, from 0")
_COMPONENT = ("INTEGER NOT NULL", "component: channel, unit or latent of the layer, from 0")
_RANK = ("SMALLINT NOT NULL", "position among the component's reference samples, highest activation first, from 0")
_BOX = {
    "x0": ("SMALLINT NOT NULL", "left edge, pixels of the network's input"),
    "y0": ("SMALLINT NOT NULL", "upper edge, pixels of the network's input"),
    "x1": ("SMALLINT NOT NULL", "right edge, exclusive"),
    "y1": ("SMALLINT NOT NULL", "lower edge, exclusive"),
}
_VECTOR = ("FLOAT[] NOT NULL", "embedding by the foundation model, unit length")

TABLES: tuple[Table, ...] = (
    Table(
        "store_version",
        "the one row that says which version of this schema the file has",
        {
            "version": ("INTEGER NOT NULL", "version of the schema"),
            "tool": ("VARCHAR NOT NULL", "version of semlens-audit that created the file"),
        },
        ("version",),
        content=False,
    ),
    Table(
        "stage",
        "one stage of an index: a unit of work that is found again by the digest of its inputs",
        {
            "key": ("VARCHAR NOT NULL", "SHA-256 over the canonical JSON of `inputs`"),
            "name": ("VARCHAR NOT NULL", "what the stage computes, and for which layer, e.g. crops:layer3"),
            "inputs": (
                "VARCHAR NOT NULL",
                "canonical JSON of everything the result depends on, as content digests and settings",
            ),
            "total": ("INTEGER NOT NULL", "items the stage consists of"),
            "done": ("INTEGER NOT NULL", "items finished; the next run goes on from here"),
            "complete": ("BOOLEAN NOT NULL", "whether every row of the stage is written"),
            "facts": ("VARCHAR NOT NULL", "JSON object of what was learned about the inputs, e.g. the number of parameters"),
            "checkpoint": ("BLOB", "state of an unfinished stream (NumPy npz); NULL otherwise"),
        },
        ("key",),
        indexed=True,
    ),
    Table(
        "output",
        "the model's outputs for one sample",
        {
            "stage": _STAGE,
            "sample": _SAMPLE,
            "logits": ("FLOAT[] NOT NULL", "outputs in the order of the model's classes, before any softmax"),
        },
        ("stage", "sample"),
    ),
    Table(
        "component",
        "one component of a layer",
        {
            "stage": _STAGE,
            "component": _COMPONENT,
            "dead": ("BOOLEAN NOT NULL", "never above zero on the data"),
        },
        ("stage", "component"),
    ),
    Table(
        "reference",
        "one reference sample of one component",
        {
            "stage": _STAGE,
            "component": _COMPONENT,
            "rank": _RANK,
            "sample": _SAMPLE,
            "activation": (
                "DOUBLE NOT NULL",
                "what the sample was chosen by: the component's pooled activation on it, or the size of its relevance",
            ),
        },
        ("stage", "component", "rank"),
    ),
    Table(
        "crop",
        "what of a reference sample drives its component",
        {
            "stage": _STAGE,
            "component": _COMPONENT,
            "rank": _RANK,
            "sample": _SAMPLE,
            **_BOX,
        },
        ("stage", "component", "rank"),
    ),
    Table(
        "thumbnail",
        "pictures of a reference sample, for reports; only for the first few of each component",
        {
            "stage": _STAGE,
            "component": _COMPONENT,
            "rank": _RANK,
            "crop": ("BLOB NOT NULL", "JPEG of the crop"),
            "overlay": ("BLOB NOT NULL", "JPEG of the network's whole input with heatmap and box"),
        },
        ("stage", "component", "rank"),
    ),
    Table(
        "relevance",
        "how much each component of a layer contributed to one class logit on one sample",
        {
            "stage": _STAGE,
            "sample": _SAMPLE,
            "class": ("SMALLINT NOT NULL", "index of the class among the model's outputs"),
            "relevance": ("FLOAT[] NOT NULL", "signed relevance of every component, summed over space"),
            "conservation": ("FLOAT", "relevance in the layer over relevance at the output; NULL where the output is zero"),
        },
        ("stage", "sample", "class"),
    ),
    Table(
        "region",
        "embedding of one region of one sample, shared by every stage that needs it",
        {
            "pool": ("VARCHAR NOT NULL", "SHA-256 over test data, geometry of the input and foundation model"),
            "sample": _SAMPLE,
            **_BOX,
            "vector": _VECTOR,
        },
        ("pool", "sample", "x0", "y0", "x1", "y1"),
    ),
    Table(
        "null_region",
        "one random crop that the null distribution of a layer is drawn from",
        {
            "stage": _STAGE,
            "position": ("INTEGER NOT NULL", "order of drawing, from 0"),
            "sample": _SAMPLE,
            **_BOX,
        },
        ("stage", "position"),
    ),
    Table(
        "meaning",
        "concept embedding of one component: what its reference samples have in common for the foundation model",
        {
            "stage": _STAGE,
            "component": _COMPONENT,
            "vector": ("FLOAT[] NOT NULL", "mean embedding of the component's crops"),
            "centred": ("FLOAT[] NOT NULL", "the same, minus the mean embedding of the layer's random crops"),
        },
        ("stage", "component"),
        since=2,
    ),
    Table(
        "contrast",
        "the contrastive crop of one reference sample: the most similar random crop of a sample that drives the component below average",
        {
            "stage": _STAGE,
            "component": _COMPONENT,
            "rank": _RANK,
            "contrast": ("INTEGER NOT NULL", "position of the random crop in the layer's null_region; -1 where there is none"),
        },
        ("stage", "component", "rank"),
        since=4,
    ),
    Table(
        "null_contrast",
        "the contrastive crop of one random crop: the most similar of a random half of the others",
        {
            "stage": _STAGE,
            "position": ("INTEGER NOT NULL", "order of drawing of the random crop, from 0"),
            "contrast": ("INTEGER NOT NULL", "position of the random crop; -1 where there is none"),
        },
        ("stage", "position"),
        since=4,
    ),
    Table(
        "prompt",
        "embedding of one text prompt",
        {
            "pool": ("VARCHAR NOT NULL", "digest of the foundation model"),
            "text": ("VARCHAR NOT NULL", "the prompt, template filled in"),
            "vector": _VECTOR,
        },
        ("pool", "text"),
    ),
    Table(
        "example",
        "embedding of one example image of a concept",
        {
            "pool": ("VARCHAR NOT NULL", "digest of the foundation model"),
            "sha256": ("VARCHAR NOT NULL", "of the image file's bytes"),
            "box": ("VARCHAR NOT NULL", "x0,y0,x1,y1 in pixels of the image; empty for the whole image"),
            "vector": _VECTOR,
        },
        ("pool", "sha256", "box"),
    ),
    Table(
        "ablation",
        "the model's outputs for one sample while sets of components of a layer are switched off",
        {
            "stage": _STAGE,
            "sample": _SAMPLE,
            "outputs": ("FLOAT[] NOT NULL", "outputs for each set in turn, in the order of the stage's sets; classes as in `output`"),
        },
        ("stage", "sample"),
        content=False,
        since=3,
    ),
    Table(
        "measurement",
        "cache of measurements made from the evidence",
        {
            "key": ("VARCHAR NOT NULL", "SHA-256 over everything the measurement depends on"),
            "payload": ("VARCHAR NOT NULL", "the measurement as JSON"),
        },
        ("key",),
        content=False,
        indexed=True,
    ),
    Table(
        "file_digest",
        "cache of the digests of files that have not changed since",
        {
            "path": ("VARCHAR NOT NULL", "absolute path"),
            "size": ("BIGINT NOT NULL", "bytes"),
            "mtime_ns": ("BIGINT NOT NULL", "time of the last change, nanoseconds since 1970"),
            "inode": ("UBIGINT NOT NULL", "inode number"),
            "sha256": ("VARCHAR NOT NULL", "of the file's bytes"),
        },
        ("path",),
        content=False,
        indexed=True,
    ),
    Table(
        "run_log",
        "what was done to this file and when; rows are only ever added",
        {
            "at": ("TIMESTAMP NOT NULL", "UTC"),
            "event": ("VARCHAR NOT NULL", "what happened, e.g. stage-finished"),
            "detail": ("VARCHAR NOT NULL", "JSON object"),
        },
        ("at",),
        content=False,
    ),
)

CONTENT_TABLES: tuple[Table, ...] = tuple(table for table in TABLES if table.content)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def statements(have: int = 0) -> list[str]:
    """The SQL that brings a store from version `have` (0: an empty file) to `VERSION`, comments included.

    The row of ``store_version`` is the caller's to write.
    """
    result = []
    for table in TABLES:
        if table.since <= have:
            continue
        columns = [f'"{name}" {kind}' for name, (kind, _) in table.columns.items()]
        if table.indexed:
            columns.append("PRIMARY KEY (" + ", ".join(f'"{name}"' for name in table.order) + ")")
        result.append(f'CREATE TABLE "{table.name}" ({", ".join(columns)})')
        result.append(f'COMMENT ON TABLE "{table.name}" IS {_quoted(table.comment)}')
        for name, (_, meaning) in table.columns.items():
            result.append(f'COMMENT ON COLUMN "{table.name}"."{name}" IS {_quoted(meaning)}')
    return result
