# SPDX-License-Identifier: Apache-2.0
"""Seals of checkpoints, patience with file systems, one writer per folder."""

import errno
import fcntl
import json
import os

import pytest

from metro_jax.errors import UserError
from metro_jax.training import integrity, lock, summaries


@pytest.fixture
def sealed(tmp_path):
  folder = tmp_path / 'checkpoint_3'
  for name in ('state/d/values', 'state/manifest', 'dataset/metadata'):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(name.encode() * 1000)
  (folder / '_METADATA').write_text('finished later')
  integrity.seal(folder)
  return folder


def test_a_seal_names_every_file_of_the_items(sealed):
  files = json.loads((sealed / integrity.SEAL).read_text())['files']
  assert sorted(files) == [
    'dataset/metadata',
    'state/d/values',
    'state/manifest',
  ]
  integrity.check(sealed)
  (sealed / '_METADATA').write_text('has been finished')
  integrity.check(sealed)


@pytest.mark.parametrize('place', [0, 7_000, 13_999])
def test_a_single_bit_is_found(sealed, place):
  file = sealed / 'state/d/values'
  data = bytearray(file.read_bytes())
  data[place] ^= 0x10
  file.write_bytes(data)
  with pytest.raises(ValueError, match='state/d/values was altered'):
    integrity.check(sealed)


def test_other_losses(sealed):
  (sealed / 'state/manifest').write_bytes(b'')
  with pytest.raises(ValueError, match='state/manifest has 0 bytes, not 14000'):
    integrity.check(sealed)
  (sealed / 'dataset/metadata').unlink()
  with pytest.raises(ValueError, match='dataset/metadata is missing'):
    integrity.check(sealed)
  (sealed / integrity.SEAL).write_text('{"files": 3}')
  with pytest.raises(ValueError, match='cannot be read'):
    integrity.check(sealed)
  (sealed / integrity.SEAL).unlink()
  integrity.check(sealed)  # Made before there were seals.


def test_transient_errors_are_waited_out():
  waits, notes, left = [], [], [errno.ESTALE, errno.ETIMEDOUT]

  def action():
    if left:
      raise OSError(left.pop(0), 'gone for a moment', '/remote/file')
    return 'read'

  assert integrity.persistently(action, notes.append, waits.append) == 'read'
  assert waits == [1.0, 4.0]
  assert len(notes) == 2 and '/remote/file' in notes[0]


def test_other_errors_and_lasting_ones_are_raised():
  def fails(number):
    def action():
      raise OSError(number, os.strerror(number))

    waits = []
    with pytest.raises(OSError) as caught:
      integrity.persistently(action, lambda _: None, waits.append)
    assert caught.value.errno == number
    return waits

  assert fails(errno.ENOSPC) == []
  assert fails(errno.EIO) == [1.0, 4.0, 16.0]


def test_a_second_writer_is_told_who_the_first_is(tmp_path):
  with (tmp_path / lock.FILE).open('w') as first:
    about = {'host': 'h1', 'process': 7, 'since': '2026-01-02'}
    first.write(json.dumps(about))
    first.flush()
    fcntl.flock(first, fcntl.LOCK_EX)
    with pytest.raises(UserError, match='process 7 on h1, since 2026-01-02'):
      lock.hold(str(tmp_path))
    first.truncate(0)
    with pytest.raises(UserError, match='it does not say which'):
      lock.hold(str(tmp_path))
  # The file of a process that is gone holds nobody up.
  lock.hold(str(tmp_path))
  lock.hold(str(tmp_path))  # Again in the same process.
  held = json.loads((tmp_path / lock.FILE).read_text())
  assert held['process'] == os.getpid()
  with (
    (tmp_path / lock.FILE).open() as other,
    pytest.raises(BlockingIOError),
  ):
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
  lock.release(str(tmp_path))
  with (tmp_path / lock.FILE).open() as other:
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_lines_that_could_not_be_written_come_later(tmp_path, monkeypatch):
  notes = []
  writer = summaries.MetricWriter(tmp_path, 0, False, notes.append)
  writer.write(1, {'a': 1.0})
  real = summaries._append

  def torn(path, values):
    with path.open('a') as file:
      file.write('{"step": 2, "a"')
    raise OSError(errno.EIO, 'Input/output error')

  monkeypatch.setattr(summaries, '_append', torn)
  writer.write(2, {'a': 2.0})
  monkeypatch.setattr(summaries, '_append', real)
  writer.write(3, {'a': 3.0})
  writer.write(4, {'a': 4.0})
  steps = [x['step'] for x in summaries.read_jsonl(tmp_path / 'metrics.jsonl')]
  assert steps == [1, 2, 3, 4]
  assert len(notes) == 1
