"""The record as a file; reading and refusing is tested in test_engine.py, through the engine."""

from __future__ import annotations

import json
from pathlib import Path

from semlens_audit import engine, record_file
from tests.golden.sample_record import sample


class TestBytes:
    def test_what_is_written_is_what_the_bytes_are(self, tmp_path: Path) -> None:
        record = sample("shortcut")
        record_file.write_record(record, tmp_path / "results.json")
        assert (tmp_path / "results.json").read_bytes() == record_file.record_bytes(record)

    def test_reading_and_writing_again_gives_the_same_bytes(self) -> None:
        data = record_file.record_bytes(sample("clean"))
        assert record_file.record_bytes(record_file.parse_record(data, "results.json")) == data

    def test_the_digest_is_of_the_content_and_not_of_the_layout(self) -> None:
        record = sample("clean")
        compact = json.dumps(json.loads(record_file.record_bytes(record)), separators=(",", ":")).encode()
        assert record_file.record_digest(record_file.parse_record(compact, "x")) == record_file.record_digest(record)

    def test_the_engine_offers_the_same(self) -> None:
        assert engine.write_record is record_file.write_record
        assert engine.read_record is record_file.read_record
        assert engine.record_digest is record_file.record_digest
