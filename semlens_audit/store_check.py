"""Whether a store holds what its stages promise, and how what it lacks is mended.

Every finished stage has the rows that it counts, each of them once; what refers to another row finds it; vectors are finite, as
long as the foundation model makes them, and of unit length; keys are the digests of what they stand for; the run log's chain holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from semlens_audit import run_log
from semlens_audit.digest import digest
from semlens_audit.probe_texts import box_text, prompts
from semlens_audit.run_log import json_object
from semlens_audit.store import Store
from semlens_audit.store_schema import TABLES

__all__ = ["Damage", "check", "mend"]

_TOLERANCE = 1e-3
_STAGE_TABLES = tuple(table.name for table in TABLES if "stage" in table.columns)
_REGION = "sample, x0, y0, x1, y1"


@dataclass(frozen=True)
class Damage:
    """Something in a store that is not what it should be.

    Parameters
    ----------
    where
        Name of the stage, or of the table.
    what
        What is wrong, in one sentence.
    remedy
        SQL statements that remove what is wrong, so that it is computed again; empty where nothing can be computed again.
    """

    where: str
    what: str
    remedy: tuple[tuple[str, tuple[object, ...]], ...] = ()


@dataclass(frozen=True)
class _Stage:
    store: Store
    key: str
    name: str
    total: int
    inputs: dict[str, Any]
    facts: dict[str, Any]

    def one(self, sql: str, *parameters: object) -> int:
        """First value of the first row; 0 for NULL."""
        return int(self.store.rows(sql, parameters)[0][0] or 0)


def check(store: Store) -> tuple[Damage, ...]:
    """Everything in a store that is not what it should be, stage by stage; empty for a store that is whole."""
    tables = {name for (name,) in store.rows("SELECT table_name FROM duckdb_tables()")}
    if lacking := [table.name for table in TABLES if table.name not in tables]:
        return (Damage("file", f"It lacks the table {', '.join(lacking)}."),)
    found: list[Damage] = []
    rows = store.rows("SELECT key, name, complete, total, inputs, facts FROM stage ORDER BY rowid")
    for key, name, complete, total, text, facts in rows:
        try:
            inputs, known = json.loads(text), json.loads(facts)
        except ValueError:
            inputs = known = None
        if not isinstance(inputs, dict) or not isinstance(known, dict):
            found.append(Damage(name, "Its inputs or facts are no JSON object.", _without(key)))
        elif digest(inputs) != key:
            found.append(Damage(name, f"Its key {key[:12]} is not the digest of its inputs.", _without(key)))
        elif complete:
            stage = _Stage(store, key, name, total, inputs, known)
            examine, remedy = _KINDS.get(str(inputs.get("stage")), (_nothing, _own))
            try:
                what = list(examine(stage))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                what, remedy = [f"Its inputs or facts lack something: {error}."], _own
            found += [Damage(f"{name} ({key[:12]})", one, remedy(stage)) for one in what]
    return (*found, *_strays(store), *_caches(store), *_log(store))


def mend(store: Store, found: Sequence[Damage]) -> int:
    """Remove what is damaged, so that the next index computes it again; gives how many complaints that settles."""
    settled = [damage for damage in found if damage.remedy]
    with store.transaction():
        for statement, parameters in dict.fromkeys(one for damage in settled for one in damage.remedy):
            store.execute(statement, parameters)
        store.log("store-mended", {"damages": [f"{damage.where}: {damage.what}" for damage in settled]})
    return len(settled)


def _without(key: str) -> tuple[tuple[str, tuple[object, ...]], ...]:
    tables = [(f'DELETE FROM "{table}" WHERE stage = ?', (key,)) for table in _STAGE_TABLES]
    return (*tables, ("DELETE FROM stage WHERE key = ?", (key,)))


def _own(stage: _Stage) -> tuple[tuple[str, tuple[object, ...]], ...]:
    return _without(stage.key)


def _pooled(stage: _Stage) -> tuple[tuple[str, tuple[object, ...]], ...]:
    """Remove the pool's broken vectors and every stage that was made from the pool; what is whole in it is found again."""
    bad, _ = _bad_vectors(stage.facts)
    double = (
        f"SELECT rowid FROM region WHERE pool = ? QUALIFY row_number() OVER (PARTITION BY {_REGION} ORDER BY rowid) > 1"
    )
    found = stage.store.rows("SELECT key, inputs FROM stage WHERE inputs LIKE '%' || ? || '%'", (stage.key,))
    users = [key for key, text in found if json_object(text).get("pool") == stage.key]
    return (
        (f"DELETE FROM region WHERE pool = ? AND ({bad})", (stage.key,)),
        (f"DELETE FROM region WHERE rowid IN ({double})", (stage.key,)),
        *(statement for key in users for statement in _without(key)),
    )


