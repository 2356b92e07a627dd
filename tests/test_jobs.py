from __future__ import annotations

import msgspec
import pytest

from keyva.jobs import CompactionJob, FlushJob, Job, JobResult, RemoveJob, decode_job, decode_result, encode
from keyva.manifest import FileMeta

FILE = FileMeta(
    number=5, size_bytes=100, entries=3, tombstones=1, smallest=b"", largest=b"\xfe", smallest_sequence=1, largest_sequence=3, crc32c=7
)
JOBS: list[Job] = [
    FlushJob(id=1, store_id=bytes(16), log=2, sealed_bytes=64, output=9),
    CompactionJob(id=2, store_id=bytes(16), runs=((FILE,), (FILE, FILE)), start=b"", stop=None, drop_tombstones=True, outputs=(10, 11)),
    RemoveJob(id=2**40, numbers=(1, 2, 3)),
]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: type(job).__name__)
def test_a_job_survives_the_wire(job: Job) -> None:
    assert decode_job(encode(job)) == job


def test_a_result_survives_the_wire() -> None:
    result = JobResult(id=3, files=(FILE,), error="CorruptionError", message="what", path="/where", copied_blocks=4)
    assert decode_result(encode(result)) == result
    assert decode_result(encode(JobResult(id=3))) == JobResult(id=3)


def test_a_compaction_knows_the_size_of_its_input() -> None:
    job = JOBS[1]
    assert isinstance(job, CompactionJob)
    assert job.input_bytes == 300


@pytest.mark.parametrize("data", [b"", b"\xc0", encode({"type": "else", "id": 1}), encode({"type": "flush", "id": "x"})])
def test_a_malformed_job_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_job(data)