def _with_references(stage: _Stage) -> tuple[tuple[str, tuple[object, ...]], ...]:
    """Remove crops and the reference samples that they do not fit: which of the two was changed does not show."""
    return (*_own(stage), *_without(str(stage.inputs.get("references"))))


def _probed(stage: _Stage) -> tuple[tuple[str, tuple[object, ...]], ...]:
    pool = stage.inputs["foundation"]
    return (("DELETE FROM prompt WHERE pool = ?", (pool,)), ("DELETE FROM example WHERE pool = ?", (pool,)), *_own(stage))


def _nothing(stage: _Stage) -> Iterator[str]:
    yield from ()


def _numbered(stage: _Stage, table: str, column: str, count: int) -> Iterator[str]:
    """Complain unless a stage's rows of a table are numbered 0 to count - 1."""
    rows, distinct, least, most = stage.store.rows(
        f'SELECT count(*), count(DISTINCT "{column}"), min("{column}"), max("{column}") FROM "{table}" WHERE stage = ?', (stage.key,)
    )[0]
    if rows != count or distinct != count or (count and (least != 0 or most != count - 1)):
        yield f"It has {rows} rows in the table {table}, for {distinct} values of {column}, instead of 0 to {count - 1} once each."


def _vectors(stage: _Stage, table: str, column: str, length: int | None) -> Iterator[str]:
    """Complain about vectors that are not finite, or not all of one length."""
    broken = stage.one(f'SELECT count(*) FROM "{table}" WHERE stage = ? AND NOT isfinite(list_sum("{column}"))', stage.key)
    if broken:
        yield f"{broken} rows of the table {table} hold numbers in {column} that are not finite."
    least, most = stage.store.rows(f'SELECT min(len("{column}")), max(len("{column}")) FROM "{table}" WHERE stage = ?', (stage.key,))[0]
    if least != most or (length is not None and least not in (None, length)):
        yield f"Rows of the table {table} hold {least} to {most} numbers in {column}" + (f" instead of {length}." if length else ".")


def _outputs(stage: _Stage) -> Iterator[str]:
    yield from _numbered(stage, "output", "sample", stage.total)
    yield from _vectors(stage, "output", "logits", len(stage.inputs["classes"]))


def _references(stage: _Stage) -> Iterator[str]:
    components = int(stage.facts["components"])
    yield from _numbered(stage, "component", "component", components)
    if (dead := stage.one("SELECT count(*) FROM component WHERE stage = ? AND dead", stage.key)) != stage.facts["dead"]:
        yield f"{dead} of its components are marked as never active instead of {stage.facts['dead']}."
    yield from _ranked(stage)
    yield from _of_data(stage, stage.total)
    if out := stage.one("SELECT count(*) FROM reference WHERE stage = ? AND component >= ?", stage.key, components):
        yield f"{out} reference samples belong to components that it does not have."


def _selection(stage: _Stage) -> Iterator[str]:
    yield from _ranked(stage)
    made = stage.store.stage(stage.inputs["relevance"])
    if made is not None:
        yield from _of_data(stage, made.total)


def _of_data(stage: _Stage, samples: int) -> Iterator[str]:
    if out := stage.one("SELECT count(*) FROM reference WHERE stage = ? AND sample NOT BETWEEN 0 AND ?", stage.key, samples - 1):
        yield f"{out} reference samples are none of the data's."


def _ranked(stage: _Stage) -> Iterator[str]:
    gaps = stage.one(
        "SELECT count(*) FROM (SELECT component FROM reference WHERE stage = ? GROUP BY component "
        "HAVING count(DISTINCT rank) <> count(*) OR min(rank) <> 0 OR max(rank) <> count(*) - 1 OR count(DISTINCT sample) <> count(*))",
        stage.key,
    )
    if gaps:
        yield f"{gaps} components lack a reference sample, or have one twice."
    wrong = stage.one(
        "SELECT count(*) FROM (SELECT activation, lag(activation) OVER (PARTITION BY component ORDER BY rank) AS before "
        "FROM reference WHERE stage = ?) WHERE NOT isfinite(activation) OR activation > before",
        stage.key,
    )
    if wrong:
        yield f"{wrong} reference samples are out of the order of their activations, or have none."


def _relevance(stage: _Stage) -> Iterator[str]:
    classes = stage.inputs["classes"]
    rows, distinct, least, most = stage.store.rows(
        "SELECT count(*), count(DISTINCT (sample, class)), min(sample), max(sample) FROM relevance "
        "WHERE stage = ? AND class IN (SELECT unnest(?::INTEGER[]))",
        (stage.key, classes),
    )[0]
    every = stage.one("SELECT count(*) FROM relevance WHERE stage = ?", stage.key)
    count = stage.total * len(set(classes))
    if (rows, distinct, every) != (count, count, count) or (count and (least, most) != (0, stage.total - 1)):
        yield f"It has {every} rows in the table relevance instead of {count}: each of {stage.total} samples for each audited class once."
    yield from _vectors(stage, "relevance", "relevance", None)


def _crops(stage: _Stage) -> Iterator[str]:
    references = stage.inputs["references"]
    pair = "SELECT component, rank, sample FROM {} WHERE stage = ?"
    there = stage.one("SELECT count(*) FROM stage WHERE key = ?", references)
    if there:
        for one, other, said in (("crop", "reference", "belong to no reference sample"), ("reference", "crop", "have no crop")):
            keys = (stage.key, references) if one == "crop" else (references, stage.key)
            if gone := stage.one(f"SELECT count(*) FROM ({pair.format(one)} EXCEPT ALL {pair.format(other)})", *keys):
                yield f"{gone} {'crops' if one == 'crop' else 'reference samples'} {said}."
    if (rows := stage.one("SELECT count(*) FROM crop WHERE stage = ?", stage.key)) != stage.total:
        yield f"It has {rows} crops instead of {stage.total}."
    if empty := stage.one("SELECT count(*) FROM crop WHERE stage = ? AND (x0 < 0 OR y0 < 0 OR x1 <= x0 OR y1 <= y0)", stage.key):
        yield f"{empty} crops are empty or begin outside of the picture."
    lacking = stage.one(
        "SELECT count(*) FROM ((SELECT component, rank FROM crop WHERE stage = ? AND rank < ?) EXCEPT ALL "
        "(SELECT component, rank FROM thumbnail WHERE stage = ?))",
        stage.key, stage.inputs["thumbnails"], stage.key,
    )  # fmt: skip
    if lacking:
        yield f"{lacking} crops lack their thumbnail."
    begin = "{} < '\\xFF\\xD8\\xFF'::BLOB OR {} >= '\\xFF\\xD9'::BLOB"
    wrong = " OR ".join(begin.format(column, column) for column in ("crop", "overlay"))
    if broken := stage.one(f"SELECT count(*) FROM thumbnail WHERE stage = ? AND ({wrong})", stage.key):
        yield f"{broken} thumbnails are no JPEG."


def _in_pool(stage: _Stage, table: str, key: str) -> Iterator[str]:
    sql = f"SELECT count(*) FROM (SELECT * FROM {table} WHERE stage = ?) ANTI JOIN (SELECT * FROM region WHERE pool = ?) USING ({_REGION})"
    if gone := stage.one(sql, key, stage.inputs["pool"]):
        yield f"{gone} rows of the table {table} have no embedding."


def _embeddings(stage: _Stage) -> Iterator[str]:
    yield from _in_pool(stage, "crop", stage.inputs["crops"])


def _null(stage: _Stage) -> Iterator[str]:
    rows = stage.one("SELECT count(*) FROM null_region WHERE stage = ?", stage.key)
    crops = stage.one("SELECT count(*) FROM crop WHERE stage = ?", stage.inputs["crops"])
    kept = stage.one("SELECT count(*) FROM stage WHERE key = ? AND complete", stage.inputs["crops"])
    yield from _numbered(stage, "null_region", "position", stage.inputs["count"] if crops or (rows and not kept) else 0)
    yield from _in_pool(stage, "null_region", stage.key)
    dimension = _dimension(stage, stage.inputs["pool"])
    for column in ("vector", "centred"):
        yield from _vectors(stage, "meaning", column, dimension)
    own = "(SELECT component FROM meaning WHERE stage = ?)"
    wanted = "(SELECT DISTINCT component FROM crop WHERE stage = ? AND rank < ?)"
    keys = (stage.key, stage.inputs["crops"], stage.inputs["references"])
    extra = stage.one(f"SELECT count(*) FROM ({own} EXCEPT ALL {wanted})", *keys)
    lacking = stage.one(f"SELECT count(*) FROM ({wanted} EXCEPT ALL {own})", *keys[1:], keys[0])
    if kept and (extra or lacking):
        yield f"{lacking} components lack their concept embedding, and {extra} have one too many."


def _views(stage: _Stage) -> Iterator[str]:
    pool = stage.store.rows("SELECT inputs FROM stage WHERE key = ?", (stage.inputs["pool"],))
    if not pool:
        yield "The foundation model that it was made with is not in the store."
        return
    side = json.loads(pool[0][0])["geometry"]["size"]
    sql = "SELECT count(DISTINCT sample) FROM region WHERE pool = ? AND x0 = 0 AND y0 = 0 AND x1 = ? AND y1 = ? AND sample < ?"
    if (rows := stage.one(sql, stage.inputs["pool"], side, side, stage.total)) != stage.total:
        yield f"{stage.total - rows} samples have no embedding of the whole picture."


def _dimension(stage: _Stage, pool: str) -> int | None:
    state = stage.store.stage(pool)
    return int(state.facts["dimension"]) if state is not None and "dimension" in state.facts else None


def _bad_vectors(facts: dict[str, Any]) -> tuple[str, int]:
    dimension = int(facts["dimension"])
    length = "sqrt(list_inner_product(vector, vector))"
    return f"len(vector) <> {dimension} OR NOT isfinite({length}) OR abs({length} - 1) > {_TOLERANCE}", dimension


def _foundation(stage: _Stage) -> Iterator[str]:
    bad, dimension = _bad_vectors(stage.facts)
    if broken := stage.one(f"SELECT count(*) FROM region WHERE pool = ? AND ({bad})", stage.key):
        yield f"{broken} embeddings of regions are not {dimension} numbers of unit length."
    double = stage.one(
        f"SELECT count(*) FROM (SELECT 1 FROM region WHERE pool = ? GROUP BY {_REGION} HAVING count(*) > 1)", stage.key
    )
    if double:
        yield f"{double} regions have more than one embedding."


def _probes(stage: _Stage) -> Iterator[str]:
    pool, templates = stage.inputs["foundation"], [*stage.inputs["templates"], *stage.inputs["alternatives"]]
    concepts = stage.inputs["concepts"].values()
    texts = {*prompts(templates, [""]), *(text for parts in concepts for text in prompts(templates, parts["descriptions"]))}
    examples = {(sha256, box_text(box)) for parts in concepts for sha256, box in parts["examples"]}
    known = [text for (text,) in stage.store.rows("SELECT text FROM prompt WHERE pool = ?", (pool,))]
    seen = stage.store.rows("SELECT sha256, box FROM example WHERE pool = ?", (pool,))
    if lacking := len(texts - set(known)) + len(examples - set(seen)):
        yield f"{lacking} prompts or example images have no embedding."
    if len(known) != len(set(known)) or len(seen) != len(set(seen)):
        yield "A prompt or an example image has more than one embedding."
    for table in ("prompt", "example"):
        length = "sqrt(list_inner_product(vector, vector))"
        bad = f"NOT isfinite({length}) OR abs({length} - 1) > {_TOLERANCE}"
        if broken := stage.one(f"SELECT count(*) FROM {table} WHERE pool = ? AND ({bad})", pool):
            yield f"{broken} vectors of the table {table} are not of unit length."


def _ablation(stage: _Stage) -> Iterator[str]:
    rows, distinct = stage.store.rows("SELECT count(*), count(DISTINCT sample) FROM ablation WHERE stage = ?", (stage.key,))[0]
    if (rows, distinct) != (stage.total, stage.total):
        yield f"It has {rows} rows for {distinct} different samples in the table ablation instead of {stage.total}."
    yield from _vectors(stage, "ablation", "outputs", None)


def _strays(store: Store) -> Iterator[Damage]:
    for table in _STAGE_TABLES:
        sql = f'FROM "{table}" WHERE stage NOT IN (SELECT key FROM stage)'
        if count := store.rows(f"SELECT count(*) {sql}")[0][0]:
            yield Damage(table, f"{count} rows belong to no stage.", ((f"DELETE {sql}", ()),))


def _caches(store: Store) -> Iterator[Damage]:
    for table, wrong in (
        ("measurement", "NOT json_valid(payload)"),
        ("file_digest", "NOT regexp_full_match(sha256, '[0-9a-f]{64}')"),
    ):
        if count := store.rows(f"SELECT count(*) FROM {table} WHERE {wrong}")[0][0]:
            yield Damage(table, f"{count} rows of this cache are damaged.", ((f"DELETE FROM {table} WHERE {wrong}", ()),))


def _log(store: Store) -> Iterator[Damage]:
    for complaint in run_log.complaints(run_log.read(store)):
        yield Damage("run_log", complaint)
    others = store.rows("SELECT detail FROM run_log WHERE NOT list_contains(?, event)", (list(run_log.EVENTS),))
    if broken := sum(not json_object(text) for (text,) in others):
        yield Damage("run_log", f"{broken} entries about stages are no JSON object.")


_Remedy = Callable[[_Stage], tuple[tuple[str, tuple[object, ...]], ...]]
_KINDS: dict[str, tuple[Callable[[_Stage], Iterator[str]], _Remedy]] = {
    "outputs": (_outputs, _own),
    "pairs": (_outputs, _own),
    "references": (_references, _own),
    "selection": (_selection, _own),
    "relevance": (_relevance, _own),
    "crops": (_crops, _with_references),
    "foundation": (_foundation, _pooled),
    "views": (_views, _own),
    "embeddings": (_embeddings, _own),
    "null": (_null, _own),
    "probes": (_probes, _probed),
    "ablation": (_ablation, _own),
}
"""Kind of a stage -> what it promises, and how it is removed."""
